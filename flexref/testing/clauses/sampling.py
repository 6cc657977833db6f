"""Clauses on the choice of tokens; a clause is `clause(backend, data)`."""

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from flexref.backend.protocol import Backend
from flexref.check.laws import possible_tokens
from flexref.check.tolerances import Values
from flexref.errors import FlexrefError
from flexref.testing.bench import Bench, assert_raises
from flexref.testing.strategies import numbers, seeds

rows = st.integers(1, 5)
vocabularies = st.sampled_from((50, 1, 2, 5, 200, 1000))
"""The last one is long: what picks the best of few logits by sorting them all may pick those of many otherwise."""

temperatures = st.sampled_from((1e-3, 0.3, 1.0, 2.5, 1e4))
shares = st.one_of(st.sampled_from((1.0, 0.5, 0.9, 1e-6)), st.floats(0.01, 1))
uniform_numbers = st.one_of(st.sampled_from((0.9, 0.0, 0.5, 1 - 2.0**-53)), st.floats(0, 1, exclude_max=True))


def _logits(data: st.DataObject, shape: tuple[int, int], dtype: str) -> Values:
    """Logits of which every row has another spread: usual ones, near to each other, far apart, or all equal.

    Now and then there are many equal ones among all of them.
    """
    spreads = np.resize(data.draw(st.permutations((3, 0.5, 40, 0))), (shape[0], 1))
    values = numbers(shape, "float64", "normal", data.draw(seeds)) * spreads
    return np.asarray(np.round(values, data.draw(st.sampled_from((6, 0)))), dtype)


def _uniforms(data: st.DataObject, count: int) -> npt.NDArray[np.float64]:
    return np.array(data.draw(st.lists(uniform_numbers, min_size=count, max_size=count)))


def sampling_gives_a_token_per_row(backend: Backend, data: st.DataObject) -> None:
    """`sample` gives int64 (B,) on the host, every one an id of the vocabulary."""
    with Bench(backend) as bench:
        count, vocabulary = data.draw(rows), data.draw(vocabularies)
        logits = bench.array(np.zeros((count, vocabulary), bench.dtype))
        found = backend.sample(logits, data.draw(st.sampled_from((0.0, 1.0))), 0, 1.0, _uniforms(data, count))
        assert isinstance(found, np.ndarray), f"sample gives {type(found).__name__}, needed an array on the host"
        assert found.shape == (count,), f"sample gives shape {found.shape}, needed {(count,)}"
        assert found.dtype == np.int64, f"sample gives {found.dtype}, needed int64"
        assert ((found >= 0) & (found < vocabulary)).all(), (
            f"sample gives {found.tolist()}, needed ids from 0 to {vocabulary - 1}"
        )


def greedy_takes_the_lowest_of_the_best(backend: Backend, data: st.DataObject) -> None:
    """Temperature 0, or `top_k` 1, takes the first of the greatest logits, whatever the uniform numbers."""
    with Bench(backend) as bench:
        shape = (data.draw(rows), data.draw(vocabularies))
        logits = _logits(data, shape, bench.dtype)
        temperature, top_k = data.draw(st.sampled_from(((0.0, 0), (0.0, 3), (1.0, 1), (1.0, 1))))
        found = backend.sample(bench.array(logits), temperature, top_k, 1.0, _uniforms(data, shape[0]))
        expected = logits.argmax(-1)
        assert found.tolist() == expected.tolist(), f"greedy gives {found.tolist()}, needed {expected.tolist()}"


def logits_that_are_not_finite_are_refused(backend: Backend, data: st.DataObject) -> None:
    """One logit that is infinite or no number, of whatever row, is a `FlexrefError`, greedy or not."""
    with Bench(backend) as bench:
        shape = (data.draw(rows), data.draw(vocabularies))
        logits = numbers(shape, bench.dtype, "normal", data.draw(seeds))
        place = data.draw(st.integers(0, shape[0] - 1)), data.draw(st.integers(0, shape[1] - 1))
        logits[place] = data.draw(st.sampled_from((np.inf, -np.inf, np.nan)))
        placed, temperature = bench.array(logits), data.draw(st.sampled_from((0.0, 1.0)))
        draws = _uniforms(data, shape[0])
        error = assert_raises(
            FlexrefError, lambda: backend.sample(placed, temperature, 0, 1.0, draws), f"sample with {logits[place]}"
        )
        assert "\n" not in str(error), f"the error is {str(error)!r}, needed one line"


def sampling_inverts_the_distribution(backend: Backend, data: st.DataObject) -> None:
    """Tokens stand in falling order of their logits, equal ones by id; the first `top_k` stay, then the shortest
    beginning that holds the share `top_p`; the first token whose cumulative share exceeds the row's uniform is taken.

    Shares may be off by the rounding of the arguments of exp, of exp, and of sums in float32, and so may the choice.
    """
    with Bench(backend) as bench:
        shape = (data.draw(rows), data.draw(vocabularies))
        logits = _logits(data, shape, bench.dtype)
        drawn = data.draw(temperatures), data.draw(st.sampled_from((0, 1, 2, 10, 1000))), data.draw(shares)
        draws = _uniforms(data, shape[0])
        for temperature, top_k, top_p in ((1.0, 0, 1.0), drawn):  # the first as it is without settings
            found = backend.sample(bench.array(logits), temperature, top_k, top_p, draws)
            for row in range(shape[0]):
                possible = possible_tokens(logits[row].astype(np.float64), temperature, top_k, top_p, float(draws[row]))
                assert int(found[row]) in possible, (
                    f"sample (temperature {temperature}, top_k {top_k}, top_p {top_p}, uniform {draws[row]}) gives "
                    f"{found[row]}, needed {sorted(possible)} of {shape[1]} tokens"
                )


def equal_logits_have_equal_shares(backend: Backend, data: st.DataObject) -> None:
    """Of n equal logits `top_p` keeps as many as reach it, and of j tokens the one at j uniform is taken.

    All counts are powers of two, so that however a port sums and divides shares none is rounded, and a uniform number
    or a `top_p` that meets a border is on its right side.
    """
    with Bench(backend) as bench:
        vocabulary, kept, tokens = (2 ** data.draw(st.integers(0, 7)) for _ in range(3))
        kept = min(kept, vocabulary)
        tokens = min(tokens, kept)
        top_k = data.draw(st.sampled_from((0, 1000))) if kept == vocabulary else kept
        sixteenths = [15, *data.draw(st.lists(st.integers(0, 15), max_size=3))]  # the last of them shows one too many
        value, temperature = data.draw(st.sampled_from((0.0, -3.0, 40.0))), data.draw(temperatures)
        logits = bench.array(np.full((len(sixteenths), vocabulary), value, bench.dtype))
        found = backend.sample(logits, temperature, top_k, tokens / kept, np.array(sixteenths) / 16).tolist()
        needed = [tokens * sixteenth // 16 for sixteenth in sixteenths]
        assert found == needed, (
            f"sample of {vocabulary} equal logits (temperature {temperature}, top_k {top_k}, top_p {tokens}/{kept}) "
            f"gives {found}, needed {needed}: the uniform numbers are {sixteenths} sixteenths"
        )


def samples_do_not_depend_on_other_rows(backend: Backend, data: st.DataObject) -> None:
    """A row's token is the same with other rows beside it, in any order, and alone."""
    with Bench(backend) as bench:
        shape = (data.draw(rows), data.draw(vocabularies))
        logits = bench.array(_logits(data, shape, bench.dtype))
        settings = data.draw(temperatures), data.draw(st.sampled_from((0, 2, 10))), data.draw(shares)
        draws = _uniforms(data, shape[0])
        together = backend.sample(logits, *settings, draws).tolist()
        alone = [int(backend.sample(logits[n : n + 1], *settings, draws[n : n + 1])[0]) for n in range(shape[0])]
        assert alone == together, f"rows alone give {alone}, needed {together}, which they give together"
