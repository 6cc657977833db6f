"""Notes of made-up jobs, as a journal holds them; it opens no journal."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from flexref.batch_job.report.figures import JobFigures, figures_of
from flexref.batch_job.report.history import history_of
from flexref.batch_job.report.tally import Tally

BEGAN = datetime(2026, 11, 26, 8, 0, tzinfo=timezone.utc)

Note = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class MadeRun:
    """A run of so many states, one every 10 s; `ending` None: it was killed."""

    states: int
    stopped_s: float = 0.0
    ending: str | None = None
    events: tuple[tuple[str, str], ...] = ()
    """(kind, text), one after each of the first states."""


FACTS: Mapping[str, Any] = {
    "model": "opt-30b.h5",
    "backend": "numpy",
    "policy": {"rows_per_group": 4},
    "input": "in.jsonl",
    "output": "out.jsonl",
    "machine": "made-up",
    "usd_per_hour": 3.6,
    "rates": {"host->device": 4e9},
}

LINES_PER_STATE, TOKENS_PER_STATE, PROMPT_PER_STATE = 5, 200, 700


def state(number: int, lines_before: int, time: datetime) -> dict[str, Any]:
    """State `number` of a run, from 1 on: it does the same in every 10 s."""
    return {
        "at_s": 10.0 * number,
        "working_s": 9.0 * number,
        "lines_done": lines_before + LINES_PER_STATE * number,
        "lines_failed": 0,
        "passes": number,
        "live_rows": 6 if number % 2 else 8,
        "places": 8,
        "prompt_tokens": PROMPT_PER_STATE * number,
        "generated_tokens": TOKENS_PER_STATE * number,
        "link_bytes": {"host->device": {"weights": 20 * 10**9 * number, "cache": 10**9 * number}, "host->disk": {}},
        "link_s": {"host->device": {"weights": 6.0 * number, "cache": 1.0 * number}},
        "lane_busy_s": {"weights in": 6.0 * number, "compute": 2.5 * number},
        "held_bytes": {"device": 1 << 30 if number == 1 else 1 << 29, "host": 1 << 20},
        "budget_bytes": {"device": 1 << 31, "host": None},
        "faults": 0,
        "time": time.isoformat(),
    }


def notes(runs: Sequence[MadeRun], lines: int = 1000, **facts: Any) -> Iterator[Note]:
    """The notes of a job of these runs."""
    time, before = BEGAN, 0
    for number, run in enumerate(runs):
        time += timedelta(seconds=run.stopped_s)
        begin = {**FACTS, "lines": lines, "lines_before": before, "runs_before": number, **facts}
        yield "run", {**begin, "time": time.isoformat()}
        began, last = time, state(0, before, time)
        for at in range(1, run.states + 1):
            time = began + timedelta(seconds=10 * at)
            last = state(at, before, time)
            yield "state", last
            if at <= len(run.events):
                kind, text = run.events[at - 1]
                event = {"at_s": 10.0 * at, "kind": kind, "text": text, "details": {"tries": 3}}
                yield "event", {**event, "time": last["time"]}
        before = last["lines_done"]
        if run.ending is not None:
            yield "state", last
            yield "end", {"ending": run.ending, "time": time.isoformat()}


def figures(runs: list[MadeRun], later_s: float = 0.0, tally: Tally | None = None, **facts: object) -> JobFigures:
    """Of a job of these runs, `later_s` after its last word."""
    history = history_of(notes(runs, **facts))
    now = (history.runs[-1].last_word if history.runs else BEGAN) + timedelta(seconds=later_s)
    return figures_of(history, tally or Tally(), "out.jsonl", now)
