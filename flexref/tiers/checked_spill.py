"""A spill file whose bytes are checked when they come back: a checksum for every run of records, as it was written.

It knows no row and no layer. It relies on how caches and hidden states are moved: what is read begins where a write
began and ends where one ended. A row's cache grows by runs and is read from its first record on, so that what a read
has found to be whole becomes one run: there are at most two for each row and layer, however long the row grows, and a
few that longer rows left in its place before it (15 after 3,000 rows of up to 1,000 tokens). A run takes 24 bytes,
which no budget counts.
"""

import threading
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import xxhash

from flexref.errors import SpillDamaged, StorageError, in_gib
from flexref.storage.checks import checksum_of
from flexref.tiers.faults import FaultSeen, OnFault
from flexref.tiers.spill_file import SpillFile

Bytes = npt.NDArray[np.uint8]

STRETCH_BYTES = 8 << 20
"""A row's cache in a layer of a large model is about as long."""


class _Stretch:
    """The runs that begin in one stretch of a file, in columns sorted by where they begin."""

    __slots__ = ("ends", "starts", "sums")

    def __init__(self) -> None:
        self.starts, self.ends, self.sums = array("Q"), array("Q"), array("Q")

    def forget(self, start: int, end: int) -> None:
        first = bisect_right(self.ends, start)
        stop = bisect_left(self.starts, end, lo=first)
        for column in (self.starts, self.ends, self.sums):
            del column[first:stop]

    def put(self, start: int, end: int, checksum: int) -> None:
        place = bisect_left(self.starts, start)
        for column, value in ((self.starts, start), (self.ends, end), (self.sums, checksum)):
            column.insert(place, value)

    def at(self, start: int) -> tuple[int, int] | None:
        """(end, checksum) of the run that begins there."""
        place = bisect_left(self.starts, start)
        found = place < len(self.starts) and self.starts[place] == start
        return (self.ends[place], self.sums[place]) if found else None


class SpilledRuns:
    """What lies in a file, run by run: where each begins and ends, and its XXH3-64. Runs do not overlap.

    They are kept by stretches of the file, so that a change moves few others however many there are.
    """

    def __init__(self, stretch_bytes: int = STRETCH_BYTES) -> None:
        self._stretch_bytes = stretch_bytes
        self._stretches: dict[int, _Stretch] = {}
        self._reach = 0
        """Over how many stretches after its first one the longest run so far went."""

    def __len__(self) -> int:
        return sum(len(stretch.starts) for stretch in self._stretches.values())

    def forget(self, start: int, end: int) -> None:
        """Drop every run that has a byte from `start` to `end`."""
        for number in range(start // self._stretch_bytes - self._reach, end // self._stretch_bytes + 1):
            if (stretch := self._stretches.get(number)) is not None:
                stretch.forget(start, end)

    def put(self, start: int, end: int, checksum: int) -> None:
        """Note a run in place of all that lay there; one without a byte is none."""
        if start == end:
            return
        self.forget(start, end)
        number = start // self._stretch_bytes
        self._reach = max(self._reach, end // self._stretch_bytes - number)
        self._stretches.setdefault(number, _Stretch()).put(start, end, checksum)

    def covering(self, start: int, end: int) -> list[tuple[int, int]]:
        """(end, checksum) of the runs that lie from `start` to `end` without a gap; `ValueError` if others do."""
        at, found = start, list[tuple[int, int]]()
        while at < end:
            stretch = self._stretches.get(at // self._stretch_bytes)
            run = None if stretch is None else stretch.at(at)
            if run is None:
                break
            found.append(run)
            at = run[0]
        if at != end:
            raise ValueError(f"bytes {start} to {end} of a spill file were not written as they are read")
        return found


class CheckedSpill:
    """A `tiers.transfer.FileOfPieces`. One lane may write while another one reads other bytes."""

    def __init__(self, file: SpillFile, on_fault: OnFault) -> None:
        self.file, self._on_fault = file, on_fault
        self.runs = SpilledRuns()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self.file.nbytes

    @property
    def direct(self) -> bool:
        """Whether it is written past the page cache, in whole pages."""
        return self.file.direct

    def write(self, offset: int, source: Bytes) -> None:
        """Write all of `source` at `offset`, as one run."""
        end = offset + source.nbytes
        with self._lock:
            self.runs.forget(offset, end)
        self.file.write(offset, source)
        checksum = checksum_of(source)
        with self._lock:
            self.runs.put(offset, end, checksum)

    def read(self, offset: int, into: Bytes) -> None:
        """Fill `into` from `offset` on with what was written there; `SpillDamaged` if it does not come back, twice."""
        end = offset + into.nbytes
        with self._lock:
            runs = self.runs.covering(offset, end)
        trouble = self._trouble(offset, into, runs)
        if trouble:
            self._tell("retry", f"{trouble}; read again", offset, into.nbytes, 1)
            self.file.forget_pages(offset, into.nbytes)
            trouble = self._trouble(offset, into, runs)
        if trouble:
            said = f"{trouble}, twice; rows that were in it must be computed again"
            self._tell("fault", said, offset, into.nbytes, 2)
            raise SpillDamaged(said)

    def borrow(self, memory: Bytes) -> None:
        """See `SpillFile.borrow`."""
        self.file.borrow(memory)

    def read_pieces(self, pieces: Sequence[tuple[int, Bytes]], done: Callable[[], None]) -> None:
        """Fill each piece's memory from its offset on, several at a time, as `read` does; `done`: see `together`."""
        self.file.together([partial(self.read, offset, into) for offset, into in pieces], done)

    def write_pieces(self, pieces: Sequence[tuple[int, Bytes]], done: Callable[[], None]) -> None:
        """Write each piece's memory at its offset, several at a time, each as one run."""
        self.file.together([partial(self.write, offset, source) for offset, source in pieces], done)

    def close(self) -> None:
        """Give the room back."""
        self.file.close()

    def _trouble(self, offset: int, into: Bytes, runs: list[tuple[int, int]]) -> str:
        """What is wrong with the bytes once they are read; empty if nothing is. Then several runs become one."""
        try:
            self.file.read(offset, into)
        except StorageError as error:
            return str(error)
        whole, start = xxhash.xxh3_64(), offset
        for end, checksum in runs:
            piece = into[start - offset : end - offset]
            whole.update(piece.data)
            # The first run is nearly all of it, and is hashed once: as the beginning of the whole.
            if (whole.intdigest() if start == offset else checksum_of(piece)) != checksum:
                return f"{in_gib(piece.nbytes)} from byte {start} on of the {self.file.name} came back damaged"
            start = end
        if len(runs) > 1:
            with self._lock:
                self.runs.put(offset, offset + into.nbytes, whole.intdigest())
        return ""

    def _tell(self, kind: str, text: str, offset: int, nbytes: int, tries: int) -> None:
        self._on_fault(FaultSeen(kind, text, self.file.name, offset, nbytes, tries))
