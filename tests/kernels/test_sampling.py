"""The CuPy port's choice of tokens on an emulated device, beside the contract: the reference port, exact cases."""

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import numpy.typing as npt
import pytest
from emulated_cuda import EmulatedCuda, compiler_is_here
from flexref_cupy import CupyBackend
from flexref_cupy.memory import Tensor
from flexref_cupy.operators.sampling import MOST_TOKENS
from flexref_numpy.sampling import sample as law
from hypothesis import given
from hypothesis import strategies as st

from flexref.check.tolerances import Values
from flexref.errors import FlexrefError
from flexref.testing.bench import Bench
from flexref.testing.strategies import seeds

pytestmark = pytest.mark.skipif(not compiler_is_here(), reason="no C++ compiler to run the kernels of cupy on a CPU")

VOCABULARIES = (1, 5, 200, 3000)

BELOW_ONE = 1 - 2.0**-53

SHARE_ERROR = 1e-5
"""Above what a share differs between the ports: three roundings of exp's argument, which is at most 40, and its own."""

FLAT = 1e30
"""A temperature at which every token is equally likely, exactly."""

dtypes = st.sampled_from(("float16", "float32"))
vocabularies = st.sampled_from(VOCABULARIES)
margins = st.sampled_from((0, 1, 3, 8))


@pytest.fixture(scope="module")
def port() -> Iterator[CupyBackend]:
    made = CupyBackend(cuda=EmulatedCuda())
    yield made
    made.close()


def some_logits(seed: int, shape: tuple[int, int], dtype: str, decimals: int = 1, spread: float = 4.0) -> Values:
    """Logits of which many are equal, if they have few decimals; zeros of both signs among them."""
    draw = np.random.default_rng(seed)
    values = np.round(np.clip(draw.standard_normal(shape) * spread, -5 * spread, 5 * spread), decimals)
    return np.asarray(np.where(draw.random(shape) < 0.1, draw.choice((0.0, -0.0), shape), values), dtype)


def in_order(values: Values) -> npt.NDArray[np.int64]:
    """The ids of logits (V,) in falling order, equal ones by id."""
    return np.argsort(-values.astype(np.float64), kind="stable")


@given(
    seed=seeds,
    vocabulary=vocabularies,
    dtype=dtypes,
    decimals=st.sampled_from((0, 1, 6)),
    how=st.tuples(
        st.sampled_from((0.5, 1.0, 3.0)),
        st.sampled_from((0, 1, 4, 50, 1000, 5000)),
        st.one_of(st.sampled_from((1.0, 0.9, 1e-3)), st.floats(0.01, 0.99)),
    ),
)
def test_a_token_is_that_of_the_reference_port_or_its_share_lies_at_a_border(
    port: CupyBackend, seed: int, vocabulary: int, dtype: str, decimals: int, how: tuple[float, int, float]
) -> None:
    """What the law draws is monotone in the uniform and in `top_p`, so a little less and a little more bound it."""
    temperature, top_k, top_p = how
    logits = some_logits(seed, (3, vocabulary), dtype, decimals)
    uniforms = np.array([*np.random.default_rng(seed).random(2), BELOW_ONE])
    with Bench(port) as bench:
        found = port.sample(bench.array(logits), temperature, top_k, top_p, uniforms)
    least, most = (
        law(logits, temperature, top_k, min(top_p * off, 1.0), np.minimum(uniforms * off, BELOW_ONE))
        for off in (1 - SHARE_ERROR, 1 + SHARE_ERROR)
    )
    for row in range(3):
        order = in_order(logits[row]).tolist()
        assert order.index(least[row]) <= order.index(found[row]) <= order.index(most[row])


@given(seed=seeds, vocabulary=vocabularies, dtype=dtypes, margin=margins, decimals=st.sampled_from((-1, 0, 1, 6)))
def test_tokens_stand_in_falling_order_and_equal_ones_by_id(
    port: CupyBackend, seed: int, vocabulary: int, dtype: str, margin: int, decimals: int
) -> None:
    """At a flat distribution the uniform names a place in the order, whatever the logits' alignment."""
    logits = np.repeat(some_logits(seed, (1, vocabulary), dtype, decimals, spread=30.0), 4, 0)
    places = np.random.default_rng(seed).integers(0, vocabulary, 4)
    with Bench(port) as bench:
        placed = bench.guarded(logits, margin, margin).array
        found = port.sample(placed, FLAT, 0, 1.0, (places + 0.5) / vocabulary)
    assert found.tolist() == in_order(logits[0])[places].tolist()


@given(seed=seeds, vocabulary=vocabularies, dtype=dtypes, data=st.data())
def test_top_k_and_top_p_keep_so_many_of_a_flat_distribution(
    port: CupyBackend, seed: int, vocabulary: int, dtype: str, data: st.DataObject
) -> None:
    """The border goes through equal logits nearly always; the largest uniform draws the last token that was kept."""
    logits = some_logits(seed, (1, vocabulary), dtype, 0, spread=2.0)
    order, last = in_order(logits[0]), np.array([BELOW_ONE])
    top_k, kept = data.draw(st.integers(1, vocabulary)), data.draw(st.integers(1, vocabulary))
    with Bench(port) as bench:
        placed = bench.array(logits)
        assert port.sample(placed, FLAT, top_k, 1.0, last)[0] == order[top_k - 1]
        share = (min(kept, top_k) - 0.5) / top_k
        assert port.sample(placed, FLAT, top_k, share, last)[0] == order[min(kept, top_k) - 1]


@given(vocabulary=vocabularies, token=st.integers(0, 2999), uniform=st.floats(0, BELOW_ONE), top_p=st.floats(1e-6, 1))
def test_shares_of_equal_logits_are_exactly_those_of_the_reference_port(
    port: CupyBackend, vocabulary: int, token: int, uniform: float, top_p: float
) -> None:
    """The borders themselves too: a cumulative share that equals the uniform does not exceed it."""
    logits = np.zeros((2, vocabulary), np.float16)
    uniforms = np.array([uniform, token % vocabulary / vocabulary])
    with Bench(port) as bench:
        found = port.sample(bench.array(logits), 1.0, 0, top_p, uniforms)
    assert found.tolist() == law(logits, 1.0, 0, top_p, uniforms).tolist()


@given(
    logits=st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=40),
    temperature=st.sampled_from((0.0, 1e-45, 5e-324, 1e-30, 1.0, 1e300)),
    uniform=st.sampled_from((0.0, 0.5, BELOW_ONE)),
)
def test_extreme_logits_and_temperatures_are_as_in_the_reference_port(
    port: CupyBackend, logits: list[float], temperature: float, uniform: float
) -> None:
    values, uniforms = np.array([logits], np.float32), np.array([uniform])
    with Bench(port) as bench:
        found = port.sample(bench.array(values), temperature, 0, 1.0, uniforms)
    around = (law(values, temperature, 0, 1.0, np.clip(uniforms + off, 0, BELOW_ONE)) for off in (-1e-5, 1e-5))
    order = in_order(values[0]).tolist()
    low, high = (order.index(token[0]) for token in around)
    assert low <= order.index(found[0]) <= high


@pytest.mark.parametrize("logits", [[1.0, 1.0, 0.5], [-(2.0**127), 2.0**127]])
@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e308])
def test_a_temperature_that_float32_cannot_hold_means_the_nearest_one(
    port: CupyBackend, logits: list[float], temperature: float
) -> None:
    values, uniforms = np.array([logits, logits], np.float32), np.array([0.25, 0.75])
    with Bench(port) as bench:
        found = port.sample(bench.array(values), temperature, 0, 1.0, uniforms)
    assert found.tolist() == law(values, temperature, 0, 1.0, uniforms).tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_named_as_by_the_reference_port(
    port: CupyBackend, temperature: float, dtype: str, value: float
) -> None:
    logits = some_logits(1, (5, 1500), dtype)
    logits[2, [70, 71, 1203]] = value, np.nan, np.nan
    logits[3, 5] = np.nan
    with Bench(port) as bench:
        placed = bench.guarded(logits, 3, 2).array
        with pytest.raises(FlexrefError) as found:
            port.sample(placed, temperature, 0, 1.0, np.zeros(5))
    with pytest.raises(FlexrefError) as expected:
        law(logits, temperature, 0, 1.0, np.zeros(5))
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (40, 0.9)])
def test_a_full_vocabulary_is_sampled_as_by_the_reference_port(
    port: CupyBackend, dtype: str, top_k: int, top_p: float
) -> None:
    logits, uniforms = some_logits(7, (2, 50_272), dtype, 2), np.array([0.31, 0.87])
    with Bench(port) as bench:
        placed = bench.array(logits)
        assert port.sample(placed, 0.0, 0, 1.0, uniforms).tolist() == law(logits, 0.0, 0, 1.0, uniforms).tolist()
        found = port.sample(placed, 0.8, top_k, top_p, uniforms)
    assert found.tolist() == law(logits, 0.8, top_k, top_p, uniforms).tolist()


def test_no_rows_give_no_tokens(port: CupyBackend) -> None:
    with Bench(port) as bench:
        found = port.sample(bench.array(np.zeros((2, 5), np.float16))[:0], 1.0, 0, 1.0, np.empty(0))
    assert found.shape == (0,)
    assert found.dtype == np.int64


def test_more_tokens_than_their_sums_hold_are_refused(port: CupyBackend) -> None:
    width = MOST_TOKENS + 1
    with pytest.raises(ValueError, match="at most 16777216"):
        port.sample(Tensor(0, (1, width), "float16", width), 1.0, 0, 1.0, np.zeros(1))


def test_a_choice_needs_no_place_among_the_small_arrays_of_rows() -> None:
    """So a pass is never refused for want of one when it has been computed, and none is given back after it."""
    with closing(CupyBackend(cuda=EmulatedCuda())) as port:
        full = port.device.small(np.zeros(port.device.small_bytes, np.uint8))
        logits, uniforms = np.zeros((3, 5), np.float32), np.array([0.1, 0.5, 0.9])
        found = port.sample(port.upload(logits), 1.0, 0, 1.0, uniforms)
        np.testing.assert_array_equal(found, law(logits, 1.0, 0, 1.0, uniforms))
        assert full.nbytes == port.device.small_bytes


def test_a_choice_ahead_gives_the_device_no_more_to_do_once_it_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of CUDA fails then: one that gives an event back would be told of beside the failure."""
    cuda = EmulatedCuda(late=True)
    with closing(CupyBackend(cuda=cuda)) as backend, Bench(backend) as bench:
        logits, ids = bench.array(np.ones((2, 5), np.float32)), bench.array(np.zeros(2, np.int32))
        chosen = backend.sample_ahead(logits, 0.0, 0, 1.0, np.zeros(2), ids)
        called: list[str] = []

        def failed(*_: object) -> None:
            called.append("a call")
            raise FlexrefError("the device has failed")

        with monkeypatch.context() as patched:
            for name in ("await_event", "await_stream", "copy", "destroy_event"):
                patched.setattr(cuda, name, failed)
            with pytest.raises(FlexrefError, match="has failed") as error:
                chosen()
            del chosen, error
            assert called == ["a call"]
