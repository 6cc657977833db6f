"""The law of quantization in 8 bits: half a step, bytes as codes, and the same refusals as in 4 bits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from flexref.errors import QuantizationError
from flexref.storage.quant import Array, dequantize, error_bound, group_count, packed, packed_width, quantize

SCALE_DTYPES = (np.float16, np.float32)
GROUP_SIZES = st.one_of(st.sampled_from([1, 2, 32, 64, 128]), st.integers(1, 70))


@st.composite
def rows_of_values(draw: st.DrawFn) -> Array:
    """Values (O, I): spread around a centre that may be far away."""
    shape = draw(st.integers(1, 4)), draw(st.sampled_from([1, 5, 64, 80, 130]))
    unit = np.random.default_rng(draw(st.integers(0, 1 << 32))).standard_normal(shape, np.float32)
    return unit * np.float32(draw(st.sampled_from([0, 1e-6, 0.02, 1, 3e3]))) + np.float32(draw(st.floats(-900, 900)))


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
@given(values=rows_of_values(), group_size=GROUP_SIZES)
def test_no_value_moves_farther_than_the_arithmetic_allows(scale_dtype: type, values: Array, group_size: int) -> None:
    quantized = quantize(values, group_size, scale_dtype, "values", bits=8)
    assert quantized.codes.shape == (len(values), values.shape[1])
    assert (np.abs(dequantize(quantized).astype(np.float64) - values) <= error_bound(quantized)).all()


@given(data=st.data(), group_size=st.integers(2, 70))
def test_steps_of_a_power_of_two_are_exact_and_the_codes_are_the_steps(data: st.DataObject, group_size: int) -> None:
    shape = (3, data.draw(st.integers(2, 5)) * group_size)
    steps = data.draw(npst.arrays(np.uint8, shape))
    steps[:, ::group_size], steps[:, 1::group_size] = 0, 255
    values = steps.astype(np.float32) * np.float32(2.0**-6) - 2
    quantized = quantize(values, group_size, np.float16, "values", bits=8)
    np.testing.assert_array_equal(dequantize(quantized), values)
    np.testing.assert_array_equal(quantized.codes, steps)
    assert (error_bound(quantized) <= 2.0**-7 + 2.0**-16).all()


@given(values=rows_of_values())
def test_no_value_moves_farther_than_half_of_a_255th_of_its_row(values: Array) -> None:
    error = np.abs(dequantize(quantize(values, values.shape[1], np.float32, "values", bits=8)) - values)
    half_a_step = np.ptp(values.astype(np.float64), axis=1, keepdims=True) / 255 / 2
    assert (error <= half_a_step * (1 + 2.0**-12) + 2.0**-22 * np.abs(values)).all()


@pytest.mark.parametrize("bits", [4, 8])
@given(data=st.data(), group_size=GROUP_SIZES)
def test_packed_codes_are_those_that_expand(bits: int, data: st.DataObject, group_size: int) -> None:
    shape = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 150))
    codes = data.draw(npst.arrays(np.uint8, shape, elements=st.integers(0, (1 << bits) - 1)))
    blank = quantize(np.zeros(shape, np.float32), group_size, np.float32, "zeros", bits)
    assert blank.codes.shape[1] == packed_width(shape[1], group_size, bits)
    blank.codes[...] = packed(codes, group_size, bits)
    blank.scale[...] = 1
    np.testing.assert_array_equal(dequantize(blank), codes)
    assert blank.scale.shape[1] == group_count(shape[1], group_size)


@pytest.mark.parametrize(
    ("values", "said"), [([1.0, np.nan], "not finite"), ([0.0, 65505.0], "reaches"), ([1.0, -np.inf], "not finite")]
)
def test_what_four_bits_refuse_eight_refuse_by_the_same_name(values: list[float], said: str) -> None:
    with pytest.raises(QuantizationError, match=f"^ffn: .*{said}"):
        quantize(np.array([values]), 64, np.float16, "ffn", bits=8)


def test_codes_of_other_widths_are_refused() -> None:
    with pytest.raises(QuantizationError, match="4 or 8 bits, found 3"):
        quantize(np.zeros((1, 4), np.float32), 4, np.float16, "ffn", bits=3)
