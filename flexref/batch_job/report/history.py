"""What a job's journal says of its runs: when each began, how it went on, what happened; it knows no file and no page.

Memory is flat: of the states of a long job only every second is kept, or every fourth, and so on. Counters run on, so
that the rates between those that are left stay exact.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import msgspec

from flexref.batch_job.states import JobEvent, JobState
from flexref.errors import BatchError

STATES_MOST = 2000
"""States that are kept of all runs together: more than a page has columns of pixels for."""

EVENTS_MOST = 100
"""Events that are kept from the beginning of a job, and as many from its end."""


@dataclass(frozen=True, slots=True)
class BeginNote:
    """What is known of a run when it begins: `states.JobFacts` as they stand in a journal."""

    model: str
    backend: str
    input: str
    output: str
    policy: dict[str, Any] = field(default_factory=dict)
    lines: int | None = None
    lines_before: int = 0
    runs_before: int = 0
    predicted_s: float | None = None
    machine: str | None = None
    usd_per_hour: float | None = None
    rates: dict[str, float] | None = None


@dataclass(slots=True)
class JobRun:
    """One run of a job: `last_word` is the time of the latest note of it, `ending` None unless it said how it ended."""

    begin: BeginNote
    began: datetime
    last_word: datetime
    kept: list[JobState] = field(default_factory=list)
    seen: int = 0
    last: JobState = field(default_factory=lambda: JobState(0.0))
    ending: str | None = None

    @property
    def states(self) -> list[JobState]:
        """Those that were kept, at even steps, and the last one."""
        return self.kept if not self.seen or self.kept[-1:] == [self.last] else [*self.kept, self.last]

    @property
    def seconds(self) -> float:
        """How long it ran, as far as it is known."""
        return self.last.at_s


@dataclass(frozen=True, slots=True)
class Happening:
    """An event of run number `run`, from 0 on."""

    run: int
    time: datetime
    event: JobEvent


@dataclass(slots=True)
class History:
    """All runs of a job in order, and its events: all counted by kind, the first and the latest kept."""

    runs: list[JobRun] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    first_events: list[Happening] = field(default_factory=list)
    latest_events: deque[Happening] = field(default_factory=lambda: deque(maxlen=EVENTS_MOST))
    peak_bytes: dict[str, int] = field(default_factory=dict)
    keep_every: int = 1

    @property
    def events(self) -> list[Happening]:
        """Those that were kept, in order."""
        return [*self.first_events, *self.latest_events]

    @property
    def events_left_out(self) -> int:
        """How many were not."""
        return sum(self.kinds.values()) - len(self.first_events) - len(self.latest_events)

    def add(self, kind: str, values: Mapping[str, Any]) -> None:
        """The next note of the journal; unknown kinds say nothing. `BatchError` if it is not what its kind must be."""
        try:
            if kind == "run":
                time = _time(values)
                self.runs.append(JobRun(msgspec.convert(values, BeginNote), time, time))
            elif kind == "state" and self.runs:
                self._add_state(values)
            elif kind == "end" and self.runs:
                self.runs[-1].ending, self.runs[-1].last_word = str(values.get("ending")), _time(values)
            elif kind == "event" and self.runs:
                self._add_event(values)
        except (msgspec.ValidationError, ValueError) as error:
            raise BatchError(f"the journal's note of kind {kind!r} is not what this flexref writes: {error}") from error

    def set_price(self, usd_per_hour: float) -> None:
        """Let all runs have this price of an hour."""
        for run in self.runs:
            run.begin = replace(run.begin, usd_per_hour=usd_per_hour)

    def _add_state(self, values: Mapping[str, Any]) -> None:
        run = self.runs[-1]
        run.last, run.last_word = msgspec.convert(values, JobState), _time(values)
        for tier, nbytes in run.last.held_bytes.items():
            self.peak_bytes[tier] = max(nbytes, self.peak_bytes.get(tier, 0))
        run.seen += 1
        if run.seen % self.keep_every == 0:
            run.kept.append(run.last)
            if sum(len(run.kept) for run in self.runs) > STATES_MOST:
                self._thin()

    def _thin(self) -> None:
        """Keep every second of the states that were kept, and of those to come."""
        self.keep_every *= 2
        for run in self.runs:
            run.kept = run.kept[1::2]

    def _add_event(self, values: Mapping[str, Any]) -> None:
        run = self.runs[-1]
        happening = Happening(len(self.runs) - 1, _time(values), msgspec.convert(values, JobEvent))
        run.last_word = happening.time
        self.kinds[happening.event.kind] = self.kinds.get(happening.event.kind, 0) + 1
        kept = self.first_events if len(self.first_events) < EVENTS_MOST else self.latest_events
        kept.append(happening)


def history_of(notes: Iterable[tuple[str, Mapping[str, Any]]]) -> History:
    """The history that (kind, values) of a journal's notes tell, in their order."""
    history = History()
    for kind, values in notes:
        history.add(kind, values)
    return history


def _time(values: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(str(values.get("time", "")).replace("Z", "+00:00"))
