"""Streams of a device whose events are like CUDA's, and when these are reached by the host's clock; it knows no device.

Such an event has `record`, `wait`, `synchronize`, `query` and `elapsed_time`.
"""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

ANCHOR_S = 5.0
"""After so long a device's clock is compared with the host's again: they part by some microseconds a second."""

ANCHOR_TRIES = 3
"""The shortest of so many comparisons is taken: any of them may be interrupted."""

Where = Callable[[], tuple[Any, ...]]
"""A device library's stream, or nothing where a device has but one: what its events' methods are called with."""


class DeviceEvent:
    """A place in a stream; `anchor` is another event, and the host's second at which it was reached."""

    def __init__(self, event: Any, anchor: tuple[Any, float]) -> None:
        self.event, self._anchor = event, anchor

    def wait(self) -> None:
        """See `StreamEvent.wait`."""
        self.event.synchronize()

    def done(self) -> bool:
        """See `StreamEvent.done`."""
        return bool(self.event.query())

    def time(self) -> float:
        """See `StreamEvent.time`."""
        anchor, at = self._anchor
        return float(at + anchor.elapsed_time(self.event) / 1e3)


class DeviceClock:
    """Compares a device's clock with the host's, on a stream on which nothing else runs."""

    def __init__(self, runtime: Any, where: Where) -> None:
        """`runtime` has `Event(enable_timing=True)`."""
        self._runtime, self._where, self._lock = runtime, where, threading.Lock()
        self._anchor: tuple[Any, float] | None = None

    def event(self) -> Any:
        """A new event that knows its time."""
        return self._runtime.Event(enable_timing=True)

    def anchor(self) -> tuple[Any, float]:
        """An event that was reached not long ago, and when that was."""
        with self._lock:
            if self._anchor is None or time.perf_counter() - self._anchor[1] > ANCHOR_S:
                tries = [self._compared() for _ in range(ANCHOR_TRIES)]
                _, event, at = min(tries, key=lambda each: each[0])
                self._anchor = event, at
            return self._anchor

    def _compared(self) -> tuple[float, Any, float]:
        """(seconds within which it was reached, event, their middle)."""
        event, before = self.event(), time.perf_counter()
        event.record(*self._where())
        event.synchronize()
        after = time.perf_counter()
        return after - before, event, (before + after) / 2


class DeviceStream:
    """A stream of the device (`flexref.backend.lane_threads.Stream`)."""

    def __init__(self, clock: DeviceClock, where: Where, active: Callable[..., AbstractContextManager[Any]]) -> None:
        """`active(stream)`: a context in which the calling thread gives the device's work to it."""
        self._clock, self._where, self._active = clock, where, active

    def active(self) -> AbstractContextManager[Any]:
        """See `Stream.active`."""
        where = self._where()
        return self._active(*where) if where else nullcontext()

    def mark(self) -> DeviceEvent:
        """See `Stream.mark`."""
        anchor, event = self._clock.anchor(), self._clock.event()
        event.record(*self._where())
        return DeviceEvent(event, anchor)

    def follow(self, event: DeviceEvent, /) -> None:
        """See `Stream.follow`."""
        event.event.wait(*self._where())

    def join(self) -> None:
        """See `Stream.join`."""
        self.mark().wait()


def streams_of(
    runtime: Any, current: Where, new: Callable[[], Any] | None = None
) -> tuple[DeviceStream, Callable[[], DeviceStream]]:
    """(the stream of the operators, what makes a stream for a lane).

    `runtime` has `Event(enable_timing=True)`; `current` says on which stream the operators are, `new` makes another. A
    device without `new` has one stream, which all share: its clock waits for operators, once in `ANCHOR_S`.
    """
    if new is None:
        only = DeviceStream(DeviceClock(runtime, current), current, nullcontext)
        return only, lambda: only

    def place() -> Where:
        stream = new()
        return lambda: (stream,)

    clock = DeviceClock(runtime, place())
    return DeviceStream(clock, current, runtime.stream), lambda: DeviceStream(clock, place(), runtime.stream)
