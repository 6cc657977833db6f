"""What rounding loses is told exactly: which values changed, and by how much of themselves."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from flexref.storage.rounding import BLOCK_ELEMENTS, rounding_of

LEAST = 2.0**-14
"""The smallest normal value of float16."""


@given(arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-65000, 65000, width=32)))
def test_the_figures_are_those_of_every_value_by_itself(values: "np.ndarray[tuple[int], np.dtype[np.float32]]") -> None:
    rounded = values.astype(np.float16)
    pairs = [(float(value), float(held)) for value, held in zip(values, rounded, strict=True)]
    lost = [(abs(held - value), abs(value)) for value, held in pairs if held != value]
    found = rounding_of(values, rounded)
    if not lost:
        assert found is None
        return
    assert found is not None
    assert (found.sources, found.target, found.changed) == ({"float32"}, "float16", len(lost))
    assert found.relative_error == max((error / size for error, size in lost if size >= LEAST), default=0)
    assert found.small_error == max((error for error, size in lost if size < LEAST), default=0)
    assert found.relative_error <= 2**-11


def test_many_values_are_told_as_few_are_and_results_join() -> None:
    values = np.ones(3 * BLOCK_ELEMENTS // 2, np.float32)
    values[-1] = 1 + 2.0**-12
    first, second = rounding_of(values, values.astype(np.float16)), rounding_of(values[:1] / 3, np.float16([1 / 3]))
    assert first is not None
    assert second is not None
    assert (first.changed, first.relative_error) == (1, 2.0**-12 / (1 + 2.0**-12))
    joined = first.joined(second)
    assert (joined.changed, joined.relative_error) == (2, max(first.relative_error, second.relative_error))
    assert str(first) == "float32 rounded to float16, largest relative error 0.000244"
    small = rounding_of(np.float64([1e-9]), np.float16([0]))
    assert small is not None
    said = str(first.joined(small))
    assert said == (
        "float32 and float64 rounded to float16, largest relative error 0.000244 "
        "(values below its normal range moved by up to 1e-09)"
    )


@pytest.mark.parametrize("source", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_a_wider_type_loses_nothing(source: type) -> None:
    values = np.linspace(-1, 1, 100).astype(source)
    assert rounding_of(values, values.astype(np.float32)) is None
    fits = np.float32([0.5, 2.0**-24, 65504])
    assert rounding_of(fits, fits.astype(np.float16)) is None
