"""A stack of results over one buffer: offsets only, no memory, so that every port takes its results alike."""

from collections.abc import Iterator
from contextlib import contextmanager

from flexref.errors import CapacityError
from flexref.units import aligned

RESULT_ALIGNMENT_BYTES = 256
"""Results start at multiples of it: a cache line on every host, a full transaction on every GPU."""


class Workspace:
    """Hands out offsets into `capacity_bytes`, gives them back frame by frame, and remembers the most it held."""

    def __init__(self, capacity_bytes: int | None) -> None:
        """`capacity_bytes` None: no limit, for counting what a computation would need."""
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self.peak_bytes = 0

    def take(self, nbytes: int) -> int:
        """The offset of `nbytes` more; `CapacityError` if they do not fit."""
        offset, end = self.used_bytes, self.used_bytes + aligned(nbytes, RESULT_ALIGNMENT_BYTES)
        if self.capacity_bytes is not None and end > self.capacity_bytes:
            free = self.capacity_bytes - offset
            raise CapacityError("workspace", "a result", end - offset, free, {"results": offset})
        self.used_bytes = end
        self.peak_bytes = max(self.peak_bytes, end)
        return offset

    @contextmanager
    def frame(self) -> Iterator[None]:
        """What is taken inside is given back at the end."""
        mark = self.used_bytes
        try:
            yield
        finally:
            self.used_bytes = mark
