"""The page that shows a job's figures: one HTML file that needs no network and no script; it computes nothing of them.

Charts are drawn by the template as SVG: matplotlib's have a fixed size, so that their words are unreadable on a narrow
page, colours of their own, so that a dark page cannot change them, and words as outlines, which nobody can read aloud;
and a report would need an extra. Names, paths and messages come from strangers: whatever is written is escaped.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from flexref.batch_job.report.charts import OverTime
from flexref.batch_job.report.figures import DONE, KILLED, NOT_BEGUN, RUNNING, SILENT, JobFigures
from flexref.batch_job.report.histogram import histogram, median
from flexref.batch_job.report.history import EVENTS_MOST
from flexref.batch_job.report.intervals import TimeStretch
from flexref.batch_job.report.words import FILTERS, count, duration, figure, money, printable, share
from flexref.errors import how_many
from flexref.units import GIGA, KINDS
from flexref.version import __version__

TEMPLATE = "page.html.jinja"

ROWS_MOST = 60
"""Rows of a long table that are shown, from its beginning and its end."""

STEPS_SHOWN = 24
"""Stretches of time that the table beside the charts has, and one of every run at least."""


class Tile(NamedTuple):
    """A figure at the head of the page, its name above it and a remark under it."""

    name: str
    value: str
    under: str = ""


@dataclass(frozen=True, slots=True)
class Ends:
    """The rows of a table that are shown, and how many between them are not."""

    first: Sequence[Any]
    left_out: int
    last: Sequence[Any]


def page(figures: JobFigures) -> str:
    """The whole HTML file."""
    environment = Environment(
        loader=PackageLoader("flexref.batch_job.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=printable,
    )
    environment.filters.update(FILTERS)
    environment.filters.update({"percent": lambda at: f"{100 * at:.3g}%", "rate": _rate})
    return environment.get_template(TEMPLATE).render(_context(figures))


def in_short(figures: JobFigures) -> str:
    """The state of the job in a line."""
    lines = (
        count(figures.lines_done) if figures.lines is None else f"{count(figures.lines_done)} of {count(figures.lines)}"
    )
    return f"{figures.status}, {lines} lines done, {count(figures.lines_failed)} failed"


def _context(figures: JobFigures) -> dict[str, Any]:
    over_time, tally = OverTime(figures), figures.tally
    return {
        "job": figures,
        "name": PurePath(figures.output).name or figures.output,
        "version": __version__,
        "about_status": _about_status(figures),
        "tiles": _tiles(figures),
        "facts": _facts(figures),
        "policy": json.dumps(figures.policy, indent=1),
        "charts": over_time.charts(),
        "happenings": over_time.happenings(),
        "lanes": list(dict.fromkeys(lane for step in figures.intervals for lane in step.busy)),
        "steps": _ends(_merged(figures.intervals)),
        "histograms": [
            chart
            for chart in (
                histogram("prompt-lengths", "Prompt lengths", tally.prompt_lengths),
                histogram("output-lengths", "Output lengths", tally.output_lengths),
            )
            if chart is not None
        ],
        "lengths": [
            _spread(name, lengths)
            for name, lengths in (("prompt", tally.prompt_lengths), ("output", tally.output_lengths))
            if lengths
        ],
        "finish_reasons": tally.finish_reasons.most_common(),
        "texts_in_all": tally.finish_reasons.total(),
        "failed": sorted(tally.failed.items(), key=lambda named: -named[1].count),
        "kinds": [kind for kind in KINDS if any(link.bytes_by_kind.get(kind) for link in figures.links)],
        "rated": any(link.machine_bytes_per_s for link in figures.links),
        "prediction": figures.prediction,
        "priced_runs": sum(run.usd_per_hour is not None for run in figures.runs),
        "runs": _ends(figures.runs),
        "first_events": EVENTS_MOST,
    }


def _about_status(figures: JobFigures) -> str:
    """The state of the job in a sentence."""
    if not figures.runs:
        return "No run of this job has begun."
    last = figures.runs[-1]
    runs = f" in {count(len(figures.runs))} runs" if len(figures.runs) > 1 else ""
    silent_s = (figures.made_at - last.last_word).total_seconds()
    told = {
        "done": f"All lines are answered{runs}.",
        "paused": f"Paused{runs}; the same command goes on where it stopped.",
        "failed": f"The latest run failed{runs}; the same command goes on where it stopped.",
        RUNNING: f"Running{runs}; the latest word came {duration(silent_s)} before this page was made.",
        KILLED: f"Killed{runs}: its process is gone, and did not say why. The same command goes on where it stopped.",
        SILENT: f"Nothing was heard for {duration(silent_s)}: it was killed, or is in a very long pass. "
        "If it was killed, the same command goes on where it stopped.",
    }
    return told.get(figures.status, figures.status)


def _tiles(figures: JobFigures) -> list[Tile]:
    lines = f"of {count(figures.lines)}" if figures.lines is not None else "of a stream"
    failed = f", {count(figures.lines_failed)} failed" if figures.lines_failed else ""
    tiles = [
        Tile("Lines done", count(figures.lines_done), lines + failed),
        Tile(
            "Generated tokens",
            count(figures.generated_tokens_in_output),
            "in the output" if figures.status == DONE else "in the output so far",
        ),
        Tile("Throughput", figure(figures.tokens_per_s), "generated tokens per second"),
        Tile("Running time", duration(figures.running_s), f"in {how_many(len(figures.runs), 'run')}"),
    ]
    if figures.status == RUNNING:
        measured = any(run.lines_done for run in figures.runs)
        under = "at the pace of the latest run" if measured else "as predicted"
        tiles.append(Tile("Time left", duration(figures.seconds_left), under))
    if figures.occupancy is not None:
        tiles.append(Tile("Occupancy", share(figures.occupancy), "mean share of places taken"))
    if figures.cost is not None:
        each = figures.cost.usd_per_million_tokens
        under = f"{money(each)} per million tokens" if each is not None else f"{figure(figures.cost.hours)} hours"
        tiles.append(Tile("Cost", money(figures.cost.usd), under))
    return tiles if figures.status != NOT_BEGUN else tiles[:1]


def _facts(figures: JobFigures) -> list[tuple[str, str]]:
    named = (
        ("Model", figures.model),
        ("Backend", figures.backend),
        ("Machine file", figures.machine or ("none" if figures.runs else None)),
        ("Input", figures.input),
        ("Output", figures.output),
        ("Failed lines", figures.errors),
        ("Lines", None if figures.lines is None else count(figures.lines)),
        ("Tokens computed", _computed(figures) if figures.runs else None),
    )
    return [(term, value) for term, value in named if value is not None]


def _computed(figures: JobFigures) -> str:
    """What all runs computed, as far as they told of it."""
    return (
        f"{count(figures.generated_tokens_computed)} generated, {count(figures.prompt_tokens_computed)} of prompts, "
        "as far as runs told of them"
    )


def _merged(intervals: Sequence[TimeStretch]) -> list[TimeStretch]:
    """Every so many stretches of one run as one."""
    stride = max(1, -(-len(intervals) // STEPS_SHOWN))
    by_run: dict[int, list[TimeStretch]] = {}
    for step in intervals:
        by_run.setdefault(step.run, []).append(step)
    return [
        TimeStretch.mean(some[first : first + stride])
        for some in by_run.values()
        for first in range(0, len(some), stride)
    ]


def _spread(name: str, lengths: Mapping[int, int]) -> dict[str, Any]:
    lines, tokens = sum(lengths.values()), sum(length * number for length, number in lengths.items())
    return {
        "name": name,
        "lines": lines,
        "least": min(lengths),
        "median": median(lengths),
        "mean": tokens / lines,
        "most": max(lengths),
        "tokens": tokens,
    }


def _ends(rows: Sequence[Any]) -> Ends:
    if len(rows) <= ROWS_MOST:
        return Ends(rows, 0, ())
    half = ROWS_MOST // 2
    return Ends(rows[:half], len(rows) - 2 * half, rows[-half:])


def _rate(bytes_per_s: float | None) -> str:
    """A rate in decimal gigabytes a second, as machine files and plans say it."""
    return figure(None) if bytes_per_s is None else f"{figure(bytes_per_s / GIGA)} GB/s"
