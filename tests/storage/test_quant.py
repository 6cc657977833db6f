"""The law of quantization: error bounds for any values, exactness, packing, and what is refused."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from flexref.errors import QuantizationError
from flexref.storage.quant import (
    Array,
    Quantized,
    dequantize,
    error_bound,
    group_count,
    packed_width,
    quantize,
)

SCALE_DTYPES = (np.float16, np.float32)
GROUP_SIZES = st.one_of(st.sampled_from([1, 2, 3, 16, 64, 128]), st.integers(1, 70))
SHAPES = st.one_of(
    npst.array_shapes(min_dims=1, max_dims=3, max_side=5).map(lambda shape: (*shape[:-1], shape[-1] * 33)),
    npst.array_shapes(min_dims=1, max_dims=4, max_side=4),
    st.sampled_from([(3, 80), (2, 3, 128), (1, 1), (0, 7), (2, 0, 5)]),
)


@st.composite
def rows_of_values(draw: st.DrawFn, largest: float) -> Array:
    """Values (..., I) up to `largest`, a power of two: free ones, and groups of a narrow spread around a far centre."""
    shape = draw(SHAPES)
    free_value = st.floats(-largest / 2, largest / 2, width=32)
    if draw(st.booleans()):
        return draw(npst.arrays(np.float32, shape, elements=free_value))
    centre = draw(free_value)
    spread = draw(st.sampled_from([0.0, 1e-7, 1e-3, 0.4]))
    unit = draw(npst.arrays(np.float32, shape, elements=st.floats(-1, 1, width=32)))
    return (np.float32(centre) + unit * np.float32(spread * largest)).astype(np.float32)


def exact_law(group: Array, scale_dtype: type) -> tuple[list[int], Fraction, Fraction]:
    """The law over one group, written from its definition with one float32 rounding per operation."""
    zero = scale_dtype(min(group))
    span = max(np.float32(max(group)) - np.float32(zero), np.float32(0))
    scale = scale_dtype(span / np.float32(15))
    codes = [
        0 if scale == 0 else min(15, max(0, round(float((value - np.float32(zero)) / np.float32(scale)))))
        for value in group
    ]
    return codes, Fraction(float(scale)), Fraction(float(zero))


def codes_of(quantized: Quantized) -> Array:
    """The codes (..., I) one by one, read from the planar bytes by the rule that the module states."""
    width, size = quantized.width, quantized.group_size
    codes = np.zeros(quantized.shape, np.uint8)
    start = 0
    for first in range(0, width, size):
        count = min(size, width - first)
        half = (count + 1) // 2
        for byte in range(half):
            packed = quantized.codes[..., start + byte]
            codes[..., first + byte] = packed & 15
            if byte + half < count:
                codes[..., first + byte + half] = packed >> 4
            else:
                assert (packed >> 4 == 0).all()
        start += half
    assert start == quantized.codes.shape[-1]
    return codes


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
@given(data=st.data(), group_size=GROUP_SIZES)
def test_no_value_moves_farther_than_the_arithmetic_allows(
    scale_dtype: type, data: st.DataObject, group_size: int
) -> None:
    values = data.draw(rows_of_values(2.0**15))
    quantized = quantize(values, group_size, scale_dtype, "values")
    error = np.abs(dequantize(quantized).astype(np.float64) - values)
    assert (error <= error_bound(quantized)).all()


@given(data=st.data(), group_size=GROUP_SIZES)
def test_the_bound_holds_for_the_largest_and_smallest_float32_values(data: st.DataObject, group_size: int) -> None:
    values = data.draw(rows_of_values(2.0**127))
    quantized = quantize(values, group_size, np.float32, "values")
    assert (np.abs(dequantize(quantized).astype(np.float64) - values) <= error_bound(quantized)).all()


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
@given(data=st.data(), group_size=GROUP_SIZES)
def test_steps_of_a_power_of_two_are_exact_and_the_bound_is_half_a_step(
    scale_dtype: type, data: st.DataObject, group_size: int
) -> None:
    steps = data.draw(npst.arrays(np.int8, data.draw(SHAPES), elements=st.integers(0, 15)))
    steps[..., ::group_size] = 0
    if group_size > 1:
        steps[..., 1::group_size] = 15
    values = steps.astype(np.float32) * np.float32(0.25) - 2
    quantized = quantize(values, group_size, scale_dtype, "values")
    np.testing.assert_array_equal(dequantize(quantized), values)
    float32_roundings = 2.0**-24 * (2 + 64 * (0.25 + 2.0**-13))  # of zero -2, scale 1/4 and its rounding in float16
    assert (error_bound(quantized) <= 0.125 + float32_roundings + 2.0**-140).all()


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
@given(data=st.data(), group_size=GROUP_SIZES)
def test_codes_scale_and_zero_follow_the_law_and_the_planar_packing(
    scale_dtype: type, data: st.DataObject, group_size: int
) -> None:
    values = data.draw(rows_of_values(2.0**15)).reshape(-1, 1)[:80].reshape(1, -1)
    if not values.size:
        return
    quantized = quantize(values, group_size, scale_dtype, "values")
    codes = codes_of(quantized)
    with np.errstate(over="ignore"):
        for group in range(group_count(values.shape[-1], group_size)):
            span = slice(group * group_size, (group + 1) * group_size)
            expected, scale, zero = exact_law(values[0, span], scale_dtype)
            assert codes[0, span].tolist() == expected
            assert Fraction(float(quantized.scale[0, group])) == scale
            assert Fraction(float(quantized.zero[0, group])) == zero


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
@given(value=st.floats(-65504, 65504, width=16), shape=SHAPES, group_size=GROUP_SIZES)
def test_a_constant_group_is_exact(scale_dtype: type, value: float, shape: tuple[int, ...], group_size: int) -> None:
    values = np.full(shape, value, np.float32)
    quantized = quantize(values, group_size, scale_dtype, "values")
    assert not quantized.codes.any()
    np.testing.assert_array_equal(dequantize(quantized), values)


@given(data=st.data(), group_size=GROUP_SIZES)
def test_a_short_last_group_is_what_it_would_be_alone(data: st.DataObject, group_size: int) -> None:
    values = data.draw(rows_of_values(128.0))
    full = values.shape[-1] // group_size * group_size
    if full in (0, values.shape[-1]):
        return
    whole = dequantize(quantize(values, group_size, np.float16, "values"))
    tail = quantize(values[..., full:], group_size, np.float16, "tail")
    np.testing.assert_array_equal(whole[..., full:], dequantize(tail))


@given(data=st.data(), group_size=GROUP_SIZES)
def test_rows_are_quantized_alone(data: st.DataObject, group_size: int) -> None:
    values = data.draw(rows_of_values(128.0))
    quantized = quantize(values, group_size, np.float16, "values")
    first = data.draw(st.integers(0, len(values)))
    stop = data.draw(st.integers(first, len(values)))
    if values.ndim == 1:
        return
    np.testing.assert_array_equal(dequantize(quantized.rows(first, stop)), dequantize(quantized)[first:stop])


def test_a_tensor_larger_than_a_block_is_the_same_as_its_rows() -> None:
    values = np.random.default_rng(0).standard_normal((700, 400), np.float32)
    quantized = quantize(values, 64, np.float16, "values")
    for row in (0, 326, 327, 328, 699):
        alone = quantize(values[row], 64, np.float16, "row")
        np.testing.assert_array_equal(quantized.codes[row], alone.codes)
        np.testing.assert_array_equal(dequantize(quantized)[row], dequantize(alone))


@given(
    width=st.integers(1, 300),
    group_size=GROUP_SIZES,
)
@example(width=80, group_size=64)
def test_sizes_match_what_quantize_makes(width: int, group_size: int) -> None:
    quantized = quantize(np.zeros((2, width), np.float32), group_size, np.float32, "zeros")
    assert quantized.codes.shape == (2, packed_width(width, group_size))
    assert quantized.scale.shape == quantized.zero.shape == (2, group_count(width, group_size))
    assert quantized.shape == (2, width)
    assert quantized.nbytes == 2 * packed_width(width, group_size) + 2 * 8 * group_count(width, group_size)
    assert packed_width(width, group_size) <= (width + group_count(width, group_size)) // 2 + 1


@pytest.mark.parametrize("out_dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("shape", [(4, 6, 80), (3, 64)])
def test_dequantize_fills_any_out_of_its_shape(out_dtype: type, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).standard_normal(shape, np.float32)
    quantized = quantize(values, 64, np.float16, "values")
    expected = dequantize(quantized).astype(out_dtype)
    strided = np.full((*shape[:-1], 2 * shape[-1]), 7, out_dtype)[..., ::2]
    transposed = np.empty((shape[1], shape[0], *shape[2:]), out_dtype).swapaxes(0, 1)
    padded = np.empty((*shape[:-2], shape[-2] + 3, shape[-1]), out_dtype)[..., : shape[-2], :]
    for out in (np.empty(shape, out_dtype), strided, transposed, padded):
        assert dequantize(quantized, out) is out
        np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(dequantize(quantized, dtype=out_dtype), expected)


def test_dequantize_takes_views_of_a_larger_cache() -> None:
    values = np.random.default_rng(2).standard_normal((2, 9, 3, 80), np.float32)
    whole = quantize(values, 64, np.float16, "cache")
    part = Quantized(whole.codes[:, :5], whole.scale[:, :5], whole.zero[:, :5], 80, 64)
    np.testing.assert_array_equal(dequantize(part), dequantize(whole)[:, :5])


def test_dequantize_refuses_an_out_of_another_shape() -> None:
    quantized = quantize(np.zeros((2, 5), np.float32), 4, np.float16, "values")
    with pytest.raises(ValueError, match="must have shape"):
        dequantize(quantized, np.empty((5, 2), np.float32))


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
@given(
    data=st.data(),
    bad=st.sampled_from([np.nan, np.inf, -np.inf]),
    group_size=GROUP_SIZES,
)
def test_a_value_that_is_not_finite_is_refused_by_name(
    scale_dtype: type, data: st.DataObject, bad: float, group_size: int
) -> None:
    values = data.draw(rows_of_values(128.0).filter(lambda found: found.size))
    values.flat[data.draw(st.integers(0, values.size - 1))] = bad
    with pytest.raises(QuantizationError, match=r"^layers/003/ffn_up/weight: .*not finite"):
        quantize(values, group_size, scale_dtype, "layers/003/ffn_up/weight")


@pytest.mark.parametrize(
    ("group", "scale_dtype"),
    [
        ([0, 65505], np.float16),
        ([-70000, 0], np.float16),
        ([1e6, 1e6], np.float16),
        ([-60000, 60000], np.float16),
        ([-3e38, 3e38], np.float32),
        ([1e39, 0], np.float32),
    ],
)
def test_what_the_scale_type_cannot_hold_is_refused_by_name(group: list[float], scale_dtype: type) -> None:
    with pytest.raises(QuantizationError, match=r"^ffn: "):
        quantize(np.array([group]), 64, scale_dtype, "ffn")


def test_the_largest_values_that_fit_are_quantized() -> None:
    for scale_dtype, largest in ((np.float16, 65504.0), (np.float32, 3.0e38)):
        values = np.array([[0, largest], [-largest, 0], [largest, largest]], np.float32)
        quantized = quantize(values, 2, scale_dtype, "values")
        assert (np.abs(dequantize(quantized).astype(np.float64) - values) <= error_bound(quantized)).all()


@pytest.mark.parametrize(("width", "group_size", "dtype"), [(0, 4, "float16"), (3, 0, "float16"), (3, 4, "int8")])
def test_a_layout_that_makes_no_sense_is_refused(width: int, group_size: int, dtype: str) -> None:
    with pytest.raises(QuantizationError, match=r"^what: "):
        quantize(np.zeros((2, width), np.float32), group_size, dtype, "what")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_float_types_are_taken_as_float32(dtype: str) -> None:
    import ml_dtypes

    values = np.random.default_rng(3).standard_normal((5, 70)).astype(getattr(ml_dtypes, dtype, None) or dtype)
    found, expected = (quantize(form, 64, np.float16, "w") for form in (values, values.astype(np.float32)))
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.zero, expected.zero)
