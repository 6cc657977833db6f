"""A weight file as a tier: large direct reads, of which several are under way, some before their turn has come."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flexref.errors import StorageError
from flexref.storage.trailer import Trailer, check_trailer
from flexref.tiers.file_reads import ended, fill, forget_pages, preadv
from flexref.units import ALIGNMENT_BYTES

CHUNK_BYTES = 8 << 20
"""Bytes per read call: cold direct reads gain nothing from larger ones, and smaller ones leave the disk idle."""

READERS = 8
"""Reads that are under way together: more than a disk needs on a machine at rest, since on a busy one (tokens are
computed, bytes copied and checked) some of the threads wait for a processor. With 8 in place of 4 the lane was a tenth
faster on two busy cores.
"""

ASKED = 2 * READERS
"""Chunks that are asked for before they have come: as many again as are read, so that no reader waits for the host."""


def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(READERS, thread_name_prefix="flexref disk")


class WeightsOnDisk:
    """A weight file opened for large reads, past the page cache where the file system allows it."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        try:
            self._file = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise StorageError(f"cannot open {self.path}: {error.strerror}") from error
        try:
            self._direct_file: int | None = os.open(self.path, os.O_RDONLY | os.O_DIRECT)
        except OSError:  # a file system without direct reads: `direct` says so in every report
            self._direct_file = None
        self._handles = tuple(handle for handle in (self._file, self._direct_file) if handle is not None)
        self._stat = os.fstat(self._file)
        self._size = self._stat.st_size
        self.chunks_read = 0
        """How many have come so far, for those who watch whether any come."""
        self._pool = _readers()
        self._ahead: dict[tuple[int, int], RangeAhead] = {}

    @property
    def direct(self) -> bool:
        """Whether large reads bypass the page cache."""
        return self._direct_file is not None

    def read(
        self,
        offset: int,
        into: npt.NDArray[np.uint8],
        arrived: Callable[[npt.NDArray[np.uint8]], None] | None = None,
    ) -> None:
        """Fill `into` from `offset` on, in chunks that several threads read; `StorageError` if bytes are missing.

        `arrived` is given every chunk in order, while those after it are read. Whatever is raised: when this has
        ended nobody writes to `into` any more.
        """
        self._check_end(offset, into.nbytes)
        asked = self._ahead.pop(_key(offset, into), None)
        if asked is None and into.nbytes <= CHUNK_BYTES:
            self._piece(offset, into)
            if arrived is not None:
                arrived(into)
            return
        reads = asked or self._range(offset, into)
        try:
            while asked is None and reads.ask():
                pass
            for chunk in reads.arriving():
                self.chunks_read += 1
                if arrived is not None:
                    arrived(chunk)
        finally:
            reads.end()

    def ask_ahead(self, offset: int, into: npt.NDArray[np.uint8]) -> "RangeAhead":
        """Chunks to be asked for before `read` is called, of the same range into the same memory; raises as it does.

        Whoever calls this ends it in any case, and calls nothing for the range beside it.
        """
        self._check_end(offset, into.nbytes)
        key, reads = _key(offset, into), self._range(offset, into)
        reads.over = lambda: self._ahead.pop(key, None)
        self._ahead[key] = reads
        return reads

    def drop_ahead(self, offset: int, into: npt.NDArray[np.uint8]) -> None:
        """What was asked for the range and not read yet is not wanted: nobody writes to `into` any more."""
        reads = self._ahead.pop(_key(offset, into), None)
        if reads is not None:
            reads.end()

    def _check_end(self, offset: int, nbytes: int) -> None:
        if offset + nbytes > self._size:
            raise StorageError(f"{self.path} ends at byte {self._size}, needed {offset + nbytes}")

    def _range(self, offset: int, into: npt.NDArray[np.uint8]) -> "RangeAhead":
        return RangeAhead(lambda start, chunk: self._pool.submit(self._piece, offset + start, chunk), into)

    def read_rows(self, offsets: npt.NDArray[np.int64], into: npt.NDArray[np.uint8]) -> None:
        """into (R, row bytes): one short read per row, through the page cache, several at a time; then as in `read`."""

        def some(part: npt.NDArray[np.int64]) -> None:
            for row in part:
                self._buffered(int(offsets[row]), into[row])

        reads: list[Future[None]] = []
        try:
            reads.extend(self._pool.submit(some, part) for part in np.array_split(np.arange(len(offsets)), READERS))
            for read in reads:
                read.result()
        finally:
            ended(reads)

    def forget_pages(self, offset: int, nbytes: int) -> None:
        """Let the next read of these bytes come from the disk itself, as far as the file system can."""
        forget_pages(self._file, offset, nbytes)

    def is_same_file(self, other: "WeightsOnDisk") -> bool:
        """Whether both names lead to one file."""
        return os.path.samestat(self._stat, other._stat)

    def trailer(self) -> Trailer:
        """What the file's last bytes say of it, checked as `check_trailer` does."""
        try:
            return check_trailer(self._file, self.path)
        except OSError as error:
            raise StorageError(f"cannot read {self.path}: {error.strerror}") from error

    def check_unchanged(self) -> None:
        """`StorageError` if somebody wrote to the file since it was opened, by its size and its times.

        A file that another one has taken the name of has lost a link, and not a byte.
        """
        try:
            found, known = os.fstat(self._file), self._stat
        except OSError as error:
            raise StorageError(f"cannot look at {self.path}: {error.strerror}") from error
        if (found.st_size, found.st_mtime_ns) == (known.st_size, known.st_mtime_ns) and (
            found.st_ctime_ns == known.st_ctime_ns or found.st_nlink != known.st_nlink
        ):
            self._stat = found
            return
        change = "its times differ"
        if found.st_size != known.st_size:
            change = f"it had {known.st_size} bytes, now it has {found.st_size}"
        raise StorageError(
            f"{self.path} was changed while it was read: {change}; what was computed from it is void, run again"
        )

    def close(self) -> None:
        """Close the file; nothing may still read it. Closing it again does nothing: its number may be another's now."""
        self._pool.shutdown()
        handles, self._handles = self._handles, ()
        for handle in handles:
            with suppress(OSError):  # it is closed all the same, and nothing was written
                os.close(handle)

    def _piece(self, offset: int, into: npt.NDArray[np.uint8]) -> None:
        """Direct for whole blocks in aligned memory; the ragged end of a region goes through the page cache."""
        whole = into.nbytes // ALIGNMENT_BYTES * ALIGNMENT_BYTES
        aligned_here = offset % ALIGNMENT_BYTES == 0 and into.ctypes.data % ALIGNMENT_BYTES == 0
        if self._direct_file is None or not aligned_here or not whole:
            self._buffered(offset, into)
            return
        done = 0
        while done < whole:
            count = preadv(self._direct_file, into[done:whole], offset + done, self.path)
            if count % ALIGNMENT_BYTES:
                break
            done += count
        self._buffered(offset + done, into[done:])

    def _buffered(self, offset: int, into: npt.NDArray[np.uint8]) -> None:
        fill(self._file, into, offset, self.path)


class RangeAhead:
    """A range of a file on its way into memory: chunks are asked for one by one, and taken in order as they arrive.

    `onward` is called whenever one has, since then more may be asked for.
    """

    def __init__(
        self, read: Callable[[int, npt.NDArray[np.uint8]], "Future[None]"], into: npt.NDArray[np.uint8]
    ) -> None:
        """`read(start, chunk)` begins to fill `chunk`, which is `into` from `start` on."""
        self.onward: Callable[[], None] | None = None
        self.over: Callable[[], object] | None = None
        """Called when it ends."""
        self._read, self._into = read, into
        self._reads: list[Future[None]] = []
        self._chunks = -(-into.nbytes // CHUNK_BYTES)

    def ask(self) -> bool:
        """Ask for the next chunk; False if all have been asked for."""
        number = len(self._reads)
        if number == self._chunks:
            return False
        self._reads.append(self._read(number * CHUNK_BYTES, self._chunk(number)))
        return True

    @property
    def in_flight(self) -> int:
        """Chunks that have been asked for and have not come."""
        return sum(not read.done() for read in self._reads)

    @property
    def came_bytes(self) -> int:
        """Bytes of the chunks that have come."""
        came = [read.done() and not read.cancelled() and read.exception() is None for read in self._reads]
        return sum(self._chunk(number).nbytes for number, has_come in enumerate(came) if has_come)

    def arriving(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Every chunk in order, once it is there; `StorageError` in place of one that is not."""
        for number in range(self._chunks):
            if number == len(self._reads):
                self.ask()
            self._reads[number].result()
            if self.onward is not None:
                self.onward()
            yield self._chunk(number)

    def end(self) -> None:
        """Nothing more is asked for, and nobody writes to the memory any more."""
        self._chunks = len(self._reads)
        self.onward = None  # whoever is called knows this range, and its memory would live until cycles are collected
        ended(self._reads)
        if self.over is not None:
            self.over()

    def _chunk(self, number: int) -> npt.NDArray[np.uint8]:
        return self._into[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]


def _key(offset: int, into: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """What tells a range and its memory from others."""
    return offset, into.__array_interface__["data"][0]
