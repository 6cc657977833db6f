"""What a move takes of two pieces of memory, in parts of any length; it knows no memory."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """(distance in the source, distance in the target, bytes) of each part of a move, and the bytes of all."""

    each: tuple[tuple[int, int, int], ...]
    nbytes: int

    @classmethod
    def of(cls, each: Sequence[tuple[int, int, int]], source_bytes: int, target_bytes: int) -> "Parts":
        """`IndexError` for a part that lies beyond the bytes of either side."""
        for source, target, nbytes in each:
            if min(source, target, nbytes) < 0 or source + nbytes > source_bytes or target + nbytes > target_bytes:
                raise IndexError(f"{nbytes} bytes from {source} to {target}, of {source_bytes} and {target_bytes}")
        return cls(tuple(each), sum(nbytes for _, _, nbytes in each))
