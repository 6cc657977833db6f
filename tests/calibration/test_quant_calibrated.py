"""Groups chosen by their inputs: products lose less than by least squares of the weights, no output loses more."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.calibration.quant_calibrated import DAMPING, Inputs, Moments, quantize_calibrated
from flexref.errors import QuantizationError
from flexref.storage.quant import Array, dequantize
from flexref.storage.quant_fit import quantize_least_squares


def inputs_of(tokens: int, width: int, seed: int) -> Array:
    """Inputs (T, I) as layers have them: a few directions carry most, some inputs hardly move, the mean is not 0."""
    draw = np.random.default_rng(seed)
    mixed = draw.standard_normal((tokens, 8)) @ draw.standard_normal((8, width))
    spread = np.exp(draw.standard_normal(width))
    return ((mixed + 0.3 * draw.standard_normal((tokens, width))) * spread + 2).astype(np.float32)


def moments_of(x: Array, about_mean: bool = True) -> Moments:
    gathered = Inputs()
    for part in np.array_split(x, 5):
        gathered.add(part)
    return gathered.moments(about_mean)


def costs(values: Array, found: Array, covariance: Array) -> Array:
    errors = values.astype(np.float64) - found
    damped = covariance + DAMPING * np.diagonal(covariance).mean() * np.eye(len(covariance))
    return np.einsum("oi,ij,oj->o", errors, damped, errors)


@given(
    width=st.sampled_from([1, 7, 64, 80, 130]),
    group_size=st.sampled_from([4, 32, 64, 128]),
    tokens=st.sampled_from([5, 300]),
    seed=st.integers(0, 1 << 32),
)
def test_no_output_costs_more_than_by_least_squares(width: int, group_size: int, tokens: int, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((9, width), np.float32)
    moments = moments_of(inputs_of(tokens, width, seed))
    found = quantize_calibrated(values, moments, group_size, np.float16, "values")
    plain = quantize_least_squares(values, group_size, np.float16, "values")
    assert (found.codes.shape, found.scale.shape, found.bits) == (plain.codes.shape, plain.scale.shape, 4)
    mine, other = (costs(values, dequantize(part), moments.covariance) for part in (found, plain))
    assert (mine <= other * (1 + 1e-3) + 1e-9).all()


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_products_with_inputs_it_never_saw_lose_less_than_half(group_size: int) -> None:
    x, values = inputs_of(3000, 256, 1), np.random.default_rng(2).standard_normal((64, 256), np.float32)
    seen, unseen = x[:2000], x[2000:]
    moments = moments_of(seen)
    found = dequantize(quantize_calibrated(values, moments, group_size, np.float16, "values"))
    plain = dequantize(quantize_least_squares(values, group_size, np.float16, "values"))
    lost, lost_plain = (((unseen - moments.mean) @ (values - part).T).var() for part in (found, plain))
    assert lost < 0.5 * lost_plain


@given(parts=st.integers(1, 9), width=st.integers(1, 20), offset=st.sampled_from([0.0, 1e3]), about=st.booleans())
def test_moments_are_those_of_all_inputs(parts: int, width: int, offset: float, about: bool) -> None:
    x = inputs_of(40, width, width) + np.float32(offset)
    gathered = Inputs()
    for part in np.array_split(x, parts):
        gathered.add(part)
    found = gathered.moments(about)
    wide = x.astype(np.float64)
    mean = wide.mean(0) if about else np.zeros(width)
    needed = (wide - mean).T @ (wide - mean) / len(wide)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.covariance, needed, rtol=1e-4, atol=1e-4 * max(1, np.abs(needed).max()))


def test_inputs_that_are_always_zero_choose_as_least_squares_does() -> None:
    values = np.random.default_rng(0).standard_normal((5, 64), np.float32)
    silent = Moments(np.zeros(64, np.float32), np.zeros((64, 64), np.float32))
    found = quantize_calibrated(values, silent, 32, np.float16, "w")
    plain = quantize_least_squares(values, 32, np.float16, "w")
    errors = [((dequantize(part) - values) ** 2).sum(1) for part in (found, plain)]
    assert (errors[0] <= errors[1] * 1.0001).all()


def test_a_value_that_is_not_finite_is_refused_by_name() -> None:
    values = np.ones((2, 64), np.float32)
    values[1, 3] = np.nan
    with pytest.raises(QuantizationError, match=r"^layers/003/ffn_up/weight: .*not finite"):
        quantize_calibrated(values, moments_of(inputs_of(9, 64, 0)), 64, np.float16, "layers/003/ffn_up/weight")
