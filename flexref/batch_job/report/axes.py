"""Axes of charts: round ticks, and the time of a job with its stops; it draws nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flexref.batch_job.report.figures import RunFigures
from flexref.batch_job.report.words import duration

STOPS_SHARE = 0.15
"""Of the time that a job ran: what all its stops take on an axis at most, lest a week's rest hide an hour's work."""

TIME_TICKS_MOST = 5
"""Ticks of an axis of time: their words still stand apart on a narrow page."""

TIME_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
"""Round steps of time up to a day; from there on round numbers of days."""


MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis as a share of its length, and what stands there."""

    at: float
    words: str


@dataclass(frozen=True, slots=True)
class StopBand:
    """A stretch of the axis, in shares of it, in which the job stood still for `seconds`."""

    at: float
    width: float
    seconds: float


class TimeAxis:
    """The time in which a job ran, run after run, as shares of an axis; its stops lie between, shortened if need be."""

    def __init__(self, runs: Sequence[RunFigures]) -> None:
        running = sum(run.seconds for run in runs)
        longest = running * STOPS_SHARE / max(1, len(runs) - 1)
        self._runs = runs
        self._starts: list[float] = []
        at, stops = 0.0, []
        for run in runs:
            shown = min(run.stopped_before_s, longest)
            if run.number > 1:
                stops.append((at, shown, run.stopped_before_s))
            at += shown
            self._starts.append(at)
            at += run.seconds
        self._length = at or 1.0
        self._running = running
        self.stops = [StopBand(start / self._length, shown / self._length, real) for start, shown, real in stops]

    def at(self, run: int, seconds: float) -> float:
        """Where a moment of run number `run`, from 0 on, lies."""
        return min(1.0, max(0.0, (self._starts[run] + seconds) / self._length))

    def ticks(self) -> list[Tick]:
        """Round numbers of the seconds, minutes, hours or days that the job ran."""
        if not self._running:
            return []
        step = time_step(self._running)
        return [Tick(self._of_running(tick * step), _tick_words(tick * step)) for tick in range(self._count(step))]

    def _count(self, step: float) -> int:
        return int(self._running / step + 1e-9) + 1

    def _of_running(self, seconds: float) -> float:
        for number, run in enumerate(self._runs):
            if seconds <= run.seconds or number == len(self._runs) - 1:
                return self.at(number, seconds)
            seconds -= run.seconds
        return 0.0


def time_step(seconds: float) -> float:
    """The round step of time with which an axis of so many seconds has few ticks."""
    least = seconds / TIME_TICKS_MOST
    if least < 1:
        return round_up(least)
    for step in TIME_STEPS_S:
        if step >= least:
            return step
    return round_up(least / 86400) * 86400


def round_up(value: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least `value`, which is above 0."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * (1 - 1e-9))


def value_ticks(most: float, words: "ValueWords", count: int = 4) -> tuple[float, list[Tick]]:
    """(the top of an axis from 0 that holds `most`, its ticks)."""
    step = round_up(most / count) if most > 0 else 1.0
    steps = max(1, math.ceil(most / step - 1e-9))
    top = step * steps
    return top, [Tick(number / steps, words(number * step)) for number in range(steps + 1)]


class ValueWords:
    """How the values of an axis are written: `scale` of them make a unit, which stands after the number."""

    def __init__(self, scale: float = 1.0, unit: str = "") -> None:
        self._scale, self._unit = scale, unit

    def __call__(self, value: float) -> str:
        number = value / self._scale
        if number >= MILLION:
            return f"{number / MILLION:.4g} M{self._unit}"
        return f"{number:,.0f}{self._unit}" if number >= 1000 else f"{number:.4g}{self._unit}"


def _tick_words(seconds: float) -> str:
    return "0" if not seconds else duration(seconds)
