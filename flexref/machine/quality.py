"""How a machine was measured, and so how far its figures can be believed; it measures nothing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import quantiles
from typing import Annotated

from flexref.errors import how_many
from flexref.json_types.values import Number, Whole

BUSY_LOAD = 0.5
"""Programs that want each processor, on average: above it a machine is busy."""

BUSY_SHARE = 0.15
"""Of the processors' time, what others may take before a machine is busy."""

UNSTABLE_SHARE = 0.4
"""Of the points of all curves: where so many disagree with themselves, something else was at work."""

DAY_S = 86400.0

SHARE = Number(0)

POINTS = Whole(0)


@dataclass(frozen=True, slots=True)
class Quality:
    """How a machine was measured: when, for how long, what else was at work, and how far repeats spread."""

    measured_at_s: Annotated[float, Number(0), "When it was measured, in seconds since 1970 (UTC)."]
    took_s: Annotated[float, Number(0), "Seconds that measuring took."]
    load_before: Annotated[float, SHARE, "Programs that wanted each processor before it began, on average."]
    others_share: Annotated[float, SHARE, "Of the processors' time meanwhile, what other programs took."]
    stolen_share: Annotated[float, SHARE, "Of the processors' time meanwhile, what other guests of the host took."]
    points: Annotated[int, POINTS, "Points of curves that were repeated."]
    unstable: Annotated[int, POINTS, "Those of them whose repeats disagree."]
    cut: Annotated[int, POINTS, "Curves that there was no time to measure to their end: a safe bound stands for them."]
    spreads: Annotated[
        Mapping[str, Mapping[str, float]],
        "By curve and point, the interquartile range of repeats as a share of their median.",
    ]

    @property
    def spread(self) -> float:
        """What three of four points stay within: no prediction is nearer than the measurements that it is made of."""
        shares = [share for points in self.spreads.values() for share in points.values()]
        return quantiles(shares, n=4, method="inclusive")[2] if len(shares) > 1 else 0.0

    @property
    def busy(self) -> tuple[str, ...]:
        """Why the machine was not quiet, in words; empty if it was."""
        return tuple(self._busy())

    def _busy(self) -> Iterator[str]:
        if self.load_before > BUSY_LOAD:
            yield f"{self.load_before:.1f} programs wanted each processor before"
        if self.others_share > BUSY_SHARE:
            yield f"others took {self.others_share:.0%} of the processors' time"
        if self.stolen_share > BUSY_SHARE:
            yield f"other guests of the host took {self.stolen_share:.0%} of the processors' time"
        if self.unstable > UNSTABLE_SHARE * self.points:
            yield f"repeats of {self.unstable} points of {self.points} disagree"

    def age_s(self, now_s: float) -> float:
        """Seconds since it was measured; less than 0 where a clock was wrong."""
        return now_s - self.measured_at_s

    @property
    def in_words(self) -> str:
        """What is to be known of it, in one line."""
        what = [f"busy: {'; '.join(self.busy)}"] if self.busy else []
        what += [f"{self.unstable} of {self.points} points unstable"] if self.unstable else []
        what += [f"{self.cut} curves cut short"] if self.cut else []
        return "; ".join(what) or "quiet and steady"


def age_in_words(seconds: float) -> str:
    """An age for people: `3 days`, `2 hours`, `5 minutes`."""
    for unit, length in (("day", DAY_S), ("hour", 3600.0), ("minute", 60.0)):
        if seconds >= length:
            return how_many(int(seconds // length), unit)
    return "less than a minute" if seconds >= 0 else "less than nothing"
