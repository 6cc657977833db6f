"""Intervals against published values, and against what they promise: to hold the true figure in 95 of 100 samples."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from flexref.quality import intervals
from flexref.quality.intervals import paired_perplexity, wilson


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    """The ends of intervals are known less well, and they hold the true figure as often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "RESAMPLES", 1000)
        yield


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_the_published_one(right: int, of: int, low: float, high: float) -> None:
    np.testing.assert_allclose(wilson(right, of), (low, high), atol=5e-5)


@given(st.integers(1, 10_000), st.data())
def test_wilsons_interval_is_scipys_to_the_bit(of: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, of))
    assert wilson(right, of) == tuple(binomtest(right, of).proportion_ci(0.95, method="wilson"))


@given(st.integers(1, 500), st.data())
def test_wilsons_interval_holds_its_proportion_and_mirrors(of: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, of))
    low, high = wilson(right, of)
    assert 0 <= low <= right / of <= high <= 1
    np.testing.assert_allclose(wilson(of - right, of), (1 - high, 1 - low), atol=1e-12)
    assert (low == 0) == (right == 0)
    assert (high == 1) == (right == of)


@pytest.mark.parametrize(("right", "of"), [(1, 0), (3, 2), (-1, 2)])
def test_what_is_no_proportion_has_no_interval(right: int, of: int) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        wilson(right, of)


def test_a_paired_interval_holds_the_true_difference_in_about_95_of_100_samples() -> None:
    draw, held = np.random.default_rng(3), 0
    true = np.exp(2.1) - np.exp(2.0)
    for _ in range(200):
        # Hardness is common to both models and to neighbours, and much larger than what tells the models apart.
        hard = np.repeat(draw.normal(0, 0.5, 80), 16) + draw.normal(0, 0.5, 1280)
        hard -= hard.mean()
        first = -2.0 - hard
        second = -2.1 - hard + np.repeat(draw.normal(0, 0.2, 80), 16)
        found = paired_perplexity(first, second, 16)
        assert found.interval is not None
        held += found.interval[0] <= true <= found.interval[1]
    assert 0.88 < held / 200 < 0.99


def test_equal_models_do_not_differ_at_all() -> None:
    values = np.random.default_rng(0).normal(-3, 1, 1000)
    assert paired_perplexity(values, values, 64).interval == (0.0, 0.0)


@given(st.integers(1, 300), st.integers(1, 100))
def test_the_difference_is_that_of_the_perplexities_and_few_blocks_give_no_interval(tokens: int, block: int) -> None:
    draw = np.random.default_rng(tokens)
    first, second = draw.normal(-3, 1, tokens), draw.normal(-3, 1, tokens)
    found = paired_perplexity(first, second, block)
    assert found.difference == pytest.approx(np.exp(-second.mean()) - np.exp(-first.mean()), rel=1e-12)
    assert found.blocks == -(-tokens // block)
    assert (found.interval is None) == (found.blocks < 2)
    again = paired_perplexity(first, second, block)
    assert again == found, "the same figures give the same interval"


def test_log_probabilities_of_different_tokens_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="not of the same tokens"):
        paired_perplexity(np.zeros(3), np.zeros(4), 2)


@pytest.mark.filterwarnings("error")
def test_a_perplexity_beyond_all_numbers_differs_by_no_number_and_warns_of_nothing() -> None:
    assert not np.isfinite(paired_perplexity(np.zeros(200), np.full(200, -1e4), 64).difference)
    assert not np.isfinite(paired_perplexity(np.full(200, -1e4), np.full(200, -1e4), 64).difference)
