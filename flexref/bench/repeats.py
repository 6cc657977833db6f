"""How often a benchmark runs, and how sure the mean of its runs is, by Student's t; it runs nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Annotated

from flexref.json_types.values import Number, Truth, Whole

AUTO = "auto"
"""As often as it takes for the interval to be narrow enough, in place of a number of runs."""

CONFIDENCE = 0.95
"""Every interval here holds the true mean in so many of all benchmarks."""

NARROW = 0.02
"""An interval is narrow enough if from its one end to the other it is at most so much of the mean: one percent more or
less."""

LEAST_RUNS = 5
"""With fewer runs than these, chance makes an interval narrow too often."""

MOST_RUNS, MOST_S = 50, 600.0
"""Runs and their seconds, after which no further run begins however wide the interval is."""


@dataclass(frozen=True, slots=True)
class MeanInterval:
    """Between what the mean of tokens/s lies with `confidence`; see `interval_of`."""

    runs: Annotated[int, Whole(2), "Runs whose mean it is."]
    mean: Annotated[float, Number(0), "Mean of the runs' tokens_per_s."]
    least: Annotated[float, "The lower end."]
    most: Annotated[float, Number(0), "The upper end."]
    confidence: Annotated[float, Number(0, 1), "How sure it is that the true mean lies between them."]
    relative_width: Annotated[float, Number(0), "From end to end, as a share of the mean."]
    wanted_width: Annotated[float, Number(0), "What that may be to be narrow enough."]
    narrow_enough: Annotated[bool, Truth(), "Whether it is."]


def interval_of(samples: Sequence[float]) -> MeanInterval | None:
    """The interval of the mean of `samples`, all above 0 and taken as independent; None for fewer than two."""
    runs = len(samples)
    if runs < 2:
        return None
    from scipy.special import stdtrit  # noqa: PLC0415  half a second, for who repeats runs alone

    mean = fmean(samples)
    half = float(stdtrit(runs - 1, (1 + CONFIDENCE) / 2)) * stdev(samples) / sqrt(runs)
    width = 2 * half / mean
    return MeanInterval(runs, mean, mean - half, mean + half, CONFIDENCE, width, NARROW, width <= NARROW)


def most_runs(repeat: int | str) -> int:
    """The most runs that there may be."""
    return MOST_RUNS if isinstance(repeat, str) else repeat


def runs_in_words(repeat: int | str) -> str:
    """How many runs are to be, after `of`."""
    return f"at most {MOST_RUNS}" if isinstance(repeat, str) else str(repeat)


def enough(repeat: int | str, samples: Sequence[float], seconds: float) -> bool:
    """Whether no further run is due after runs of `samples` tokens/s, which took `seconds` together."""
    if len(samples) >= most_runs(repeat):
        return True
    if not isinstance(repeat, str) or len(samples) < LEAST_RUNS:
        return isinstance(repeat, str) and seconds > MOST_S
    found = interval_of(samples)
    return seconds > MOST_S or (found is not None and found.narrow_enough)
