"""What fails on a disk, as lanes see it, kept until the main thread takes it; it knows no file and no model."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FaultSeen:
    """Bytes of the file `path` from `offset` on could not be read, or were not those that belong there.

    `kind`: `retry`: they are read again; `mirror`: another copy is read in their place; `fault`: nothing is left to
    try. `text` says it in one line. `tries`: how often that copy has been read in vain.
    """

    kind: str
    text: str
    path: str
    offset: int
    nbytes: int
    tries: int


OnFault = Callable[[FaultSeen], None]
"""Told of every fault, in the thread that sees it."""


class FaultLog:
    """Faults as any thread tells them, until one thread takes them. `seen`: how many there have been."""

    def __init__(self) -> None:
        self.seen = 0
        self._waiting: deque[FaultSeen] = deque()
        self._lock = threading.Lock()

    def tell(self, fault: FaultSeen) -> None:
        """Note a fault."""
        with self._lock:
            self._waiting.append(fault)
            self.seen += 1

    def take(self) -> list[FaultSeen]:
        """Those that nobody has taken yet, in order."""
        if not self._waiting:  # asked after every beat
            return []
        with self._lock:
            taken = list(self._waiting)
            self._waiting.clear()
        return taken
