"""Running log-probabilities: however logits are cut into pieces, they are those of the whole in float64."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.engine import next_tokens
from flexref.engine.next_tokens import NextTokens
from flexref.errors import FlexrefError, PromptError
from flexref.testing import strategies as own

UNIT = 2.0**-53


def exact(logits: Any) -> Any:
    """Log-probabilities (S, V) and what rounding may move them by, for sums of V terms in float64."""
    wide = logits.astype(np.float64)
    greatest = wide.max(axis=1, keepdims=True)
    normalizer = greatest + np.log(np.exp(wide - greatest).sum(axis=1, keepdims=True))
    # exp, log and V sums on either side, on arguments as large as the logits' spread.
    bound = 8 * UNIT * (logits.shape[1] + np.abs(wide).max() + 8)
    return wide - normalizer, bound


@st.composite
def whole_logits(draw: st.DrawFn) -> Any:
    shape = draw(st.integers(1, 9)), draw(st.integers(1, 40))
    logits = draw(own.arrays(shape, kinds=("normal", "offset", "constant", "zero")))
    coarse = draw(st.booleans())  # many equal logits
    return np.round(logits).astype(np.float32) if coarse else logits


@given(whole_logits(), st.data())
def test_pieces_in_any_order_give_what_the_whole_gives(logits: Any, data: st.DataObject) -> None:
    tokens, vocabulary = logits.shape
    targets = np.array(data.draw(st.lists(st.integers(0, vocabulary - 1), min_size=tokens, max_size=tokens)))
    top = data.draw(st.integers(1, vocabulary + 3))
    step, width = data.draw(st.integers(1, tokens)), data.draw(st.integers(1, vocabulary))
    pieces = [(first, start) for first in range(0, tokens, step) for start in range(0, vocabulary, width)]
    found = NextTokens(targets, top)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(next_tokens, "PIECE_BYTES", data.draw(st.sampled_from((1, 200, 1 << 20))))
        for first, start in data.draw(st.permutations(pieces)):
            found.push(first, start, logits[first : first + step, start : start + width])
    expected, bound = exact(logits)
    np.testing.assert_allclose(found.logprobs, expected[np.arange(tokens), targets], rtol=0, atol=bound)
    order = np.stack([np.lexsort((np.arange(vocabulary), -row)) for row in logits])[:, :top]
    np.testing.assert_array_equal(found.top_ids[:, :vocabulary], order)
    best = np.take_along_axis(expected, order, axis=1)
    np.testing.assert_allclose(found.top_logprobs[:, :vocabulary], best, rtol=0, atol=bound)
    assert (found.top_ids[:, vocabulary:] == -1).all()
    assert (found.top_logprobs[:, vocabulary:] == -np.inf).all()


@given(whole_logits())
def test_a_tokens_figures_do_not_depend_on_its_neighbours(logits: Any) -> None:
    together = NextTokens(np.zeros(len(logits), np.int64))
    together.push(0, 0, logits)
    for row, values in enumerate(logits):
        alone = NextTokens(np.zeros(1, np.int64))
        alone.push(0, 0, values[None])
        assert alone.normalizer[0] == together.normalizer[row]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_named(bad: float) -> None:
    logits = np.zeros((3, 5), np.float32)
    logits[1, 2] = bad
    with pytest.raises(FlexrefError, match=r"scored token 8 has the logit .* for token 12, needed a finite one"):
        NextTokens(np.zeros(20, np.int64)).push(7, 10, logits)


def test_no_most_probable_tokens_at_all_is_refused() -> None:
    with pytest.raises(PromptError, match="at least 1, found 0"):
        NextTokens(np.zeros(1, np.int64), 0)


def test_logits_far_apart_overflow_nothing() -> None:
    found = NextTokens(np.array([0, 1]))
    found.push(0, 0, np.array([[3e38, -3e38], [-3e38, 3e38]], np.float32)[:, :1])
    found.push(0, 1, np.array([[3e38, -3e38], [-3e38, 3e38]], np.float32)[:, 1:])
    np.testing.assert_array_equal(found.logprobs, [0, 0])
