"""All figures of a report, from a job's history and its answers: pure, no clock, no file, no page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from flexref.batch_job.report.history import Happening, History, JobRun
from flexref.batch_job.report.intervals import TimeStretch, intervals_of
from flexref.batch_job.report.tally import Tally
from flexref.machine.price import SECONDS_PER_HOUR, TOKENS_PER_PRICE
from flexref.units import LINKS, TIERS

SILENT_S = 120.0
"""A job elsewhere that said nothing for longer may be dead: states come every 10 s, if no pass is longer than that."""

DONE, NOT_BEGUN, RUNNING, SILENT, KILLED = "done", "not begun", "running", "silent", "killed"
"""What a job may be, beside `paused` and `failed`, as its latest run says of itself when it ends."""


class CountedLines(NamedTuple):
    """What a journal counts itself: lines to answer, answered, failed, and whether all files are whole.

    `is_alive`: whether the process that wrote to it last still is there; None if nobody knows, on another machine.
    """

    lines: int
    done: int
    failed: int
    finished: bool
    is_alive: bool | None = None


@dataclass(frozen=True, slots=True)
class RunFigures:
    """One run: `number` from 1 on; `ending` None if it did not say; lines and tokens are those of this run."""

    number: int
    began: datetime
    last_word: datetime
    ending: str | None
    seconds: float
    stopped_before_s: float
    lines_done: int
    prompt_tokens: int
    generated_tokens: int
    tokens_per_s: float | None
    predicted_s: float | None
    usd_per_hour: float | None
    faults: int


@dataclass(frozen=True, slots=True)
class LinkFigures:
    """What crossed a link in all runs, the rate while copies ran, and the machine file's; None: not known."""

    link: str
    bytes_by_kind: Mapping[str, int]
    busy_s: float
    bytes_per_s: float | None
    machine_bytes_per_s: float | None


@dataclass(frozen=True, slots=True)
class TierFigures:
    """Bytes that a tier holds at the latest state, the most that was seen, and its budget, None without one."""

    tier: str
    held_bytes: int
    peak_bytes: int
    budget_bytes: int | None


@dataclass(frozen=True, slots=True)
class PredictionFigures:
    """Of the latest run for which something was predicted: what was predicted for all that it had to do, beside it.

    `share_done`: of the lines that were left when it began. `at_this_pace_s` is `measured_s` if it is all done.
    """

    run: int
    predicted_s: float
    measured_s: float
    share_done: float
    at_this_pace_s: float | None
    predicted_tokens_per_s: float | None
    measured_tokens_per_s: float | None


@dataclass(frozen=True, slots=True)
class CostFigures:
    """What all runs cost at their mean price of an hour, and for a million tokens of the output, if there are any."""

    usd_per_hour: float
    hours: float
    usd: float
    usd_per_million_tokens: float | None


@dataclass(frozen=True, slots=True)
class JobFigures:
    """A job: what it is, where it stands, what it did, and how that was over time. `status`: see `NOT_BEGUN`.

    Tokens computed are those of all runs; tokens in the output are those of the answers: what a killed run computed
    and did not write is in the first and not in the second.
    """

    made_at: datetime
    output: str
    status: str
    model: str | None
    backend: str | None
    machine: str | None
    input: str | None
    policy: Mapping[str, Any]
    lines: int | None
    lines_done: int
    lines_failed: int
    seconds_left: float | None
    running_s: float
    prompt_tokens_computed: int
    generated_tokens_computed: int
    prompt_tokens_in_output: int
    generated_tokens_in_output: int
    tokens_per_s: float | None
    occupancy: float | None
    runs: Sequence[RunFigures]
    links: Sequence[LinkFigures]
    tiers: Sequence[TierFigures]
    prediction: PredictionFigures | None
    cost: CostFigures | None
    tally: Tally
    event_kinds: Mapping[str, int]
    events: Sequence[Happening]
    events_left_out: int
    intervals: Sequence[TimeStretch]
    errors: str | None = None


def figures_of(
    history: History, tally: Tally, output: str, now: datetime, counted: CountedLines | None = None
) -> JobFigures:
    """All of it, as it is known at `now`; lines are `counted` by the journal, or by the latest state without."""
    latest = history.runs[-1] if history.runs else None
    intervals = intervals_of(history)
    if counted is None:
        done = max(latest.begin.lines_before, latest.last.lines_done) if latest else 0
        failed = max(tally.failed_lines, latest.last.lines_failed if latest else 0)
        lines, finished, is_alive = (latest.begin.lines if latest else None), False, None
    else:
        lines, done, failed, finished, is_alive = counted
    runs = [_run(number, run, history, done) for number, run in enumerate(history.runs, start=1)]
    running_s = sum(run.seconds for run in runs)
    generated = sum(run.generated_tokens for run in runs)
    status = DONE if finished else status_of(latest, now, is_alive)
    return JobFigures(
        made_at=now,
        output=output,
        status=status,
        model=latest.begin.model if latest else None,
        backend=latest.begin.backend if latest else None,
        machine=latest.begin.machine if latest else None,
        input=latest.begin.input if latest else None,
        policy=latest.begin.policy if latest else {},
        lines=lines,
        lines_done=done,
        lines_failed=failed,
        seconds_left=_left(runs, lines, done) if status == RUNNING else None,
        running_s=running_s,
        prompt_tokens_computed=sum(run.prompt_tokens for run in runs),
        generated_tokens_computed=generated,
        prompt_tokens_in_output=_tokens(tally.prompt_lengths),
        generated_tokens_in_output=_tokens(tally.output_lengths),
        tokens_per_s=_ratio(generated, running_s),
        occupancy=_occupancy(intervals),
        runs=runs,
        links=_links(history),
        tiers=_tiers(history),
        prediction=_prediction(history),
        cost=_cost(runs, _tokens(tally.output_lengths)),
        tally=tally,
        event_kinds=history.kinds,
        events=history.events,
        events_left_out=history.events_left_out,
        intervals=intervals,
    )


def status_of(latest: JobRun | None, now: datetime, is_alive: bool | None = None) -> str:
    """How the latest run ended, or what it may be doing."""
    if latest is None:
        return NOT_BEGUN
    if latest.ending is not None:
        return latest.ending
    if is_alive is not None:
        return RUNNING if is_alive else KILLED
    return SILENT if (now - latest.last_word).total_seconds() > SILENT_S else RUNNING


def _run(number: int, run: JobRun, history: History, done: int) -> RunFigures:
    """Run number `number`; of `done` lines it answered those that the next one, if there is one, found answered."""
    before = history.runs[number - 2] if number > 1 else None
    after = history.runs[number].begin.lines_before if number < len(history.runs) else done
    return RunFigures(
        number=number,
        began=run.began,
        last_word=run.last_word,
        ending=run.ending,
        seconds=run.seconds,
        stopped_before_s=max(0.0, (run.began - before.last_word).total_seconds()) if before else 0.0,
        lines_done=max(0, after - run.begin.lines_before),
        prompt_tokens=run.last.prompt_tokens,
        generated_tokens=run.last.generated_tokens,
        tokens_per_s=_ratio(run.last.generated_tokens, run.seconds),
        predicted_s=run.begin.predicted_s,
        usd_per_hour=run.begin.usd_per_hour,
        faults=run.last.faults,
    )


def _left(runs: Sequence[RunFigures], lines: int | None, lines_done: int) -> float | None:
    """Seconds at the pace of the latest run that has answered anything; as predicted, until one has."""
    for run in reversed(runs):
        if run.lines_done and lines is not None:
            return max(0, lines - lines_done) * run.seconds / run.lines_done
    return runs[-1].predicted_s if runs else None


def _links(history: History) -> list[LinkFigures]:
    found = []
    names = dict.fromkeys([*LINKS, *(link for run in history.runs for link in run.last.link_bytes)])
    for link in names:
        kinds: dict[str, int] = {}
        for run in history.runs:
            for kind, nbytes in run.last.link_bytes.get(link, {}).items():
                kinds[kind] = kinds.get(kind, 0) + nbytes
        busy_s = sum(sum(run.last.link_s.get(link, {}).values()) for run in history.runs)
        rates = history.runs[-1].begin.rates if history.runs else None
        if any(kinds.values()):
            rate = _ratio(sum(kinds.values()), busy_s)
            found.append(LinkFigures(link, kinds, busy_s, rate, (rates or {}).get(link)))
    return found


def _tiers(history: History) -> list[TierFigures]:
    if not history.runs:
        return []
    last = next((run.last for run in reversed(history.runs) if run.states), history.runs[-1].last)
    return [
        TierFigures(tier, last.held_bytes.get(tier, 0), history.peak_bytes[tier], last.budget_bytes.get(tier))
        for tier in dict.fromkeys([*TIERS, *history.peak_bytes])
        if history.peak_bytes.get(tier)
    ]


def _prediction(history: History) -> PredictionFigures | None:
    for number, run in reversed(list(enumerate(history.runs, start=1))):
        predicted_s, lines = run.begin.predicted_s, run.begin.lines
        if predicted_s is None or not run.seconds:
            continue
        left = None if lines is None else lines - run.begin.lines_before
        done = max(0, run.last.lines_done - run.begin.lines_before)
        share = 1.0 if run.ending == DONE else min(1.0, done / left) if left else 0.0
        tokens = run.last.generated_tokens
        return PredictionFigures(
            run=number,
            predicted_s=predicted_s,
            measured_s=run.seconds,
            share_done=share,
            at_this_pace_s=_ratio(run.seconds, share),
            predicted_tokens_per_s=_ratio(tokens / share, predicted_s) if share else None,
            measured_tokens_per_s=_ratio(tokens, run.seconds),
        )
    return None


def _cost(runs: Sequence[RunFigures], tokens: int) -> CostFigures | None:
    """None unless every run's price is known."""
    usd = hours = 0.0
    for run in runs:
        if run.usd_per_hour is None:
            return None
        hours += run.seconds / SECONDS_PER_HOUR
        usd += run.usd_per_hour * run.seconds / SECONDS_PER_HOUR
    return CostFigures(usd / hours, hours, usd, usd / tokens * TOKENS_PER_PRICE if tokens else None) if hours else None


def _occupancy(intervals: Sequence[TimeStretch]) -> float | None:
    known = [(interval.occupancy, interval.seconds) for interval in intervals if interval.occupancy is not None]
    return sum(share * seconds for share, seconds in known) / sum(seconds for _, seconds in known) if known else None


def _tokens(lengths: Mapping[int, int]) -> int:
    return sum(length * lines for length, lines in lengths.items())


def _ratio(value: float, by: float) -> float | None:
    return value / by if by else None
