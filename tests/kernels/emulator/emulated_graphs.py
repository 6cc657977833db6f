"""What an emulated device captures instead of doing it, and does again as often as it is asked; it knows no kernel."""

import threading
from collections.abc import Sequence
from functools import partial

from emulated_build import EmulationError
from emulated_pages import Pages
from emulated_streams import Work


class Graphs:
    """The graphs of one device: work in order, each piece with the allocations that its operands lie in."""

    def __init__(self) -> None:
        self._captured: list[Work] | None = None
        self._thread = 0
        self._found: dict[int, tuple[Work, ...]] = {}

    def begin(self) -> None:
        """What this thread gives the stream of operators is captured from now on."""
        if self._captured is not None:
            raise EmulationError("a capture begins within another one")
        self._captured, self._thread = [], threading.get_ident()

    def refuse(self, what: str, here: bool = True) -> None:
        """`EmulationError` if this thread captures: what is done `here` cannot be done again, or not yet."""
        if here and self._captured is not None and self._thread == threading.get_ident():
            raise EmulationError(f"{what} during a capture")

    def capture(self, work: Work, used: Sequence[Pages]) -> None:
        """Let the graph do this too; `used`: the allocations that it needs whenever it does."""
        assert self._captured is not None
        self._captured.append(partial(_checked, work, tuple(used)))

    def end(self, handle: int) -> tuple[int, int]:
        """The capture is over: it has that handle from now on, and so many nodes."""
        assert self._captured is not None
        self._found[handle], self._captured = tuple(self._captured), None
        return handle, len(self._found[handle])

    def nodes(self, handle: int) -> Sequence[Work]:
        """The work of a graph; `EmulationError` for one that was given back."""
        if handle not in self._found:
            raise EmulationError(f"graph {handle} was destroyed, or never made")
        return self._found[handle]

    def copied(self, handle: int, copy: int) -> int:
        """The handle of a copy."""
        self._found[copy] = tuple(self.nodes(handle))
        return copy

    def remove(self, handle: int) -> None:
        """Give a graph back."""
        self.nodes(handle)
        del self._found[handle]


def _checked(work: Work, used: Sequence[Pages]) -> None:
    if not all(pages.alive for pages in used):
        raise EmulationError("a graph works on memory that was given back since it was captured")
    work()
