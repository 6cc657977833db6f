"""Lanes as threads, for ports of any device: a lane gives its moves to a stream, and does the host's work itself.

A port whose copies are made by the host, in the lane's thread, has `HostStream`s; `device_streams` has those of a
device with queues and events. It knows no device and no operator.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from flexref.backend.copies import copies_of
from flexref.backend.protocol import LANES, HostWork, Lane, LaneStep, Move, Ticket


class StreamEvent(Protocol):
    """A place in a stream: reached when all before it is done."""

    def wait(self) -> None:
        """Block the host until it is reached."""

    def done(self) -> bool:
        """Whether it has been reached."""

    def time(self) -> float:
        """Once reached, when that was, in seconds of `time.perf_counter`."""


Event = TypeVar("Event", bound=StreamEvent)


class Stream(Protocol[Event]):
    """What a device, or the thread that calls, does one after the other."""

    def active(self) -> AbstractContextManager[Any]:
        """A context for the lane's thread: what it does to the device goes to this stream."""

    def mark(self) -> Event:
        """An event after all that the stream was given so far."""

    def follow(self, event: Event, /) -> None:
        """What the stream is given from now on starts when `event`, of any stream of the port, is reached."""

    def join(self) -> None:
        """Block the host until all that the stream was given is done."""


class HostEvent:
    """What the host does itself is done when its call returns."""

    def __init__(self) -> None:
        self._now = time.perf_counter()

    def wait(self) -> None:
        """It has been reached."""

    def done(self) -> bool:
        """It has been reached."""
        return True

    def time(self) -> float:
        """When it was made."""
        return self._now


class HostStream:
    """A stream of calls that are done when they return, in whatever thread."""

    def active(self) -> AbstractContextManager[Any]:
        """Nothing is to be said."""
        return nullcontext()

    def mark(self) -> HostEvent:
        """An event that is reached."""
        return HostEvent()

    def follow(self, event: HostEvent, /) -> None:
        """Events of the host have been reached."""

    def join(self) -> None:
        """All is done."""


class StreamTicket(Generic[Event]):
    """The steps of one submission, or a mark; a failure, its own or of what it comes after, is raised by `wait`."""

    def __init__(self, mark: Event | None = None) -> None:
        """With `mark`: a ticket that is done when this event is reached."""
        self._given = threading.Event()
        self._error: BaseException | None = None
        self._times: list[tuple[Event, Event]] = []
        self._last: Any = mark
        if mark is not None:
            self._times = [(mark, mark)]
            self._given.set()

    def give(
        self,
        stream: Stream[Event],
        steps: Sequence[LaneStep],
        after: Sequence[Ticket],
        move: Callable[[Move, Stream[Event]], None],
    ) -> None:
        """Called once by the lane: give every step to the stream; the host's work waits for all that is before it."""
        try:
            with stream.active():
                for earlier in after:
                    assert isinstance(earlier, StreamTicket)
                    stream.follow(earlier.event())
                for step in steps:
                    if isinstance(step, HostWork):
                        stream.join()
                    start = stream.mark()
                    if isinstance(step, HostWork):
                        step.call()
                    else:
                        move(step, stream)
                    self._times.append((start, stream.mark()))
                self._last = stream.mark()
        except BaseException as error:  # whatever it is belongs to the thread that waits for the ticket
            self._error = error
            try:
                stream.join()  # what failed is over: memory may be given back that earlier steps were writing to
            except BaseException as later:
                self._error = later  # it tells of the first one as its context
        self._given.set()

    def event(self) -> Event:
        """What is reached when the steps are done: the host waits until the stream was given all of them.

        Raises what a step raised.
        """
        self._given.wait()
        if self._error is not None:
            raise self._error
        found: Event = self._last
        return found

    def wait(self) -> None:
        """See `Ticket.wait`."""
        self.event().wait()

    def done(self) -> bool:
        """See `Ticket.done`."""
        return self._given.is_set() and (self._error is not None or self._last.done())

    def times(self) -> Sequence[tuple[float, float]]:
        """See `Ticket.times`."""
        self._given.wait()
        return [(start.time(), end.time()) for start, end in self._times]


class LaneThread(Generic[Event]):
    """One thread that gives submissions to its stream in order; it starts with its first one. Any thread may submit."""

    def __init__(self, name: str, stream: Stream[Event], move: Callable[[Move, Stream[Event]], None]) -> None:
        """`move` gives a move to a stream, and may return before it is done; what the host alone does in it comes after
        `stream.join()`."""
        self.name = name
        self._stream, self._move = stream, move
        self._jobs: queue.SimpleQueue[tuple[Sequence[LaneStep], Sequence[Ticket], StreamTicket[Event]] | None] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None
        self._closed, self._one = False, threading.Lock()

    def submit(self, steps: Sequence[LaneStep], after: Sequence[Ticket]) -> StreamTicket[Event]:
        """See `Backend.submit`: `RuntimeError` once the lane is closed."""
        ticket = StreamTicket[Event]()
        with self._one:
            if self._closed:
                raise RuntimeError(f"lane {self.name} is closed")
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=f"flexref lane {self.name}", daemon=True)
                thread.start()  # if the system has none, a later submission tries again
                self._thread = thread
            self._jobs.put((steps, after, ticket))
        return ticket

    def close(self) -> None:
        """Finish what was submitted and end the thread; closing again does nothing."""
        with self._one:
            self._closed = True
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._stream.join()

    def _run(self) -> None:
        for steps, after, ticket in iter(self._jobs.get, None):
            ticket.give(self._stream, steps, after, self._move)
            del steps, after, ticket  # a lane that waits for work holds no buffer that its last work copied


class StreamLanes:
    """The part of `Backend` that is about lanes, for a port with a stream for its operators and one for each lane.

    The port calls `_begin_lanes` before anything else. Its buffers have slices, and `host_memory` of those on the host.
    """

    host_memory: Callable[[Any], npt.NDArray[np.uint8]]

    def _begin_lanes(self, operators: Any, beside: Callable[[], Any]) -> None:
        """`operators`: the stream that operators are on; `beside` makes a lane's."""
        self._stream = operators
        self._lane_threads = {lane: LaneThread(lane, beside(), self._move) for lane in LANES}

    def _is_on_host(self, buffer: Any) -> bool:
        """Where it is; a port with one memory has all of them on the host."""
        return True

    def _copy(self, target: Any, source: Any) -> None:
        """Give a copy of bytes between the device and the host, or on the device, to the stream that is active."""
        raise NotImplementedError

    def _move(self, move: Move, stream: Any) -> None:
        """Between two places of the host it is made here, in the lane's thread, after all that the lane was given."""
        source, target = move.source.buffer, move.target.buffer
        on_host = self._is_on_host(source) and self._is_on_host(target)
        if on_host:
            stream.join()
        for there, here, nbytes in copies_of(move):
            given, goal = source[there : there + nbytes], target[here : here + nbytes]  # type: ignore[index]
            if on_host:
                np.copyto(self.host_memory(goal), self.host_memory(given))
            else:
                self._copy(goal, given)

    def submit(self, lane: Lane, steps: Sequence[LaneStep], after: Sequence[Ticket]) -> Ticket:
        """See `Backend.submit`."""
        return self._lane_threads[lane].submit(steps, after)

    def mark(self) -> Ticket:
        """See `Backend.mark`."""
        return StreamTicket(self._stream.mark())

    def wait(self, ticket: Any) -> None:
        """See `Backend.wait`: returns when all steps of the ticket are on their stream, or raises what one raised."""
        self._stream.follow(ticket.event())

    def close(self) -> None:
        """See `Backend.close`."""
        for lane in self._lane_threads.values():
            lane.close()
        self._stream.join()
