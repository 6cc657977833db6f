"""Charts of a report as shapes for SVG: paths, bars, ticks and words; it knows no page and no colour.

A chart is 1000 wide and 100 high, and is stretched to whatever room there is; words stand beside it, in HTML, so that
they have the size of all other words on a narrow page and on a wide one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from flexref.batch_job.report.axes import StopBand, Tick, TimeAxis, ValueWords, value_ticks
from flexref.batch_job.report.figures import RUNNING, JobFigures, RunFigures
from flexref.batch_job.report.intervals import TimeStretch
from flexref.batch_job.report.words import count, duration, figure, share
from flexref.units import GIGA

WIDTH, HEIGHT = 1000, 100

SHADES = 6
"""Kinds of lines that are told apart, by colour and by their dashes; further ones begin again."""

SHADE_OF_ENDING = MappingProxyType({"done": 3, "paused": 1, "goes on": 1})
"""The kinds of bars of runs that ended in order, or go on."""

ENDINGS_TOLD = "green: done; blue: paused, or goes on; orange: failed, or killed"


@dataclass(frozen=True, slots=True)
class ChartLine:
    """One line of a chart: its name, what it is at the end or over all, its kind, and its path."""

    name: str
    about: str
    shade: int
    path: str


@dataclass(frozen=True, slots=True)
class ChartBar:
    """A bar of a chart, and its words; it stands on `base`."""

    at: float
    width: float
    height: float
    words: str
    shade: int = 1
    base: float = 0.0


@dataclass(frozen=True, slots=True)
class Chart:
    """All that is drawn of some figures. `about` says in a sentence what is seen."""

    key: str
    title: str
    unit: str
    about: str
    across: Sequence[Tick]
    up: Sequence[Tick]
    curves: Sequence[ChartLine] = ()
    bars: Sequence[ChartBar] = ()
    stops: Sequence[StopBand] = ()
    rows: int = 0
    under: str = "running time"


Value = Callable[[TimeStretch], float | None]


class OverTime:
    """Draws what intervals hold on the time of their job."""

    def __init__(self, figures: JobFigures) -> None:
        self._figures = figures
        self._axis = TimeAxis(figures.runs)

    def charts(self) -> list[Chart]:
        """All charts over time that there is something to draw of."""
        return [chart for chart in self._all() if chart.curves or chart.bars]

    def _all(self) -> list[Chart]:
        figures = self._figures
        lanes = list(dict.fromkeys(lane for interval in figures.intervals for lane in interval.busy))
        crossed = {link.link: link for link in figures.links}
        rates: dict[str, Value] = {"measured": lambda step: step.generated_per_s}
        means = {"measured": f"mean {figure(figures.tokens_per_s)} tokens/s"}
        predicted = figures.prediction
        if predicted is not None and predicted.predicted_tokens_per_s is not None:
            rates["predicted"] = _level_of(predicted.run - 1, predicted.predicted_tokens_per_s)
            means["predicted"] = f"{figure(predicted.predicted_tokens_per_s)} tokens/s"
        prompts = figure(figures.prompt_tokens_computed / (figures.running_s or 1))
        return [
            self._steps("throughput", "Throughput", "generated tokens per second", rates, means),
            self._lines_done(),
            self._steps(
                "prompts",
                "Prompts read",
                "prompt tokens per second",
                {"measured": lambda step: step.prompt_per_s},
                {"measured": f"mean {prompts} tokens/s"},
            ),
            self._steps(
                "occupancy",
                "Occupancy",
                "places of a pass that rows took",
                {"places taken": lambda step: step.occupancy},
                {"places taken": f"mean {share(figures.occupancy)}"},
                whole=True,
            ),
            self._steps(
                "lanes",
                "Busy share of each lane",
                "of the running time",
                {_words(lane): _busy(lane) for lane in lanes},
                {_words(lane): f"mean {share(self._mean(_busy(lane)))}" for lane in lanes},
                whole=True,
            ),
            self._steps(
                "links",
                "Bytes over each link",
                "GB per second",
                {link: _moved(link) for link in crossed},
                {link: f"mean {figure((self._mean(_moved(link)) or 0) / GIGA)} GB/s" for link in crossed},
                scale=GIGA,
            ),
        ]

    def _steps(
        self,
        key: str,
        title: str,
        unit: str,
        series: Mapping[str, Value],
        words: Mapping[str, str],
        *,
        scale: float = 1.0,
        whole: bool = False,
    ) -> Chart:
        """Curves that are level within every interval; `whole`: of shares, up to 100 %."""
        values = [value(step) or 0.0 for value in series.values() for step in self._figures.intervals]
        most = 1.0 if whole else max(values, default=0.0)
        top, up = value_ticks(most, ValueWords(0.01, " %") if whole else ValueWords(scale))
        curves = [
            ChartLine(name, words[name], number % SHADES + 1, self._level(value, top))
            for number, (name, value) in enumerate(series.items())
            if any(value(step) is not None for step in self._figures.intervals)
        ]
        about = f"{title}, {unit}. " + " ".join(f"{name}: {words[name]}." for name in series)
        return Chart(key, title, unit, about, self._axis.ticks(), up, curves, stops=self._axis.stops)

    def _level(self, value: Value, top: float) -> str:
        parts: list[str] = []
        end = -1.0
        for step in self._figures.intervals:
            level = value(step)
            if level is None:
                continue
            begin = self._axis.at(step.run, step.from_s)
            joined = step.from_s > 0 and abs(begin - end) < 1e-9
            parts.append(f"V{_y(level / top)}" if joined else f"M{_x(begin)} {_y(level / top)}")
            end = self._axis.at(step.run, step.from_s + step.seconds)
            parts.append(f"H{_x(end)}")
        return "".join(parts)

    def _lines_done(self) -> Chart:
        figures = self._figures
        most = max(figures.lines or 0, figures.lines_done, 1)
        top, up = value_ticks(most, ValueWords())
        parts = []
        for number, step in enumerate(figures.intervals):
            if step.from_s == 0:
                before = figures.intervals[number - 1].lines_done if number else step.lines_done
                first = min(before, step.lines_done) if number else 0
                parts.append(f"M{_x(self._axis.at(step.run, 0))} {_y(first / top)}")
            at = self._axis.at(step.run, step.from_s + step.seconds)
            parts.append(f"L{_x(at)} {_y(step.lines_done / top)}")
        words = f"{count(figures.lines_done)} of {count(figures.lines)}" if figures.lines else count(figures.lines_done)
        curves = [ChartLine("lines done", words, 1, "".join(parts))] if parts else []
        about = f"Lines done over the running time: {words}."
        return Chart("lines", "Lines done", "", about, self._axis.ticks(), up, curves, stops=self._axis.stops)

    def _mean(self, value: Value) -> float | None:
        known = [(value(step), step.seconds) for step in self._figures.intervals]
        seconds = sum(length for level, length in known if level is not None)
        return sum((level or 0.0) * length for level, length in known) / seconds if seconds else None

    def happenings(self) -> Chart | None:
        """When the job ran, and what happened in it, a row for every kind of event; None if it never ran."""
        figures = self._figures
        if not figures.running_s:
            return None
        kinds = list(figures.event_kinds)
        rows = len(kinds) + 1
        base = 1 - 0.8 / rows
        bars = [
            ChartBar(
                self._axis.at(number, 0), self._length(number), 0.6 / rows, f"run {run.number}: {words}", shade, base
            )
            for number, run in enumerate(figures.runs)
            for words, shade in [self._ending(run)]
        ]
        curves = [
            ChartLine(kind, count(figures.event_kinds[kind]), row % SHADES + 1, self._marks(kind, row, rows))
            for row, kind in enumerate(kinds, start=1)
        ]
        names = ["runs", *kinds]
        up = [Tick(1 - (row + 0.5) / rows, name) for row, name in enumerate(names)]
        told = ", ".join(f"{count(number)} of kind {kind}" for kind, number in figures.event_kinds.items())
        about = f"{count(len(figures.runs))} runs; events: {told or 'none'}."
        return Chart(
            "events",
            "Runs and events",
            ENDINGS_TOLD,
            about,
            self._axis.ticks(),
            up,
            curves,
            bars,
            self._axis.stops,
            rows=rows,
        )

    def _ending(self, run: RunFigures) -> tuple[str, int]:
        """How a run ended in words, and the kind of its bar: one that catches the eye if it was not in order."""
        ending = run.ending
        if ending is None and self._figures.status == RUNNING and run.number == len(self._figures.runs):
            ending = "goes on"
        return f"{duration(run.seconds)}, {ending or 'did not say how it ended'}", SHADE_OF_ENDING.get(ending or "", 2)

    def _length(self, run: int) -> float:
        return self._axis.at(run, self._figures.runs[run].seconds) - self._axis.at(run, 0)

    def _marks(self, kind: str, row: int, rows: int) -> str:
        top, bottom = _y(1 - (row + 0.2) / rows), _y(1 - (row + 0.8) / rows)
        found = [happening for happening in self._figures.events if happening.event.kind == kind]
        return "".join(f"M{_x(self._axis.at(one.run, one.event.at_s))} {top}V{bottom}" for one in found)


def _level_of(run: int, level: float) -> Value:
    return lambda step: level if step.run == run else None


def _words(name: str) -> str:
    """A lane's name as people write it."""
    return name.replace("_", " ")


def _busy(lane: str) -> Value:
    return lambda step: step.busy.get(lane)


def _moved(link: str) -> Value:
    return lambda step: step.link_bytes_per_s.get(link)


def _x(at: float) -> str:
    return f"{WIDTH * at:.1f}"


def _y(at: float) -> str:
    return f"{HEIGHT * (1 - at):.2f}"
