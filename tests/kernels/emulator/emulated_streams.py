"""Streams and events of an emulated device: work is done at once, or as late as a device may do it."""

import threading
import time
from collections import deque
from collections.abc import Callable

Work = Callable[[], None]


class Mark:
    """What an event stands for since it was recorded: the work of a stream up to then."""

    def __init__(self, stream: int) -> None:
        self.stream = stream
        self.time: float | None = None

    def happen(self) -> None:
        """All before it is done."""
        self.time = time.perf_counter()


class Streams:
    """Does each stream's work in order: at once, or, if `late`, only when somebody waits for it.

    Late work shows what nobody waits for: copies of results that are not there yet, operands that have changed since.
    Asking whether an event has happened does one piece of work, so that who asks again and again comes to an end.
    """

    def __init__(self, late: bool, lock: threading.RLock) -> None:  # type: ignore[valid-type]
        self._late, self._lock = late, lock
        self._queues: dict[int, deque[Work]] = {}
        self._marks: dict[int, Mark] = {}
        self._handles = 0
        self.alive: set[int] = set()
        """Streams and events that nobody has destroyed."""
        self._working = 0
        self._afterwards: list[Work] = []

    def new(self) -> int:
        """A handle that no other stream or event has."""
        with self._lock:
            self._handles += 1
            self.alive.add(self._handles)
            return self._handles

    def destroy(self, handle: int) -> None:
        """Give a handle back; `KeyError` if nobody has it, `ValueError` for a stream that is still at work."""
        with self._lock:
            if self._queues.get(handle):
                raise ValueError(f"stream {handle} is destroyed before its work is done")
            self.alive.remove(handle)
            self._marks.pop(handle, None)

    def do(self, stream: int, work: Work) -> None:
        """Let a stream do some work; `KeyError` if it was destroyed."""
        with self._lock:
            if stream not in self.alive:
                raise KeyError(f"stream {stream} was destroyed")
            if self._late:
                self._queues.setdefault(stream, deque()).append(work)
            else:
                self._work(work)

    def record(self, event: int, stream: int) -> None:
        """The event stands for all that the stream was given so far."""
        with self._lock:
            mark = self._marks[event] = Mark(stream)
            self.do(stream, mark.happen)

    def let_wait(self, stream: int, event: int) -> None:
        """What the stream is given from now on comes after what the event stands for now."""
        with self._lock:
            mark = self._marks.get(event)
            if mark is not None:
                self.do(stream, lambda: self._until(mark))

    def happened(self, event: int) -> bool:
        """Whether it has; one that was never recorded has, as CUDA sees it."""
        with self._lock:
            mark = self._marks.get(event)
            if mark is not None and mark.time is None:
                self._next(mark.stream)
            return mark is None or mark.time is not None

    def await_event(self, event: int) -> None:
        """Do all that it stands for."""
        with self._lock:
            mark = self._marks.get(event)
            if mark is not None:
                self._until(mark)

    def seconds_between(self, first: int, second: int) -> float:
        """Seconds from one event to another; both have happened."""
        with self._lock:
            start, end = self._marks[first].time, self._marks[second].time
            assert start is not None
            assert end is not None
            return end - start

    def await_stream(self, stream: int) -> None:
        """Do all that the stream was given."""
        with self._lock:
            while self._queues.get(stream):
                self._next(stream)

    def when_idle(self, work: Work) -> None:
        """Do this when every stream has done all; at once, unless some work is under way just now."""
        with self._lock:
            if self._working:
                self._afterwards.append(work)
                return
            for stream in tuple(self._queues):
                self.await_stream(stream)
            work()

    def _until(self, mark: Mark) -> None:
        while mark.time is None:
            self._next(mark.stream)

    def _next(self, stream: int) -> None:
        self._work(self._queues[stream].popleft())

    def _work(self, work: Work) -> None:
        self._working += 1
        try:
            work()
        finally:
            self._working -= 1
        if not self._working:
            waiting, self._afterwards = self._afterwards, []
            for each in waiting:
                self.when_idle(each)
