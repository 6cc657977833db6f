"""A history cut into stretches of time, each with its rates, as charts show them; it knows no chart."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flexref.batch_job.report.history import History, JobRun
from flexref.batch_job.states import JobState

INTERVALS_MOST = 240
"""Stretches of all runs together: each is some pixels wide on the widest page."""


@dataclass(frozen=True, slots=True)
class TimeStretch:
    """A stretch of run number `run`, from 0 on, and its rates; `from_s` is since that run began.

    `occupancy` is the mean of the passes that are known in it, None if none is. `busy`: by lane, the share of the time
    in which it was at work. `lines_done` is at its end.
    """

    run: int
    from_s: float
    seconds: float
    lines_done: int
    generated_per_s: float
    prompt_per_s: float
    occupancy: float | None = None
    busy: Mapping[str, float] = field(default_factory=dict)
    link_bytes_per_s: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def mean(cls, some: Sequence["TimeStretch"]) -> "TimeStretch":
        """Neighbours of one run as one: counters run on, so that the mean of their rates by time is exact."""
        seconds = sum(step.seconds for step in some)
        known = [step for step in some if step.occupancy is not None]
        known_s = sum(step.seconds for step in known)

        def of(values: Iterable[float]) -> float:
            return sum(value * step.seconds for value, step in zip(values, some, strict=True)) / seconds

        lanes, links = some[-1].busy, some[-1].link_bytes_per_s
        return cls(
            run=some[0].run,
            from_s=some[0].from_s,
            seconds=seconds,
            lines_done=some[-1].lines_done,
            generated_per_s=of(step.generated_per_s for step in some),
            prompt_per_s=of(step.prompt_per_s for step in some),
            occupancy=sum((step.occupancy or 0.0) * step.seconds for step in known) / known_s if known_s else None,
            busy={lane: of(step.busy.get(lane, 0.0) for step in some) for lane in lanes},
            link_bytes_per_s={link: of(step.link_bytes_per_s.get(link, 0.0) for step in some) for link in links},
        )


def intervals_of(history: History, most: int = INTERVALS_MOST) -> list[TimeStretch]:
    """The stretches of all runs in order: about `most`, and at least one of every run that has a state."""
    states = sum(len(run.states) for run in history.runs)
    stride = max(1, -(-states // most))
    return [interval for number, run in enumerate(history.runs) for interval in _of_run(number, run, stride)]


def _of_run(number: int, run: JobRun, stride: int) -> Iterator[TimeStretch]:
    before = JobState(0.0, lines_done=run.begin.lines_before)
    for first in range(0, len(run.states), stride):
        some = run.states[first : first + stride]
        if some[-1].at_s > before.at_s:
            yield _between(number, before, some)
            before = some[-1]


def _between(run: int, before: JobState, states: Sequence[JobState]) -> TimeStretch:
    last = states[-1]
    seconds = last.at_s - before.at_s
    shares = [state.live_rows / state.places for state in states if state.places]
    lanes = {lane: busy_s - before.lane_busy_s.get(lane, 0.0) for lane, busy_s in last.lane_busy_s.items()}
    moved = {link: link_bytes(last, link) - link_bytes(before, link) for link in last.link_bytes}
    return TimeStretch(
        run=run,
        from_s=before.at_s,
        seconds=seconds,
        lines_done=last.lines_done,
        generated_per_s=(last.generated_tokens - before.generated_tokens) / seconds,
        prompt_per_s=(last.prompt_tokens - before.prompt_tokens) / seconds,
        occupancy=sum(shares) / len(shares) if shares else None,
        busy={lane: min(1.0, max(0.0, busy_s / seconds)) for lane, busy_s in lanes.items()},
        link_bytes_per_s={link: nbytes / seconds for link, nbytes in moved.items()},
    )


def link_bytes(state: JobState, link: str) -> int:
    """Bytes of all kinds that crossed a link."""
    return sum(state.link_bytes.get(link, {}).values())
