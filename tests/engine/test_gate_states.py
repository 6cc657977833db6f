"""A gate beside a model of it: streams, jobs, ends of every kind, other threads and Ctrl-C; one job inside at most."""

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from flexref.engine import interrupts as interrupts_module
from flexref.engine.gate import Gate
from flexref.engine.interrupts import FORCED, Interrupts
from flexref.errors import EngineError

CLOSED = "the engine is closed: load the model again"
BROKEN = "the engine was broken off in mid-work and cannot go on: load the model again"
AT_WORK = "the engine is at work and runs one job at a time: end the other one first"
NOT_NOW = "the engine cannot be closed while it is at work: let its job end first"
RESULT, END, FAILED, INTERRUPTED = "a result", "the end", "a failure of the job", "interrupted"
PATIENCE_S = 30.0
"""Bounds how long a test waits for what should happen at once."""


@dataclass(frozen=True)
class Step:
    """What a job does between two looks of its caller: Ctrl-C so many times, a look for them, a failure at last."""

    results: int = 0
    presses: int = 0
    looks: bool = False
    fails: bool = False
    probes: bool = False
    """Whether it tries to have the engine a second time."""


@dataclass
class Stream:
    """A job's results, and how far it has come."""

    steps: tuple[Step, ...]
    last_presses: int
    """Ctrl-C while the job tidies up."""
    results: Generator[int, None, None] = field(init=False)
    begun: bool = False
    ended: bool = False
    """For its caller: a job may have ended before."""
    step: int = 0
    pending: int = 0


STEPS = st.builds(
    Step,
    results=st.sampled_from([0, 1, 2, 3, 3]),
    presses=st.sampled_from([0, 0, 0, 0, 0, 1, 2, FORCED]),
    looks=st.booleans(),
    fails=st.sampled_from([False, False, False, False, True]),
    probes=st.booleans(),
)


LAST_PRESSES = st.sampled_from([0, 0, 0, 0, 0, 1, FORCED])


class GateStates(RuleBasedStateMachine):
    """`inside` counts the jobs at work; `owner` is the stream that has the engine while its caller has a result."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(interrupts_module, "FORCED_AFTER_S", 0.0)
        self.before = signal.getsignal(signal.SIGINT)
        self.inside = self.pressed = self.noted = 0
        self.quiet = False
        self.streams: list[Stream] = []
        self.owner: Stream | None = None
        self.renew()

    def renew(self) -> None:
        self.closed = self.broken = False
        self.interrupts = Interrupts()
        self.gate = Gate(self.interrupts, lambda: self.interrupts.forced or self.broken)

    @initialize(notes=st.booleans())
    def begin(self, notes: bool) -> None:
        """Either Python's own handler, which raises, or a user's, which does not."""
        self.raises = not notes
        self.handler: Any = self.note if notes else signal.default_int_handler
        signal.signal(signal.SIGINT, self.handler)

    def note(self, *_: Any) -> None:
        self.noted += 1

    # What jobs do

    def press(self, times: int) -> None:
        if threading.current_thread() is threading.main_thread() and not self.quiet:
            for _ in range(times):
                self.pressed += 1
                signal.raise_signal(signal.SIGINT)

    def run(self, step: Step) -> None:
        assert self.inside == 1, "two jobs are at work"
        if threading.current_thread() is threading.main_thread():
            assert signal.getsignal(signal.SIGINT) != self.handler, "an interrupt would act anywhere"
        if step.probes:
            was, self.broken = self.broken, True  # as it looks while lanes are waited for
            self.probe()
            in_thread(self.probe)
            self.broken = was
        self.press(step.presses)
        if step.looks:
            self.interrupts.check()
        if step.fails:
            raise ZeroDivisionError

    def probe(self) -> None:
        """Whoever asks for the engine while a job is inside is refused."""
        other = self.gate.stream(self.job(Stream((Step(results=1),), 0)))
        for call in (self.gate.check, lambda: next(other), lambda: self.work_once(Step())):
            with pytest.raises(EngineError, match=AT_WORK):
                call()
        with pytest.raises(EngineError, match=NOT_NOW):
            self.gate.close()

    @contextmanager
    def job_inside(self, last_presses: int = 0) -> Generator[None, None, None]:
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
            self.press(last_presses)

    def job(self, stream: Stream) -> Generator[list[int], None, None]:
        with self.job_inside(stream.last_presses):
            for step in stream.steps:
                self.run(step)
                yield list(range(step.results))

    def work_once(self, step: Step) -> None:
        with self.gate.work(), self.job_inside():
            self.run(step)

    # The model

    @property
    def why_not(self) -> str | None:
        """Why no job goes on now."""
        if self.closed:
            return CLOSED
        return BROKEN if self.broken or self.interrupts.forced else None

    def stretch(self, presses: int) -> bool:
        """Whether so many of Ctrl-C while work is held together raise in the end."""
        if self.raises and presses >= FORCED:
            self.forced = True
        return self.raises and presses > 0

    def leave(self, stream: Stream, in_thread: bool, otherwise: str, presses: int | None = None) -> str:
        """The stream ends: its job does, if it had not, in the stretch of `presses` or in one of its own."""
        stream.ended = True
        raised = False
        if self.owner is stream:
            self.owner = None
            raised = self.stretch((presses or 0) + (0 if in_thread else stream.last_presses))
        return INTERRUPTED if raised else otherwise

    def expected(self, stream: Stream, in_thread: bool) -> str:
        """What the next look at the stream brings."""
        while not stream.ended:
            refused = self.why_not
            if refused is None and not stream.begun and self.owner is not None:
                refused = AT_WORK
            if refused is not None:
                return self.leave(stream, in_thread, refused)
            if stream.pending:
                stream.pending -= 1
                return RESULT
            if not stream.begun:
                stream.begun, self.owner = True, stream
            if stream.step == len(stream.steps):
                return self.leave(stream, in_thread, END)
            step = stream.steps[stream.step]
            presses = 0 if in_thread else step.presses
            raised = self.raises and (presses >= FORCED or (presses > 0 and step.looks))
            if step.fails or raised:
                return self.leave(stream, in_thread, FAILED, presses)
            if self.stretch(presses):
                return self.leave(stream, in_thread, INTERRUPTED)
            stream.step, stream.pending = stream.step + 1, step.results
        return END

    def same(self, expected: str, call: Callable[[], object], threaded: bool = False) -> None:
        """The call ends as the model says."""
        found = in_thread(call) if threaded else outcome(call)
        assert found.startswith(expected), f"found {found!r}, expected {expected!r}"

    # What users do

    @rule(
        steps=st.lists(STEPS, max_size=5),
        last_presses=st.sampled_from([0, 0, 0, 0, 0, 1, FORCED]),
        looks=st.integers(0, 3),
    )
    def make_a_stream(self, steps: list[Step], last_presses: int, looks: int) -> None:
        stream = Stream(tuple(steps), last_presses)
        stream.results = self.gate.stream(self.job(stream))
        self.streams.append(stream)
        self.look_at(stream, looks, threaded=False)

    def look_at(self, stream: Stream, times: int, threaded: bool) -> None:
        for _ in range(times):
            self.forced = self.interrupts.forced
            expected = self.expected(stream, threaded)
            self.same(expected, lambda: next(stream.results), threaded)
            assert self.interrupts.forced == self.forced

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), times=st.integers(1, 3), threaded=st.booleans())
    def look(self, data: st.DataObject, times: int, threaded: bool) -> None:
        self.look_at(data.draw(st.sampled_from(self.streams)), times, threaded)

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), how=st.sampled_from(["close", "throw", "drop"]), threaded=st.booleans())
    def leave_a_stream(self, data: st.DataObject, how: str, threaded: bool) -> None:
        number = data.draw(st.integers(0, len(self.streams) - 1))
        stream, self.forced = self.streams.pop(number), self.interrupts.forced
        if how == "throw":
            expected = self.leave(stream, threaded, FAILED)
            self.same(expected, lambda: stream.results.throw(ZeroDivisionError), threaded)
        elif how == "close" or (self.raises and stream.last_presses):  # what a dropped one raises nobody hears
            self.same(self.leave(stream, threaded, RESULT), stream.results.close, threaded)
        else:
            self.leave(stream, False, END)
            del stream.results
        assert self.interrupts.forced == self.forced

    @rule(step=STEPS, threaded=st.booleans())
    def work(self, step: Step, threaded: bool) -> None:
        self.forced = self.interrupts.forced
        expected = self.why_not or (AT_WORK if self.owner is not None else None)
        if expected is None:
            raised = self.stretch(0 if threaded else step.presses)
            expected = INTERRUPTED if raised else FAILED if step.fails else RESULT
        self.same(expected, lambda: self.work_once(step), threaded)
        assert self.interrupts.forced == self.forced

    @precondition(lambda self: self.owner is None and self.why_not is None)
    @rule()
    def ask_while_another_thread_works(self) -> None:
        inside, over = threading.Event(), threading.Event()

        def work() -> None:
            with self.gate.work():
                inside.set()
                assert over.wait(PATIENCE_S)

        thread = threading.Thread(target=work)
        thread.start()
        assert inside.wait(PATIENCE_S)
        try:
            self.probe()
        finally:
            over.set()
            thread.join()

    @precondition(lambda self: self.streams)
    @rule(threaded=st.booleans())
    def close(self, threaded: bool) -> None:
        self.forced, stream = self.interrupts.forced, self.owner
        expected, ends = str(not self.closed), self.owner is not None and not threaded
        presses = stream.last_presses if stream is not None and ends else 0
        broken_off = self.raises and presses >= FORCED
        self.owner = None
        if self.stretch(presses):
            expected = INTERRUPTED
        self.closed = self.closed or not broken_off

        def held_back() -> bool:  # as a session does it
            with self.interrupts:
                return self.gate.close()

        self.same(expected, held_back, threaded)
        assert self.interrupts.forced == self.forced

    @precondition(lambda self: self.streams and self.why_not is None)
    @rule()
    def break_the_engine(self) -> None:
        self.broken = True

    @precondition(lambda self: self.why_not is not None)
    @rule()
    def go_on_with_another_engine(self) -> None:
        self.quiet = True
        for stream in self.streams:
            stream.results.close()
        self.streams.clear()
        self.quiet, self.owner = False, None
        self.renew()

    # What is always so

    @invariant()
    def at_most_one_is_inside(self) -> None:
        assert self.inside == (self.owner is not None)

    @invariant()
    def whether_a_job_could_begin_is_told(self) -> None:
        expected = self.why_not or (AT_WORK if self.owner is not None else RESULT)
        self.same(expected, self.gate.check)

    @invariant()
    def interrupts_act_as_ever_outside(self) -> None:
        assert signal.getsignal(signal.SIGINT) == self.handler
        assert self.raises or self.noted == self.pressed

    def teardown(self) -> None:
        self.go_on_with_another_engine()
        self.quiet = True
        signal.signal(signal.SIGINT, self.before)
        self.patch.undo()
        assert self.inside == 0


def outcome(call: Callable[[], object]) -> str:
    """How a call ended, in a word."""
    try:
        found = call()
    except StopIteration:
        return END
    except ZeroDivisionError:
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except EngineError as error:
        return str(error)
    return str(found) if isinstance(found, bool) else RESULT


def in_thread(call: Callable[[], object]) -> str:
    """`outcome` of a call in another thread."""
    found: list[str | BaseException] = []

    def run() -> None:
        try:
            found.append(outcome(call))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE_S)
    (ended,) = found
    if isinstance(ended, BaseException):
        raise ended
    return ended


def test_a_gate_does_what_its_model_does() -> None:
    run_state_machine_as_test(GateStates)  # type: ignore[no-untyped-call]


class KeepsTheLockOfAFailure(Gate):
    @contextmanager
    def _alone(self) -> Generator[None, None, None]:
        self.check_usable()
        if not self._taken.acquire(blocking=False):
            raise EngineError(AT_WORK)
        yield
        self._stream = None
        self._taken.release()


class ClosesInMidWork(Gate):
    def close(self) -> bool:
        closed, self.closed = self.closed, True
        return not closed


class HoldsNothingBackInAStream(Gate):
    def stream(self, steps: Any) -> Any:
        for results in self._job(steps):
            for result in results:
                self.check_usable()
                yield result


class LeavesItsJobToTheCollector(Gate):
    def stream(self, steps: Any) -> Any:
        self.kept = job = self._job(steps)
        while True:
            with self.interrupts:
                self.check_usable()
                try:
                    results = next(job)
                except StopIteration:
                    return
            yield from results


class LetsTheClosedGoOn(Gate):
    def check_usable(self) -> None:
        if not self._taken.locked():
            super().check_usable()


class LetsEverybodyIn(Gate):
    @contextmanager
    def _alone(self) -> Generator[None, None, None]:
        self.check_usable()
        taken = self._taken.acquire(blocking=False)
        try:
            yield
        finally:
            if taken:
                self._taken.release()


class ForgetsWhatWaits(Interrupts):
    def __exit__(self, *error: Any) -> None:
        self._waiting = 0
        super().__exit__(*error)


class StaysInstalled(Interrupts):
    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            super().__exit__(*error)
        else:
            self._depth -= 1


class ForgetsThatItWasForced(Interrupts):
    def __exit__(self, *error: Any) -> None:
        self.forced = False
        super().__exit__(*error)


GATES = (
    KeepsTheLockOfAFailure,
    ClosesInMidWork,
    HoldsNothingBackInAStream,
    LeavesItsJobToTheCollector,
    LetsTheClosedGoOn,
    LetsEverybodyIn,
)


@pytest.mark.parametrize("wrong", [*GATES, ForgetsWhatWaits, StaysInstalled, ForgetsThatItWasForced])
def test_a_wrong_gate_is_caught(wrong: type, caught: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "Gate" if wrong in GATES else "Interrupts", wrong)
    assert isinstance(caught(GateStates), AssertionError | pytest.fail.Exception)
