"""One engine's door: lets in one job at a time, and none when the engine is closed; it knows neither job nor engine."""

import inspect
import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from flexref.engine.interrupts import Interrupts
from flexref.errors import EngineError

T = TypeVar("T")


class Gate:
    """Whoever works on the engine has passed the gate; interrupts are held back meanwhile (`Interrupts`)."""

    def __init__(self, interrupts: Interrupts, broken: Callable[[], bool]) -> None:
        """`broken`: whether the engine can do nothing any more."""
        self.interrupts, self._broken = interrupts, broken
        self.closed = False
        self._process = os.getpid()
        self._taken = threading.Lock()
        self._stream: Generator[Any, None, None] | None = None  # a collector that comes to its caller's never meets it
        self._closes_one = threading.RLock()
        self._ending: threading.Thread | None = None

    def check_usable(self) -> None:
        """`EngineError` if the engine can do nothing any more, here; a job that is under way is no obstacle."""
        if self._is_elsewhere():
            raise EngineError(
                f"the engine belongs to process {self._process} and cannot work in one that was forked from it: load "
                "the model here"
            )
        if self.closed:
            raise EngineError("the engine is closed: load the model again")
        if self._is_broken():
            raise EngineError("the engine was broken off in mid-work and cannot go on: load the model again")

    def check(self) -> None:
        """`EngineError` unless a job could begin now; waits for one that is ended elsewhere (`_end`)."""
        self._await_ending()
        self.check_usable()
        if self._taken.locked():
            raise _at_work()

    @contextmanager
    def work(self) -> Iterator[None]:
        """Have the engine alone for a while; `EngineError` if it cannot be had."""
        self._await_ending()
        with self.interrupts, self._alone():
            yield

    def stream(
        self, steps: Generator[Sequence[T], None, None], between: Callable[[], None] = lambda: None
    ) -> Generator[T, None, None]:
        """The results of a job, some with every step; it has the engine alone from its first step to its end.

        While the caller has a result, and in `between`, which is called before every step, the caller's own code runs,
        and interrupts act as they always do.
        """
        job, thread = self._job(steps), threading.current_thread()
        self._await_ending()
        try:
            while True:
                between()
                thread = threading.current_thread()
                with self.interrupts:
                    self.check_usable()
                    try:
                        results = next(job)
                    except StopIteration:
                        return
                    self._stream = job
                for result in results:
                    self.check_usable()
                    yield result
        finally:
            self._end(job, thread)

    def close(self) -> bool:
        """Let nobody in any more, and end the stream that is under way between two of its steps.

        False if that had been done, or in a forked process, which has nothing to close. `EngineError` if a job is at
        work just now: it called this, or another thread did. What the stream ends with is raised once the gate is
        closed.
        """
        if self.closed or self._is_elsewhere():
            return False
        self._await_ending()
        stream = self._suspended
        if stream is not None:
            try:
                self._close(stream)
            except Exception:
                self.closed = not self._taken.locked()
                raise
        if not self._taken.acquire(blocking=False):
            raise EngineError("the engine cannot be closed while it is at work: let its job end first")
        self._taken.release()
        self.closed = True
        return True

    def _job(self, steps: Generator[Sequence[T], None, None]) -> Generator[Sequence[T], None, None]:
        with self._alone():
            yield from steps

    def _end(self, job: Generator[Any, None, None], thread: threading.Thread) -> None:
        """End a job whose stream is left; `thread` worked on it last.

        A stream that was dropped in a circle of references is collected by whatever thread comes to it, which may be a
        lane's own, and a job's end waits for its lanes. So only the main thread and the one that worked on the job
        wait; for any other a new thread does, and who comes to the gate next waits for that one.
        """
        if threading.current_thread() in (thread, threading.main_thread()):
            with self.interrupts:
                self._close(job)
        else:
            self._ending = beside(lambda: self._close(job))

    def _close(self, job: Generator[Any, None, None]) -> None:
        """Close a job, which another thread may be closing."""
        with self._closes_one:
            job.close()

    def _await_ending(self) -> None:
        """Wait for the job that a thread of its own ends, if there is one."""
        ending = self._ending
        if ending is not None and not self._is_elsewhere():
            ending.join()
            self._ending = None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.check_usable()
        if not self._taken.acquire(blocking=False):
            raise _at_work()
        try:
            yield
        finally:
            self._stream = None
            self._taken.release()

    def _is_broken(self) -> bool:
        """Whether the engine can do nothing any more. While a job is at work nobody knows: to another thread one that
        waits for its lanes looks like one that was broken off while it waited.
        """
        return not self._works and self._broken() and not self._works

    @property
    def _works(self) -> bool:
        """Whether a job is at work just now, and not between two of its steps."""
        return self._taken.locked() and self._suspended is None

    @property
    def _suspended(self) -> Generator[Any, None, None] | None:
        """The stream that is under way, if it is between two of its steps."""
        stream = self._stream
        if stream is None or inspect.getgeneratorstate(stream) == inspect.GEN_RUNNING:
            return None
        return stream

    def _is_elsewhere(self) -> bool:
        """Whether this is a forked process: memory was copied, the threads of the lanes were not."""
        return os.getpid() != self._process


def beside(work: Callable[[], object]) -> threading.Thread:
    """A thread that does `work`, and holds up no process that ends; what it raises is told on stderr."""
    thread = threading.Thread(target=work, name="flexref ends what was dropped", daemon=True)
    thread.start()
    return thread


def _at_work() -> EngineError:
    return EngineError(
        "the engine is at work and runs one job at a time: end the other one first (a stream ends when it is read to "
        "its end, closed or dropped)"
    )
