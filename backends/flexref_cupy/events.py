"""Events and the clock that their times are told by; a ticket for what was queued on the device."""

import time
from collections import deque
from collections.abc import Iterable, Sequence

from flexref_cupy.driver.cuda import Cuda

TRIES = 5
"""An interrupt between the device's event and the host's look at the clock spoils one try."""

ANCHOR_S = 64.0
"""CUDA gives times as float32 milliseconds: after so long they are good to 4 microseconds, then a new anchor is set."""

Times = list[tuple[float, float]]


class Events:
    """Events to be used again, and the host's clock for their times."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self._spare: deque[int] = deque()  # appended to and popped from by several threads, which a deque allows
        self._idle_stream = cuda.stream()
        self._closed = False
        self._anchor = self._tie()

    def take(self) -> int:
        """An event that nobody else uses."""
        try:
            return self._spare.popleft()
        except IndexError:
            return self.cuda.event()

    def give_back(self, *events: int) -> None:
        """Let events be used again."""
        if self._closed:
            self._destroy(events)
        else:
            self._spare.extend(events)

    def close(self) -> None:
        """End the stream and the events, but those that tickets hold: they end with their tickets."""
        if self._closed:
            return
        self._closed = True
        self._destroy((*self._spare, self._anchor[0]))
        self._spare.clear()
        self.cuda.destroy_stream(self._idle_stream)

    def _destroy(self, events: Iterable[int]) -> None:
        for event in events:
            self.cuda.destroy_event(event)

    def _tie(self) -> tuple[int, float]:
        """An event on an idle stream, and when it happened by the host's clock: the closest of a few tries."""
        found: list[tuple[float, int, float]] = []
        for _ in range(TRIES):
            event, before = self.take(), time.perf_counter()
            self.cuda.record(event, self._idle_stream)
            self.cuda.await_event(event)
            after = time.perf_counter()
            found.append((after - before, event, (before + after) / 2))
        (_, best, at), *others = sorted(found)
        self.give_back(*(event for _, event, _ in others))
        return best, at

    def seconds(self, event: int) -> float:
        """When an event that is over happened, by `time.perf_counter`."""
        first, at = self._anchor
        since = self.cuda.seconds_between(first, event)
        if since > ANCHOR_S:
            self._anchor = self._tie()
            self.give_back(first)
        return at + since


class DeviceTicket:
    """Work that was queued on the device: over when its last event is. Once that is known, CUDA is not asked again."""

    __slots__ = ("_end", "_events", "_over", "_start", "_times", "_weights", "end")

    def __init__(self, events: Events, start: int | None, end: int, weights: Sequence[int]) -> None:
        """`weights` are the bytes of each step: the time between the two events is theirs in proportion."""
        self._events, self._start, self._end, self._weights = events, start, end, weights
        self.end = end
        self._over = False
        self._times: Times | None = None

    def wait(self) -> None:
        """See `Ticket.wait`."""
        if not self._over:
            self._events.cuda.await_event(self._end)
            self._over = True

    def done(self) -> bool:
        """See `Ticket.done`."""
        self._over = self._over or self._events.cuda.happened(self._end)
        return self._over

    def queued(self) -> bool:
        """Whether the device knows of it."""
        return True

    def times(self) -> Sequence[tuple[float, float]]:
        """See `Ticket.times`; the steps of one submission share its time by their bytes."""
        if self._times is None:
            self.wait()
            end = self._events.seconds(self._end)
            start = end if self._start is None else min(end, self._events.seconds(self._start))
            self._times = shared_time(start, end, self._weights)
        return self._times

    def __del__(self) -> None:
        self._events.give_back(self._end)
        if self._start is not None:
            self._events.give_back(self._start)


def shared_time(start: float, end: float, weights: Sequence[int]) -> Times:
    """The time from `start` to `end`, cut in proportion to `weights`, which are not all 0."""
    total, so_far, times = sum(weights), 0, []
    for weight in weights:
        first = start + (end - start) * so_far / total
        so_far += weight
        times.append((first, start + (end - start) * so_far / total))
    return times
