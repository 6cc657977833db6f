"""What lanes do on the host just now, for other threads to see; it starts nothing and ends nothing."""

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OpenWork:
    """A call that a lane is in: what it moves over which link. `number` grows with all that any lane does.

    It is another number as soon as a piece of the work is done, and the next one begun.
    """

    lane: str
    what: str
    link: str
    nbytes: int
    number: int


class WorkBoard:
    """The calls that lanes are in, one for each lane: written by the lanes, read by anybody."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, OpenWork] = {}
        self._number = 0

    def begin(self, lane: str, what: str, link: str, nbytes: int) -> None:
        """The lane begins a call, or the next piece of it."""
        with self._lock:
            self._number += 1
            self._open[lane] = OpenWork(lane, what, link, nbytes, self._number)

    def end(self, lane: str) -> None:
        """The lane's call has ended, however it did."""
        with self._lock:
            self._open.pop(lane, None)

    def now(self) -> list[OpenWork]:
        """What is open at this moment."""
        with self._lock:
            return list(self._open.values())
