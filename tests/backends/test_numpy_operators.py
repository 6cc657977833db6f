"""What the numpy port's operators promise beyond the contract that every port keeps."""

import numpy as np
from flexref_numpy.operators import widen


def test_every_finite_half_is_widened_exactly() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].reshape(-1, 2)
    out = np.full(halves.shape, np.nan, np.float32)
    np.testing.assert_array_equal(widen(halves, out).view(np.uint32), halves.astype(np.float32).view(np.uint32))
