"""Groups of least squared error: never worse than the law's, better on ordinary weights, exact where the law is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.errors import QuantizationError
from flexref.storage.quant import Array, Quantized, dequantize, group_count, quantize
from flexref.storage.quant_fit import LeastSquares, quantize_least_squares

SCALE_DTYPES = (np.float16, np.float32)
GROUP_SIZES = st.sampled_from([1, 2, 7, 16, 32, 64, 128])
KINDS = ("normal", "outliers", "far", "subnormal", "extreme", "few levels")


def values_of(kind: str, shape: tuple[int, int], seed: int) -> Array:
    draw = np.random.default_rng(seed)
    values = draw.standard_normal(shape)
    if kind == "outliers":
        values = np.where(draw.random(shape) < 0.03, 20 * values, values)
    elif kind == "far":
        values = 700 + values
    elif kind == "subnormal":
        values = values * 3e-7
    elif kind == "extreme":
        values = draw.choice([-65504.0, 65504.0, 32000.0], (shape[0], 1)) + np.abs(values) * 0
        values = np.clip(values + draw.choice([0, 0, 1e4], shape) * -np.sign(values), -65504, 65504)
    elif kind == "few levels":
        values = draw.integers(0, 3, shape) * 0.37
    return values.astype(np.float32)


def squared_errors(values: Array, quantized: Quantized) -> Array:
    """Per group (O, G), in float64."""
    squares = (dequantize(quantized).astype(np.float64) - values) ** 2
    firsts = np.arange(group_count(quantized.width, quantized.group_size)) * quantized.group_size
    return np.add.reduceat(squares, firsts, axis=1)


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 6),
    width=st.sampled_from([1, 5, 64, 80, 200]),
    group_size=GROUP_SIZES,
    seed=st.integers(0, 1 << 32),
)
def test_no_groups_squared_error_is_larger_than_the_laws(
    scale_dtype: type, kind: str, rows: int, width: int, group_size: int, seed: int
) -> None:
    values = values_of(kind, (rows, width), seed)
    law = quantize(values, group_size, scale_dtype, "values")
    found = quantize_least_squares(values, group_size, scale_dtype, "values")
    assert (found.codes.shape, found.scale.dtype, found.bits) == (law.codes.shape, law.scale.dtype, 4)
    assert (squared_errors(values, found) <= squared_errors(values, law)).all()


@given(seed=st.integers(0, 1 << 32), sign=st.sampled_from([-1, 1]), width=st.sampled_from([32, 64]))
def test_codes_that_float16_could_not_expand_are_never_chosen(seed: int, sign: int, width: int) -> None:
    steps = np.random.default_rng(seed).exponential(2e4, (8, width))
    values = (sign * np.clip(65504 - steps, 0, 65504)).astype(np.float32)
    law = quantize(values, width, np.float16, "values")
    found = quantize_least_squares(values, width, np.float16, "values")
    other = (found.scale != law.scale) | (found.zero != law.zero)
    ends = found.zero.astype(np.float64), found.zero.astype(np.float64) + 15 * found.scale.astype(np.float64)
    assert all((np.abs(end[other]) <= 65504).all() for end in ends)


@pytest.mark.parametrize(("group_size", "share"), [(32, 0.85), (64, 0.87), (128, 0.88)])
def test_ordinary_weights_lose_an_eighth_of_their_error(group_size: int, share: float) -> None:
    values = values_of("normal", (64, 512), 1) * np.float32(0.02)
    errors = [
        squared_errors(values, how(values, group_size, np.float16, "values")).sum()
        for how in (quantize_least_squares, quantize)
    ]
    assert errors[0] < share * errors[1]


@given(
    group_size=st.integers(2, 70),
    scale=st.sampled_from([2.0**-9, 1.0, 64.0]),
    zero=st.sampled_from([-4.0, 0.0, 0.5]),
    seed=st.integers(0, 1 << 32),
)
def test_what_the_law_holds_exactly_stays_as_it_is(group_size: int, scale: float, zero: float, seed: int) -> None:
    steps = np.random.default_rng(seed).integers(0, 16, (3, 2 * group_size))
    steps[:, ::group_size], steps[:, 1::group_size] = 0, 15
    values = (steps * scale + zero).astype(np.float32)
    once = quantize_least_squares(values, group_size, np.float16, "values")
    np.testing.assert_array_equal(dequantize(once), values)
    again = quantize_least_squares(dequantize(once), group_size, np.float16, "values")
    np.testing.assert_array_equal(again.codes, once.codes)


@given(value=st.floats(-65504, 65504, width=16), group_size=GROUP_SIZES)
def test_a_constant_group_is_exact(value: float, group_size: int) -> None:
    values = np.full((2, 80), value, np.float32)
    np.testing.assert_array_equal(dequantize(quantize_least_squares(values, group_size, np.float16, "values")), values)


@given(seed=st.integers(0, 1 << 32), group_size=GROUP_SIZES)
def test_a_row_does_not_depend_on_the_others(seed: int, group_size: int) -> None:
    values = values_of("outliers", (5, 80), seed)
    whole = quantize_least_squares(values, group_size, np.float16, "values")
    alone = quantize_least_squares(values[2:3], group_size, np.float16, "values")
    np.testing.assert_array_equal(whole.rows(2, 3).codes, alone.codes)
    np.testing.assert_array_equal(whole.rows(2, 3).scale, alone.scale)


def test_weighed_values_are_served_first() -> None:
    values, weights = values_of("normal", (40, 64), 3), np.ones(64, np.float32)
    weights[:8] = 1000
    found, plain = (
        quantize(values, 64, np.float16, "values", choose=LeastSquares(chosen)) for chosen in (weights, None)
    )
    costs = [(((dequantize(part) - values) ** 2) * weights).sum() for part in (found, plain)]
    assert costs[0] < 0.5 * costs[1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 65505.0])
def test_what_cannot_be_quantized_is_refused_by_name(bad: float) -> None:
    values = np.zeros((3, 70), np.float32)
    values[1, 66] = bad
    with pytest.raises(QuantizationError, match=r"^layers/003/ffn_up/weight: "):
        quantize_least_squares(values, 64, np.float16, "layers/003/ffn_up/weight")
