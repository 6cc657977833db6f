"""A port whose memory comes while it computes already: what an account asks of it beside the protocol."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable


class ArrivalTime:
    """Seconds for which the engine's own thread waited while lanes waited for memory, since the port was made.

    A lane says when it begins and ends to wait for memory; the engine's thread, when it waits for lanes (`watched`).
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._seconds, self._since = 0.0, 0.0
        self._lanes = self._watchers = 0

    @property
    def seconds(self) -> float:
        """It grows while both wait."""
        with self._lock:
            return self._seconds + (self._clock() - self._since if self._lanes and self._watchers else 0.0)

    def begin(self) -> None:
        """A lane waits for memory."""
        self._change(1, 0)

    def end(self) -> None:
        """The lane waits no more."""
        self._change(-1, 0)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """The engine's own thread waits meanwhile."""
        self._change(0, 1)
        try:
            yield
        finally:
            self._change(0, -1)

    def _change(self, lanes: int, watchers: int) -> None:
        with self._lock:
            now = self._clock()
            if self._lanes and self._watchers:
                self._seconds += now - self._since
            self._since = now
            self._lanes, self._watchers = self._lanes + lanes, self._watchers + watchers


@runtime_checkable
class ArrivingBackend(Protocol):
    """A port that has such a time; where memory is there once it is allocated, there is none."""

    arriving: ArrivalTime


def arrival_time(port: Any) -> ArrivalTime:
    """How long the engine waited for memory of `port`: never, where it comes at once."""
    return port.arriving if isinstance(port, ArrivingBackend) else ArrivalTime()
