"""Seconds as functions of sizes: measured points, and what is assumed between and beyond them; it knows no machine.

A size is one number, computed in Python's own floats because a simulation asks for one at a time, or an array of them.
"""

import math
import sys
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np

from flexref.errors import PolicyError
from flexref.json_types.containers import ListOf, Pair, ReadBy
from flexref.json_types.values import Number, shown
from flexref.machine.arrays import Numbers, Size
from flexref.units import is_number

POINTS_MOST = 256
"""Bounds a curve in a file; a measured one has about ten points."""

LEAST, SIZE_MOST, SECONDS_MOST = 1e-15, 1e18, 1e9
"""Bound sizes and seconds in a file: far below and above any machine, so that nothing computed from them overflows."""

SIZE, SECONDS = Number(LEAST, SIZE_MOST), Number(LEAST, SECONDS_MOST)


def check_number(what: str, value: object, *, least: float = 0.0, above: bool = False) -> float:
    """`value` as a float; `PolicyError` unless it is a finite number of at least (with `above`: above) `least`."""
    # Compared, not converted: a whole number in a file may be too long for a float.
    if not is_number(value) or not least <= value <= sys.float_info.max or (above and value == least):
        needed = f"above {least:g}" if above else f"of at least {least:g}"
        raise PolicyError(f"{what} must be a number {needed}, found {shown(value)}")
    return float(value)


def _weight(low: float, high: float, size: float) -> float:
    """How far `size` is from `low` to `high` on a logarithmic scale."""
    # Not the difference of logarithms, which is 0 for neighbouring numbers.
    return math.log1p((size - low) / low) / math.log1p((high - low) / low)


def _between(low: tuple[float, float], high: tuple[float, float], size: float) -> float:
    """Seconds for breadth `size` between two (breadth, seconds): a power of the breadth."""
    weight = _weight(low[0], high[0], size)
    return low[1] ** (1 - weight) * high[1] ** weight  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Curve:
    """Seconds over size: `points` (size, seconds) in rising order of size.

    Between points seconds lie on a line, as those of a fixed cost and a rate do: a power of the size would be above it,
    by a tenth where sizes lie a factor of 16 apart. Below the first point they are those of the first (a fixed cost);
    beyond the last they grow in proportion (a rate). Nothing takes no time.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.points) <= POINTS_MOST:
            raise PolicyError(f"a curve must have 1 to {POINTS_MOST} points, found {len(self.points)}")
        before = 0.0
        for size, seconds in self.points:
            check_number("a curve's size", size, least=before, above=True)
            check_number("a curve's seconds", seconds, above=True)
            before = size

    @classmethod
    def of_rate(cls, per_s: float, fixed_s: float, sizes: Sequence[float]) -> "Curve":
        """The curve of fixed_s + size / per_s through `sizes`: what a data sheet's rate and a latency say."""
        return cls(tuple((float(size), fixed_s + size / per_s) for size in sizes))

    def seconds(self, size: Size) -> Size:
        """Seconds for `size`, or for each of an array of sizes."""
        if isinstance(size, np.ndarray):
            return self._seconds_of_all(size)
        if size <= 0:
            return 0.0
        first, last = self.points[0], self.points[-1]
        if size <= first[0]:
            return first[1]
        if size >= last[0]:
            return last[1] * size / last[0]
        above = bisect_right(self.points, (size, math.inf))
        (low, before), (high, after) = self.points[above - 1], self.points[above]
        weight = (size - low) / (high - low)
        return before * (1 - weight) + after * weight

    @cached_property
    def _columns(self) -> tuple[Numbers, Numbers]:
        """All sizes, and their seconds: a plan asks for arrays of sizes over and over."""
        sizes, seconds = np.array(self.points).T
        return sizes, seconds

    def _seconds_of_all(self, sizes: Numbers) -> Numbers:
        last, last_s = self.points[-1]
        between = np.interp(sizes, *self._columns)
        return np.where(sizes <= 0, 0.0, np.where(sizes >= last, last_s * sizes / last, between))

    def per_s(self, size: float) -> float:
        """Size per second at that size."""
        return size / self.seconds(size)

    def scaled(self, factor: float) -> "Curve":
        """The curve of what takes `factor` times as long."""
        return Curve(tuple((size, seconds * factor) for size, seconds in self.points))

    def to_json(self) -> list[list[float]]:
        """[[size, seconds], ...]."""
        return [list(point) for point in self.points]

    @classmethod
    def from_json(cls, what: str, values: object) -> "Curve":
        """What `to_json` gave; `PolicyError` names `what`."""
        if not isinstance(values, list) or not all(isinstance(point, list) and len(point) == 2 for point in values):
            raise PolicyError(f"{what} must be a list of [size, seconds], found {shown(values)}")
        try:
            curve = cls(tuple((point[0], point[1]) for point in values))
            for size, seconds in curve.points:
                SIZE.read("a curve's size", size, PolicyError)
                SECONDS.read("a curve's seconds", seconds, PolicyError)
        except PolicyError as error:
            raise PolicyError(f"{what}: {error}") from error
        return curve


@dataclass(frozen=True, slots=True)
class Surface:
    """Seconds over two sizes: for some `breadths`, in rising order, a curve over the other size.

    Between breadths seconds follow a power of the breadth; beyond them, as on a curve: a fixed cost below, a rate
    above.
    """

    curves: tuple[tuple[float, Curve], ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.curves) <= POINTS_MOST:
            raise PolicyError(f"a surface must have 1 to {POINTS_MOST} curves, found {len(self.curves)}")
        before = 0.0
        for breadth, _ in self.curves:
            check_number("a surface's breadth", breadth, least=before, above=True)
            before = breadth

    def seconds(self, breadth: float, size: Size) -> Size:
        """Seconds at `size`, or at each of an array of sizes, on the curve of that breadth."""
        if isinstance(size, np.ndarray):
            return self._seconds_of_all(breadth, size)
        if breadth <= 0 or size <= 0:
            return 0.0
        first, last = self.curves[0], self.curves[-1]
        if breadth <= first[0]:
            return first[1].seconds(size)
        if breadth >= last[0]:
            return last[1].seconds(size) * breadth / last[0]
        above = self._curves_up_to(breadth)
        (low, before), (high, beyond) = self.curves[above - 1], self.curves[above]
        return _between((low, before.seconds(size)), (high, beyond.seconds(size)), breadth)

    def _curves_up_to(self, breadth: float) -> int:
        return bisect_right(self.curves, breadth, key=itemgetter(0))

    def _seconds_of_all(self, breadth: float, sizes: Numbers) -> Numbers:
        if breadth <= 0:
            return np.zeros_like(sizes)
        above = self._curves_up_to(breadth)
        if above == 0:
            return self.curves[0][1].seconds(sizes)
        low, before = self.curves[above - 1]
        last = before.seconds(sizes)
        if above == len(self.curves):
            return last * (breadth / low)
        high, beyond = self.curves[above]
        weight = np.log(breadth / low) / np.log(high / low)
        after = beyond.seconds(sizes)
        return np.where(sizes > 0, last ** (1 - weight) * after**weight, 0.0)

    def scaled(self, factor: float) -> "Surface":
        """The surface of what takes `factor` times as long."""
        return Surface(tuple((breadth, curve.scaled(factor)) for breadth, curve in self.curves))

    def to_json(self) -> list[list[Any]]:
        """[[breadth, [[size, seconds], ...]], ...]."""
        return [[breadth, curve.to_json()] for breadth, curve in self.curves]

    @classmethod
    def from_json(cls, what: str, values: object) -> "Surface":
        """What `to_json` gave; `PolicyError` names `what`."""
        if not isinstance(values, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in values):
            raise PolicyError(f"{what} must be a list of [breadth, curve], found {shown(values)}")
        try:
            surface = cls(tuple((pair[0], Curve.from_json(what, pair[1])) for pair in values))
            for breadth, _ in surface.curves:
                SIZE.read("a surface's breadth", breadth, PolicyError)
        except PolicyError as error:
            raise PolicyError(str(error) if str(error).startswith(what) else f"{what}: {error}") from error
        return surface


CURVE = ReadBy(
    ListOf(Pair(SIZE, SECONDS), 1, POINTS_MOST),
    Curve.from_json,
    "Curve",
    "Seconds over size, as pairs [size, seconds] in rising order of size.",
)
"""A curve in JSON."""

SURFACE = ReadBy(
    ListOf(Pair(SIZE, CURVE), 1, POINTS_MOST),
    Surface.from_json,
    "Surface",
    "Seconds over two sizes, as pairs [breadth, curve] in rising order of breadth.",
)
"""A surface in JSON."""
