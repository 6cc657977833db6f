"""What a job tells those who watch it: where it stands, what happened, how it ended; it knows none of them.

Clocks may be read here: nothing of this is ever part of an answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from flexref.engine.results import BYTES_BY_LINK, SECONDS_BY_LINK
from flexref.json_types.containers import MapOf
from flexref.json_types.values import Either, Maybe, Number, OneOf, Text, Truth, Whole
from flexref.policy import Policy
from flexref.units import KINDS, LINKS, TIERS

COUNT, SECONDS = Whole(0), Number(0)

COPIES_BY_LINK = MapOf(MapOf(COUNT, KINDS), LINKS)

EVENT_KINDS = ("fault", "retry", "mirror", "replan", "warning", "worker", "pause")

FILE_OF_FAULT = "path"
"""What only events of a disk that fails have among their figures; the engine has logged those."""

ENDINGS = ("done", "paused", "failed")

DETAILS = MapOf(Maybe(Either((Truth(), Number(), Text()))))


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What is known of a job before its first pass.

    `lines`: those that this process is to answer, None for a stream; `lines_before`: of them, those that earlier runs
    have answered. `predicted_s` is for what is left, None where nothing was predicted. `machine` is the name of the
    machine file that predictions came from, `usd_per_hour` its price. `rates`: bytes per second that every link was
    measured or said to have there, None if there was no machine file.
    """

    model: Annotated[str, "The model's name."]
    backend: Annotated[str, "The port that it runs on."]
    policy: Annotated[Policy, "The policy that it runs by."]
    input: Annotated[str, "The file of requests."]
    output: Annotated[str, "The file of answers."]
    lines: Annotated[int | None, COUNT, "Lines that this process is to answer; null for a stream."]
    lines_before: Annotated[int, COUNT, "Of them, those that earlier runs have answered."] = 0
    runs_before: Annotated[int, COUNT, "Earlier runs of the job."] = 0
    predicted_s: Annotated[float | None, SECONDS, "Seconds predicted for what is left; null: no prediction."] = None
    machine: Annotated[str | None, "The machine that predictions came from; null: none is known."] = None
    usd_per_hour: Annotated[float | None, Number(0), "What the machine costs; null if that is not known."] = None
    rates: Annotated[
        Mapping[str, float] | None, MapOf(Number(0), LINKS), "Bytes per second of each link there; null: unknown."
    ] = None


@dataclass(frozen=True, slots=True)
class JobState:
    """Where a job stands after a pass. Seconds, tokens, bytes and passes are those of this run of it.

    `at_s`: since it began; `working_s`: of those, in passes. `lines_done` counts those of earlier runs, too, and those
    that failed. `live_rows` over `places` is the occupancy of the pass. `lane_busy_s`: seconds in which each lane was
    at work. `held_bytes`: by tier, now. Bytes count when a copy begins, its seconds when it has ended; `timed_bytes`
    and `timed_copies` are of the copies whose seconds are in `link_s`.
    """

    at_s: Annotated[float, SECONDS, "Seconds since the run began."]
    working_s: Annotated[float, SECONDS, "Of those, seconds in passes."] = 0.0
    lines_done: Annotated[int, COUNT, "Lines that have an answer or an error, from earlier runs too."] = 0
    lines_failed: Annotated[int, COUNT, "Of those, lines that failed."] = 0
    passes: Annotated[int, COUNT, "Passes over the model."] = 0
    live_rows: Annotated[int, COUNT, "Rows of the latest pass."] = 0
    places: Annotated[int, COUNT, "Rows that might have been in it."] = 0
    prompt_tokens: Annotated[int, COUNT, "Tokens of prompts that were read."] = 0
    generated_tokens: Annotated[int, COUNT, "New tokens of all rows."] = 0
    link_bytes: Annotated[Mapping[str, Mapping[str, int]], BYTES_BY_LINK, "Bytes moved, by link and kind of data."] = (
        field(default_factory=dict)
    )
    spilled_bytes: Annotated[
        int, COUNT, "What the disk has written of what was spilled: whole pages, where it is written directly."
    ] = 0
    link_s: Annotated[
        Mapping[str, Mapping[str, float]], SECONDS_BY_LINK, "Seconds of the copies that have ended, likewise."
    ] = field(default_factory=dict)
    timed_bytes: Annotated[
        Mapping[str, Mapping[str, int]], BYTES_BY_LINK, "Bytes of the copies that have ended, likewise."
    ] = field(default_factory=dict)
    timed_copies: Annotated[
        Mapping[str, Mapping[str, int]], COPIES_BY_LINK, "How many copies have ended, likewise."
    ] = field(default_factory=dict)
    lane_busy_s: Annotated[Mapping[str, float], MapOf(SECONDS), "Seconds in which each lane was at work."] = field(
        default_factory=dict
    )
    held_bytes: Annotated[Mapping[str, int], MapOf(COUNT, TIERS), "Bytes held now, by tier."] = field(
        default_factory=dict
    )
    budget_bytes: Annotated[
        Mapping[str, int | None], MapOf(Maybe(COUNT), TIERS), "What may be held, by tier; null: no bound."
    ] = field(default_factory=dict)
    faults: Annotated[int, COUNT, "Faults so far."] = 0


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened, in one line of words. `kind` is one of `EVENT_KINDS`.

    `details` are figures by name, fit for JSON.
    """

    at_s: Annotated[float, SECONDS, "Seconds since the run began."]
    kind: Annotated[str, OneOf(EVENT_KINDS), "What kind of thing happened."]
    text: Annotated[str, "What happened, in one line."]
    details: Annotated[Mapping[str, Any], DETAILS, "Figures by name."] = field(default_factory=dict)


class Watcher(Protocol):
    """Is told of a job, in the thread that runs it: what it does must take microseconds, or go to another thread.

    Who derives from it says what it does of these four; the others do nothing.
    """

    def begin(self, facts: JobFacts) -> None:
        """The job is about to run its first pass."""
        return

    def passed(self, state: JobState) -> None:
        """A pass has ended. What it raises ends the job in order (`JobPaused`)."""
        return

    def happened(self, event: JobEvent) -> None:
        """Something happened."""
        return

    def end(self, state: JobState, ending: str) -> None:
        """The job ends with one of `ENDINGS`. Called once, whatever happened."""
        return
