"""One number or an array of them: what sizes and seconds may be, so that one formula serves one call and many."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
"""One number per candidate (N,), or one for all of them ()."""

Size = TypeVar("Size", float, Numbers)
"""A size, or an array of sizes; seconds of it are the same."""


def numbers(value: object) -> Numbers:
    """`value` as numbers."""
    return np.asarray(value, np.float64)
