"""Lanes as CUDA streams: copies are queued on the device, host work runs on a thread; tickets tie both together.

A submission of moves alone, after nothing but what the device knows already, is queued by the caller: no thread is
woken. Any other goes to the lane's thread, and so does all that follows it while that thread has work, so that the
lane keeps its order.
"""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import groupby

from flexref.backend.protocol import HostWork, LaneStep, Move, Ticket
from flexref_cupy.driver.cuda import Cuda
from flexref_cupy.events import DeviceTicket, Events, Times
from flexref_cupy.memory import Copying


class ThreadTicket:
    """Work of a lane's thread; a failure, its own or one that it waited for, is raised by `wait`."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._parts: list[Times | DeviceTicket] = []
        self._error: BaseException | None = None

    def finish(self, parts: list[Times | DeviceTicket], error: BaseException | None) -> None:
        """Called once by the lane: what ran, and what it still waits for on the device."""
        self._parts, self._error = parts, error
        self._over.set()

    @property
    def last(self) -> DeviceTicket | None:
        """What the device still owes; known once the thread is done with it."""
        part = self._parts[-1] if self._parts else None
        return part if isinstance(part, DeviceTicket) else None

    def wait_queued(self) -> DeviceTicket | None:
        """Block until the thread is done with it; raises its failure."""
        self._over.wait()
        if self._error is not None:
            raise self._error
        return self.last

    def wait(self) -> None:
        """See `Ticket.wait`."""
        last = self.wait_queued()
        if last is not None:
            last.wait()

    def done(self) -> bool:
        """See `Ticket.done`."""
        return self._over.is_set() and (self.last is None or self.last.done())

    def queued(self) -> bool:
        """Whether the device knows of all that is left of it."""
        return self._over.is_set() and self._error is None

    def times(self) -> Sequence[tuple[float, float]]:
        """See `Ticket.times`."""
        self._over.wait()
        return [time for part in self._parts for time in (part.times() if isinstance(part, DeviceTicket) else part)]


class Lane:
    """One stream, and a thread for what the device cannot do; the thread starts with its first work."""

    def __init__(self, name: str, events: Events, copying: Copying) -> None:
        self._cuda, self._events, self._copying = events.cuda, events, copying
        self._stream = self._cuda.stream()
        self._jobs: queue.SimpleQueue[tuple[Sequence[LaneStep], Sequence[Ticket], ThreadTicket] | None] = (
            queue.SimpleQueue()
        )
        self.name = name
        self._thread = threading.Thread(target=self._run, name=f"flexref lane {name}", daemon=True)
        self._started = self._closed = False
        self._newest: ThreadTicket | None = None
        self.queued: DeviceTicket | None = None
        """The last of what the device was given to do."""

    def submit(self, steps: Sequence[LaneStep], after: Sequence[Ticket]) -> DeviceTicket | ThreadTicket:
        """Queue the steps; they start when `after` is done. `RuntimeError` once the lane is closed."""
        if self._closed:
            raise RuntimeError(f"lane {self.name} is closed")
        free = self._newest is None or self._newest._over.is_set()
        if free and all(isinstance(step, Move) for step in steps) and all(map(_is_queued, after)):
            return self._queue(steps, after)  # type: ignore[arg-type]
        if not self._started:
            self._thread.start()
            self._started = True
        self._newest = ticket = ThreadTicket()
        self._jobs.put((steps, after, ticket))
        return ticket

    @property
    def is_here(self) -> bool:
        """Whether the thread that asks is the lane's."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Finish what is queued, and end the thread and the stream; closing again does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._started:
            self._jobs.put(None)
            self._thread.join()
        self._cuda.await_stream(self._stream)
        self.queued = None
        self._cuda.destroy_stream(self._stream)

    def _queue(self, moves: Sequence[Move], after: Sequence[Ticket]) -> DeviceTicket:
        """Queue moves on the device, after `after`, which it knows.

        What fails is over: memory may be given back then that the moves before it were writing to.
        """
        for earlier in after:
            wait_on_device(self._cuda, self._stream, earlier)
        start, end = self._events.take(), self._events.take()
        try:
            self._cuda.record(start, self._stream)
            for move in moves:
                self._copying.move(move, self._stream)
            self._cuda.record(end, self._stream)
        except BaseException:
            self._cuda.await_stream(self._stream)
            raise
        self.queued = ticket = DeviceTicket(self._events, start, end, [move.nbytes for move in moves])
        return ticket

    def _run(self) -> None:
        self._cuda.join_thread()
        self._copying.beside()
        for steps, after, ticket in iter(self._jobs.get, None):
            self._work(steps, after, ticket)
            del steps, after, ticket  # a lane that waits for work holds no buffer that its last work copied

    def _work(self, steps: Sequence[LaneStep], after: Sequence[Ticket], ticket: ThreadTicket) -> None:
        parts: list[Times | DeviceTicket] = []
        try:
            waits = after
            if not steps or isinstance(steps[0], HostWork):
                for earlier in after:
                    earlier.wait()
                self._cuda.await_stream(self._stream)  # moves that callers queued come before it on this lane
                waits = ()
            for is_work, some in _alternating(steps):
                if not is_work:
                    parts.append(self._queue(some, waits))  # type: ignore[arg-type]
                    waits = ()
                    continue
                if parts and isinstance(parts[-1], DeviceTicket):
                    parts[-1].wait()  # the host sees what the moves before it brought
                parts.append([_timed(work) for work in some])  # type: ignore[arg-type]
        except BaseException as error:  # whatever it is belongs to the thread that waits for the ticket
            ticket.finish(parts, error)
        else:
            ticket.finish(parts, None)


def wait_on_device(cuda: Cuda, stream: int, ticket: Ticket) -> None:
    """Let a stream wait for a ticket that the device knows (see `_is_queued`), without the host; raises its failure."""
    if isinstance(ticket, ThreadTicket):
        last = ticket.wait_queued()
        if last is None:
            return
        ticket = last
    if isinstance(ticket, DeviceTicket):
        cuda.let_wait(stream, ticket.end)
    else:
        ticket.wait()


def _is_queued(ticket: Ticket) -> bool:
    return isinstance(ticket, DeviceTicket | ThreadTicket) and ticket.queued()


def _alternating(steps: Sequence[LaneStep]) -> Iterator[tuple[bool, list[LaneStep]]]:
    """Neighbouring steps of one sort together: whether they are host work, and they."""
    for is_work, some in groupby(steps, key=lambda step: isinstance(step, HostWork)):
        yield is_work, list(some)


def _timed(work: HostWork) -> tuple[float, float]:
    start = time.perf_counter()
    work.call()
    return start, time.perf_counter()
