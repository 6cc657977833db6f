"""The reference port's sampling operator against the law written out in float64, and against itself at its limits."""

import numpy as np
import numpy.typing as npt
import pytest
from flexref_numpy.sampling import sample
from hypothesis import assume, given
from hypothesis import strategies as st

from flexref.errors import FlexrefError

GRID = 2048
"""Uniform numbers in the middle of equal cells: an interval of length p holds p * GRID of them, give or take one."""

UNIT_ROUNDOFF = 2.0**-24
BELOW_ONE = 1 - 2.0**-53

LOGITS = st.lists(st.integers(-32, 32).map(lambda eighths: eighths / 8), min_size=1, max_size=7)
ANY_LOGITS = st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=7)
TEMPERATURES = st.sampled_from([0.25, 0.5, 1.0, 2.0, 0.7, 1.3])
UNIFORMS = st.floats(0, BELOW_ONE)


def draw(logits: list[float], temperature: float, top_k: int, top_p: float, uniform: float) -> int:
    values = np.array([logits], np.float32)
    return int(sample(values, temperature, top_k, top_p, np.array([uniform]))[0])


def law(logits: list[float], temperature: float, top_k: int, top_p: float) -> tuple[list[int], list[float], float]:
    """(tokens that may be drawn, in order; their probabilities; the margin by which top_p chose them)."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))[: top_k or None]
    weights = [float(np.exp((logits[token] - logits[order[0]]) / temperature)) for token in order]
    shares = np.cumsum(weights) / sum(weights)
    kept = next((place for place, share in enumerate(shares) if share >= top_p), len(order) - 1) + 1
    margin = min(abs(share - top_p) for share in shares)
    return order[:kept], [weight / sum(weights[:kept]) for weight in weights[:kept]], float(margin)


@given(logits=LOGITS, temperature=TEMPERATURES, top_k=st.integers(0, 8), top_p=st.floats(0.05, 1))
def test_the_share_of_each_token_over_all_uniforms_is_its_probability(
    logits: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    tokens, probabilities, margin = law(logits, temperature, top_k, top_p)
    # Difference, quotient and exponential of float32 are each off by a few roundings; the exponent's are scaled by it.
    depth = (max(logits) - min(logits)) / temperature
    relative_error = (3 * depth + 4) * UNIT_ROUNDOFF
    assume(top_p == 1 or margin > 2 * relative_error)
    cells = (np.arange(GRID) + 0.5) / GRID
    rows = np.tile(np.array(logits, np.float32), (GRID, 1))
    drawn = np.bincount(sample(rows, temperature, top_k, top_p, cells), minlength=len(logits)) / GRID
    expected = np.zeros(len(logits))
    expected[tokens] = probabilities
    assert np.all(np.abs(drawn - expected) <= 1 / GRID + 4 * relative_error)
    assert np.all(drawn[expected == 0] == 0)


@given(logits=ANY_LOGITS, temperature=TEMPERATURES, top_p=st.floats(0, 1, exclude_min=True), uniform=UNIFORMS)
def test_the_best_alone_is_greedy(logits: list[float], temperature: float, top_p: float, uniform: float) -> None:
    greedy = draw(logits, 0, 0, 1.0, uniform)
    assert greedy == logits.index(max(logits))
    assert draw(logits, temperature, 1, top_p, uniform) == greedy


@given(logits=ANY_LOGITS, temperature=TEMPERATURES, top_k=st.integers(0, 8), uniform=UNIFORMS)
def test_a_tiny_top_p_is_greedy(logits: list[float], temperature: float, top_k: int, uniform: float) -> None:
    # The best of n tokens has at least the share 1 / n.
    assert draw(logits, temperature, top_k, 0.999 / len(logits), uniform) == draw(logits, 0, 0, 1.0, uniform)


@given(
    logits=st.lists(st.integers(-800, 800).map(lambda eighths: eighths / 8), min_size=1, max_size=7, unique=True),
    temperature=st.sampled_from([1e-4, 1e-30, 1e-45, 5e-324]),
    uniform=UNIFORMS,
)
def test_greedy_is_the_limit_of_falling_temperature(logits: list[float], temperature: float, uniform: float) -> None:
    # The second best is less by 1/8 or more: exp(-1250) is 0 in float32.
    assert draw(logits, temperature, 0, 1.0, uniform) == draw(logits, 0, 0, 1.0, uniform)


@given(temperature=st.sampled_from([1e30, 1e300]), uniform=UNIFORMS, size=st.integers(1, 9))
def test_every_token_is_equally_likely_in_the_limit_of_rising_temperature(
    temperature: float, uniform: float, size: int
) -> None:
    logits = [float(token) for token in range(size)]
    assume((uniform * size) % 1 > 1e-9)
    assert draw(logits, temperature, 0, 1.0, uniform) == size - 1 - int(uniform * size)


@given(logits=ANY_LOGITS, temperature=TEMPERATURES, top_k=st.integers(0, 8), top_p=st.floats(0, 1, exclude_min=True))
def test_the_largest_uniform_never_draws_a_token_without_probability(
    logits: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    token = draw(logits, temperature, top_k, top_p, BELOW_ONE)
    assert np.exp((np.float64(logits[token]) - max(logits)) / temperature) > 0


@given(data=st.data(), temperature=st.sampled_from([0.0, 0.7, 1.0]), top_k=st.integers(0, 40), top_p=st.floats(0.01, 1))
def test_a_permutation_of_rows_permutes_the_result(
    data: st.DataObject, temperature: float, top_k: int, top_p: float
) -> None:
    seed = data.draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    logits, uniforms = random.standard_normal((5, 33)).astype(np.float32) * 4, random.random(5)
    order = data.draw(st.permutations(range(5)))
    result = sample(logits, temperature, top_k, top_p, uniforms)
    assert sample(logits[order], temperature, top_k, top_p, uniforms[order]).tolist() == result[order].tolist()
    kept = order[:2]
    assert sample(logits[kept], temperature, top_k, top_p, uniforms[kept]).tolist() == result[kept].tolist()


@pytest.mark.parametrize("top_k", [0, 1, 50, 50_271, 50_272, 60_000])
def test_a_full_vocabulary_is_ranked_as_a_stable_sort_ranks_it(top_k: int) -> None:
    """Coarse logits, so that every rank has ties; the uniforms visit the whole order."""
    random = np.random.default_rng(3)
    values = (random.integers(-24, 24, 50_272) / 8).astype(np.float32)
    values[random.integers(0, values.size, 500)] = -0.0
    order = np.argsort(-values, kind="stable")[: top_k or None]
    reached = np.cumsum(np.exp(values[order] - values[order[0]]), dtype=np.float64)
    uniforms = (np.arange(16) + 0.5) / 16
    expected = order[np.searchsorted(reached, uniforms * reached[-1], side="right")]
    assert sample(np.tile(values, (16, 1)), 1.0, top_k, 1.0, uniforms).tolist() == expected.tolist()


def test_a_uniform_on_a_boundary_belongs_to_the_next_token() -> None:
    assert [draw([0.0] * 4, 1.0, 0, 1.0, share) for share in (0.0, 0.25, 0.5, 0.75)] == [0, 1, 2, 3]


def test_the_smallest_set_that_just_reaches_top_p_is_kept() -> None:
    assert [draw([0.0] * 4, 1.0, 0, 0.5, share) for share in (0.0, 0.49, 0.5, BELOW_ONE)] == [0, 0, 1, 1]


def test_equal_logits_are_ranked_by_id_zeros_of_either_sign_too() -> None:
    assert draw([-0.0, 0.0, -0.0], 1.0, 1, 1.0, 0.5) == 0
    assert [draw([0.0, -0.0, 0.0, -1.0], 1.0, 2, 1.0, uniform) for uniform in (0.1, 0.9)] == [0, 1]
    assert draw([1.0, 3.0, 3.0], 0, 0, 1.0, 0.0) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_reported_with_their_row(temperature: float, bad: float) -> None:
    logits: npt.NDArray[np.float32] = np.zeros((3, 5), np.float32)
    logits[1, 4] = bad
    with pytest.raises(FlexrefError, match=rf"row 1 .*{bad} for token 4"):
        sample(logits, temperature, 0, 1.0, np.zeros(3))


def test_no_rows_give_no_tokens() -> None:
    assert sample(np.zeros((0, 5), np.float32), 1.0, 0, 1.0, np.zeros(0)).shape == (0,)
