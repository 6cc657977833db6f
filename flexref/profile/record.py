"""Collects how good a profile's figures are: how far repeats spread, what was not measured; it measures nothing."""

from collections.abc import Sequence
from statistics import median, quantiles

UNSTABLE_SPREAD = 0.15
"""Where the interquartile range of repeats exceeds this share of their median, the figure is said to be unstable."""

UNSTABLE_S = 1e-6
"""A figure whose repeats spread over less changes no prediction, and is never called unstable."""

LEAST_S = 1e-9
"""Takes the place of 0 seconds by the port's clock."""

LEAST_REPEATS = 3
"""Least number of repeats, also of what takes long: a median of fewer says little."""


def spread_of(values: Sequence[float]) -> tuple[float, float]:
    """The interquartile range of repeats: in seconds, and as a share of their median. (0, 0) for fewer than three."""
    if len(values) < LEAST_REPEATS:
        return 0.0, 0.0
    low, _, high = quantiles(values, n=4, method="inclusive")
    return high - low, (high - low) / max(median(values), LEAST_S)


def is_unstable(values: Sequence[float]) -> bool:
    """Whether repeats spread too widely for their median to be believed."""
    seconds, share = spread_of(values)
    return share > UNSTABLE_SPREAD and seconds > UNSTABLE_S


class Record:
    """Notes how every figure of a profile was measured, by curve and by the label of a point on it."""

    def __init__(self) -> None:
        self.spreads: dict[str, dict[str, float]] = {}
        """By curve and label, the interquartile range of repeats as a share of their median."""
        self._unstable: dict[str, tuple[float, str, bool]] = {}
        self._disagreeing: set[tuple[str, str]] = set()
        self._cut: dict[str, str] = {}
        self._assumed: list[str] = []
        self._stable: dict[str, tuple[float, float]] = {}

    def figure(self, name: str, label: str, values: Sequence[float], size: float | None = None) -> float:
        """The seconds to use for a point with these repeats: their median, at least `LEAST_S`.

        Where repeats are unstable and `size` is given, it is a safe bound instead: the slowest repeat; or, if that is
        less, the seconds of the last stable point in proportion to size, but not less than the fastest repeat. Points
        of a curve must come in rising order of size.
        """
        middle = max(median(values), LEAST_S)
        if len(values) >= LEAST_REPEATS:
            self.spreads.setdefault(name, {})[label] = round(spread_of(values)[1], 4)
        self._disagreeing.discard((name, label))
        if not is_unstable(values):
            if size is not None:
                self._stable[name] = (size, middle)
            return middle
        self._disagreeing.add((name, label))
        spread = spread_of(values)[1]
        worst = self._unstable.get(name, (0.0, "", False))
        self._unstable[name] = max(worst, (spread, label, size is not None))
        if size is None:
            return middle
        bound = max(values)
        if name in self._stable:
            before, seconds = self._stable[name]
            bound = min(bound, max(seconds * size / before, min(values)))
        return max(bound, LEAST_S)

    def cut(self, name: str, label: str = "") -> None:
        """Note that there was no time for more of a curve than the point `label`; "": for any of it."""
        self._cut[name] = label

    def assume(self, what: str, why: str) -> None:
        """Note that `what` was not measured at all, and that a plain machine's rates take its place."""
        self._assumed.append(f"{what}: {why}; the rates of a plain machine stand for it")

    @property
    def unstable(self) -> int:
        """How many points have repeats that spread by more than `UNSTABLE_SPREAD`."""
        return len(self._disagreeing)

    @property
    def cut_curves(self) -> int:
        """How many curves were cut short for lack of time."""
        return len(self._cut)

    @property
    def points(self) -> int:
        """How many points have enough repeats for a spread."""
        return sum(len(points) for points in self.spreads.values())

    @property
    def warnings(self) -> tuple[str, ...]:
        """A line for every curve that is unstable, by how much and where most, and for every one that was cut short."""
        unstable = (
            f"{curve}: the middle half of the repeats spreads over {spread:.0%} of their median at {label}"
            + (", where a safe bound stands for them" if bounded else "")
            for curve, (spread, label, bounded) in sorted(self._unstable.items())
        )
        cut = (
            f"{curve}: there was no time to measure "
            + (f"more than {label}; a safe bound stands for the rest" if label else "it; a safe bound stands for it")
            for curve, label in sorted(self._cut.items())
        )
        return (*unstable, *cut, *self._assumed)
