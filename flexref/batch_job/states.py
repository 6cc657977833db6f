"""What a job tells those who watch it: where it stands, what happened, how it ended; it knows none of them.

Clocks may be read here: nothing of this is ever part of an answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from flexref.policy import Policy


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What is known of a job before its first pass.

    `lines`: those that this process is to answer, None for a stream; `lines_before`: of them, those that earlier runs
    have answered. `predicted_s` is for what is left, None where nothing was predicted. `machine` is the name of the
    machine file that predictions came from, `usd_per_hour` its price. `rates`: bytes per second that every link was
    measured or said to have there, None if there was no machine file.
    """

    model: str
    backend: str
    policy: Policy
    input: str
    output: str
    lines: int | None
    lines_before: int = 0
    runs_before: int = 0
    predicted_s: float | None = None
    machine: str | None = None
    usd_per_hour: float | None = None
    rates: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class JobState:
    """Where a job stands after a pass. Seconds, tokens, bytes and passes are those of this run of it.

    `at_s`: since it began; `working_s`: of those, in passes. `lines_done` counts those of earlier runs, too, and those
    that failed. `live_rows` over `places` is the occupancy of the pass. `lane_busy_s`: seconds in which each lane was
    at work. `held_bytes`: by tier, now.
    """

    at_s: float
    working_s: float = 0.0
    lines_done: int = 0
    lines_failed: int = 0
    passes: int = 0
    live_rows: int = 0
    places: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    link_bytes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    link_s: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    lane_busy_s: Mapping[str, float] = field(default_factory=dict)
    held_bytes: Mapping[str, int] = field(default_factory=dict)
    budget_bytes: Mapping[str, int | None] = field(default_factory=dict)
    faults: int = 0


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened, in one line of words. `kind`: `fault`, `retry`, `mirror`, `replan`, `warning`, `pause`.

    `details` are figures by name, fit for JSON.
    """

    at_s: float
    kind: str
    text: str
    details: Mapping[str, Any] = field(default_factory=dict)


class Watcher(Protocol):
    """Is told of a job, in the thread that runs it: what it does must take microseconds, or go to another thread."""

    def begin(self, facts: JobFacts) -> None:
        """The job is about to run its first pass."""

    def passed(self, state: JobState) -> None:
        """A pass has ended. What it raises ends the job in order (`JobPaused`)."""

    def happened(self, event: JobEvent) -> None:
        """Something happened."""

    def end(self, state: JobState, ending: str) -> None:
        """The job ends: `done`, `paused` or `failed`. Called once, whatever happened."""
