"""What was lost where values were rounded to a narrower type, told exactly; it knows no tensor and no file."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flexref.storage.quant import Array

WIDER: frozenset[tuple[str, str]] = frozenset(
    {("float16", "float32"), ("bfloat16", "float32"), ("float16", "float16"), ("float32", "float32")}
)
"""(from, to) where every value stays as it is."""

BLOCK_ELEMENTS = 1 << 14
"""Elements that are compared at a time in float64, in which differences are exact: 128 KiB, which stays in a core."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """Of values in the types `sources` that were rounded to `target`, those that `changed`, and the most it was.

    relative_error: the largest |rounded - value| / |value| of values in the normal range of `target`; the smaller ones
    lose more of themselves and less in all: small_error is their largest |rounded - value|.
    """

    sources: frozenset[str]
    target: str
    changed: int
    relative_error: float
    small_error: float

    def joined(self, other: "Rounding") -> "Rounding":
        """This and the other one, to the same type."""
        return Rounding(
            self.sources | other.sources,
            self.target,
            self.changed + other.changed,
            max(self.relative_error, other.relative_error),
            max(self.small_error, other.small_error),
        )

    def to_json(self) -> dict[str, object]:
        """Every figure by its name, fit for `json.dumps`."""
        return {
            "from": sorted(self.sources),
            "to": self.target,
            "changed_values": self.changed,
            "largest_relative_error": self.relative_error,
            "largest_error_below_normal_range": self.small_error,
        }

    def __str__(self) -> str:
        """One line for people."""
        small = f" (values below its normal range moved by up to {self.small_error:.2g})" if self.small_error else ""
        source = " and ".join(sorted(self.sources))
        return f"{source} rounded to {self.target}, largest relative error {self.relative_error:.3g}{small}"


def rounding_of(values: Array, rounded: Array) -> Rounding | None:
    """What `rounded` lost of `values`, both (...) and finite; None if every value stays as it is."""
    source, target = values.dtype.name, rounded.dtype.name
    if (source, target) in WIDER:
        return None
    least = float(np.finfo(rounded.dtype).smallest_normal)
    flat, held = values.reshape(-1), rounded.reshape(-1)
    found = [
        _block(flat[first : first + BLOCK_ELEMENTS], held[first : first + BLOCK_ELEMENTS], least)
        for first in range(0, len(flat), BLOCK_ELEMENTS)
    ]
    changed = sum(count for count, _, _ in found)
    if not changed:
        return None
    relative, small = (max(figures[place] for figures in found) for place in (1, 2))
    return Rounding(frozenset({source}), target, changed, relative, small)


def _block(values: Array, rounded: Array, least: float) -> tuple[int, float, float]:
    """How many values changed, the largest relative error of those from `least` on, the largest error of others."""
    exact: npt.NDArray[np.float64] = values.astype(np.float64)
    error, size = np.abs(rounded.astype(np.float64) - exact), np.abs(exact)
    normal = size >= least
    relative = np.divide(error, size, out=np.zeros_like(error), where=normal)
    return int(np.count_nonzero(error)), float(relative.max(initial=0)), float(error[~normal].max(initial=0))
