"""Runs a batch job on engines of this process: lines in, durable answers out, until none is left or it is to stop."""

import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, Protocol

from flexref.batch_job.answers import LineAnswer
from flexref.batch_job.engines import ENGINE_FAILURES, Engines
from flexref.batch_job.serve import AskedRows, Serving
from flexref.batch_job.stall import Stalled, StallWatch
from flexref.batch_job.states import FILE_OF_FAULT, JobEvent, JobFacts, JobState, Watcher
from flexref.batch_job.stop import Stop
from flexref.batch_job.watching.reader import JobStateReader
from flexref.engine.engine import Engine
from flexref.engine.events import Event
from flexref.engine.generation import GenerationJob
from flexref.errors import JobPaused, described
from flexref.tiers.faults import FaultSeen

LOG = logging.getLogger(__name__)

TOKENS_KEPT_S = 1.0, 30.0
"""The tokens of rows that are under way are written down first after so many seconds, then whenever the run has lasted
twice as long, and in the end this often: what a kill costs of a row that takes hours."""

STATE_NOTED_EVERY_S = 10.0
"""Where the job stands is noted so often, for a report."""

FAULTS = ("fault", "retry", "mirror", "replan")
"""The kinds of events that count as faults."""


class Keeper(Protocol):
    """Keeps answers and whatever else a later run needs (`journal.recorder`)."""

    @property
    def done_lines(self) -> int:
        """Lines that are answered, those of earlier runs too."""

    @property
    def failed_lines(self) -> int:
        """Of those, the ones that failed."""

    def tokens_of(self, number: int) -> Mapping[int, tuple[int, ...]]:
        """The tokens of a line's rows that an earlier run left, by their places in it."""

    def add(self, answer: LineAnswer) -> None:
        """Keep an answer; it is durable a moment later."""

    def keep_tokens(self, number: int, choice: int, tokens: Sequence[int]) -> None:
        """Keep what a row has so far."""

    def note(self, kind: str, values: Mapping[str, Any]) -> None:
        """Keep something for a report."""

    def commit(self) -> None:
        """Return when all that was given is durable."""

    def finish(self) -> None:
        """All lines are answered."""


Foretell = Callable[[JobFacts, GenerationJob, int], JobFacts]
"""Of the facts, the job on the first engine and the lines that its rows came from, the facts with what is predicted."""


def nothing_foretold(facts: JobFacts, job: GenerationJob, lines_seen: int) -> JobFacts:
    """No machine is known."""
    return facts


def log_stall(stalled: Stalled) -> None:
    """Warn of it."""
    LOG.warning("%s", stalled.text)


@dataclass
class BatchJob:
    """A job on this machine: answers of `lines` go to `keeper`, and `watchers` are told of it.

    `on_stall` is called, in another thread, when a lane has made no progress for `stall_s`; None: nobody looks.
    `facts` are known before an engine is; the first policy completes them. `foretell` adds what is predicted.
    """

    engines: Engines
    lines: Iterator[AskedRows | LineAnswer]
    keeper: Keeper
    facts: JobFacts
    watchers: Sequence[Watcher] = ()
    stop: Stop = field(default_factory=Stop)
    foretell: Foretell = nothing_foretold
    stall_s: float | None = None
    on_stall: Callable[[Stalled], None] = log_stall
    _reader: JobStateReader = field(init=False, default_factory=JobStateReader)
    _begun: bool = field(init=False, default=False)
    _faults: int = field(init=False, default=0)
    _next_note_s: float = field(init=False, default=0.0)
    _next_tokens_s: float = field(init=False, default=TOKENS_KEPT_S[0])

    def __post_init__(self) -> None:
        self._serving = Serving(self.lines, self.keeper.tokens_of)

    def run(self) -> None:
        """Answer all lines. Raises `JobPaused` if it is to stop before, and what engines, lines and the keeper raise.

        However it ends, answers that were given are durable, and rows that were under way go on from the tokens that
        they had when the same job is run again.
        """
        with closing(self.running()) as answers:
            for _ in answers:
                pass

    def running(self) -> Generator[LineAnswer, None, None]:
        """`run`, with every answer when the keeper has it. Closed early, the job ends as if it was paused."""
        ending = "failed"
        try:
            with closing(self.answers()) as answers:
                for answer in answers:
                    self.keeper.add(answer)
                    yield answer
            self.keeper.finish()
            ending = "done"
        except GeneratorExit:
            ending = "paused"
            raise
        except JobPaused as pause:
            self.happened("pause", str(pause))
            ending = "paused"
            raise
        finally:
            self._end(ending)

    def answers(self) -> Generator[LineAnswer, None, None]:
        """The answers as lines end, from one engine after another."""
        if self.facts.lines is not None and self.keeper.done_lines >= self.facts.lines:
            return  # an earlier run has answered all
        serving = self._serving
        while True:
            with self.engines.open(self._hear) as engine, self._watched(engine):
                try:
                    yield from self.engines.answers(serving, engine, on_begin=self._begin, on_pass=self._passed)
                    return
                except ENGINE_FAILURES as error:
                    self.happened(*self.engines.recover(serving, engine, error), {"why": described(error)})

    def _watched(self, engine: Engine) -> AbstractContextManager[object]:
        """While an engine is open, its lanes are watched for one that makes no progress."""
        if self.stall_s is None:
            return nullcontext()
        return StallWatch(engine.session, self.stall_s, self.on_stall)

    def _hear(self, event: Event) -> None:
        """What a session tells: faults are the job's, all else is for whoever listens to the engines."""
        if isinstance(event, FaultSeen):
            where = {FILE_OF_FAULT: event.path, "offset": event.offset, "bytes": event.nbytes, "tries": event.tries}
            self.happened(event.kind, event.text, where)
        else:
            self.engines.on_event(event)

    def happened(self, kind: str, text: str, details: Mapping[str, Any] | None = None) -> None:
        """Tell of an event."""
        event = JobEvent(self._reader.now_s, kind, text, details or {})
        self._faults += kind in FAULTS
        self._note("event", asdict(event))
        for watcher in self.watchers:
            watcher.happened(event)

    def _begin(self, engine: Engine, job: GenerationJob) -> None:
        """An engine has a policy, and is about to run its first pass."""
        if not self._begun:
            self.facts = self.foretell(replace(self.facts, policy=job.policy), job, self._serving.lines_seen)
            self._tell_of_begin()

    def _tell_of_begin(self) -> None:
        """The facts are complete: the job is about to run."""
        self._begun = True
        self._note("run", asdict(self.facts))
        for watcher in self.watchers:
            watcher.begin(self.facts)

    def _passed(self, engine: Engine, job: GenerationJob) -> None:
        """A pass has ended."""
        self._tell(self._state(engine))
        self.stop.check()

    def _tell(self, state: JobState) -> None:
        """Tell of where the job stands, and write it down if it is time to."""
        if state.at_s >= self._next_note_s:
            self._next_note_s = state.at_s + STATE_NOTED_EVERY_S
            self._note("state", asdict(state))
        if state.at_s >= self._next_tokens_s:
            self._next_tokens_s = state.at_s + min(state.at_s, TOKENS_KEPT_S[1])
            self._keep_tokens()
        for watcher in self.watchers:
            watcher.passed(state)

    def _state(self, engine: Engine | None = None) -> JobState:
        session, keeper = None if engine is None else engine.session, self.keeper
        return self._reader.read(session, keeper.done_lines, keeper.failed_lines, self._faults)

    def _keep_tokens(self) -> None:
        for number, choice, tokens in self._serving.unfinished:
            self.keeper.keep_tokens(number, choice, tokens)

    def _end(self, ending: str) -> None:
        """Make durable what there is, and tell the watchers, whatever any of it raises."""
        with ExitStack() as stack:
            if self._begun:
                state = self._state()
                for watcher in reversed(self.watchers):  # what is put on a stack last comes first
                    stack.callback(watcher.end, state, ending)
                stack.callback(self.keeper.commit)
                stack.callback(self._note, "end", {"ending": ending})
                stack.callback(self._note, "state", asdict(state))
            if ending != "done":
                stack.callback(self._keep_tokens)

    def _note(self, kind: str, values: Mapping[str, Any]) -> None:
        """Keep a note with the time of the day, which only reports see."""
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        self.keeper.note(kind, {"time": now, **values})
