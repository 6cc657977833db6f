"""Files as a tier: direct reads of weights from several threads, and a spill file for what a job writes."""

import errno
import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flexref.errors import StorageError, in_gib
from flexref.storage.trailer import Trailer, check_trailer
from flexref.units import ALIGNMENT_BYTES, aligned

CHUNK_BYTES = 8 << 20
"""Bytes per read call: cold direct reads gain nothing from larger ones, and smaller ones leave the disk idle."""

READERS = 2
"""Threads that read one region together: enough to keep a second request queued while the first is served."""


def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(READERS, thread_name_prefix="flexref disk")


def made_folder(directory: str | Path) -> Path:
    """The folder that spills are written in, made if there is none; `StorageError` if it cannot be."""
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise StorageError(f"cannot write in {directory}: it is no folder") from error
    except OSError as error:
        raise StorageError(f"cannot write in {directory}: {error.strerror}") from error
    return folder


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
        if offset + into.nbytes > self._size:
            raise StorageError(f"{self.path} ends at byte {self._size}, needed {offset + into.nbytes}")
        starts = range(0, into.nbytes, CHUNK_BYTES)
        chunks = [into[start : start + CHUNK_BYTES] for start in starts]
        if len(chunks) == 1:
            self._piece(offset, into)
            if arrived is not None:
                arrived(into)
            return
        reads: list[Future[None]] = []
        try:
            for start, chunk in zip(starts, chunks, strict=True):
                reads.append(self._pool.submit(self._piece, offset + start, chunk))
            for read, chunk in zip(reads, chunks, strict=True):
                read.result()
                self.chunks_read += 1
                if arrived is not None:
                    arrived(chunk)
        finally:
            _end(reads)

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
            _end(reads)

    def forget_pages(self, offset: int, nbytes: int) -> None:
        """Let the next read of these bytes come from the disk itself, as far as the file system can."""
        _forget_pages(self._file, offset, nbytes)

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
            count = _preadv(self._direct_file, into[done:whole], offset + done, self.path)
            if count % ALIGNMENT_BYTES:
                break
            done += count
        self._buffered(offset + done, into[done:])

    def _buffered(self, offset: int, into: npt.NDArray[np.uint8]) -> None:
        done = 0
        while done < into.nbytes:
            done += _preadv(self._file, into[done:], offset + done, self.path)


def _forget_pages(file: int, offset: int, nbytes: int) -> None:
    """Ask the system to drop whole pages: one of which only some bytes are named stays, and is read again as it was."""
    first = offset // mmap.PAGESIZE * mmap.PAGESIZE
    with suppress(OSError):  # a wish: whether it was granted shows in what is read then
        os.posix_fadvise(file, first, aligned(offset + nbytes - first, mmap.PAGESIZE), os.POSIX_FADV_DONTNEED)


def _free_on(directory: str | Path) -> str:
    """How much is free where a folder lies, in words."""
    try:
        status = os.statvfs(directory)
    except OSError as error:
        return f"an unknown number ({error.strerror})"
    return in_gib(status.f_bavail * status.f_frsize)


def _end(reads: Sequence[Future[None]]) -> None:
    """Begin none of them any more, and wait for those that have begun."""
    for read in reads:
        read.cancel()
    wait(reads)


def _preadv(file: int, into: npt.NDArray[np.uint8], offset: int, path: str) -> int:
    try:
        count = os.preadv(file, [into.data], offset)
    except OSError as error:
        raise StorageError(f"cannot read {path} at byte {offset}: {error.strerror}") from error
    if count == 0:
        raise StorageError(f"{path} ended at byte {offset} while it was read: {into.nbytes} bytes are missing")
    return count


class SpillFile:
    """A nameless file in a directory: room for cache and activations, gone when the process ends, however it ends."""

    def __init__(self, directory: str | Path, nbytes: int) -> None:
        """Reserves all `nbytes` at once, so that a full disk is found now; `StorageError` if it cannot."""
        self.nbytes = nbytes
        self._directory = str(directory)
        self.name = f"spill file in {directory}"
        made_folder(directory)
        try:
            self._handle = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115  `close` closes it
        except OSError as error:
            raise StorageError(f"cannot write in {directory}: {error.strerror}") from error
        try:
            if nbytes:
                os.posix_fallocate(self._handle.fileno(), 0, aligned(nbytes, ALIGNMENT_BYTES))
        except OSError as error:
            self._handle.close()
            if error.errno == errno.ENOSPC:
                raise StorageError(
                    f"the disk of {directory} is full: {in_gib(nbytes)} are needed, {_free_on(directory)} are free"
                ) from error
            raise StorageError(f"cannot reserve {in_gib(nbytes)} in {directory}: {error.strerror}") from error

    def read(self, offset: int, into: npt.NDArray[np.uint8]) -> None:
        """Fill `into` from `offset` on."""
        done = 0
        while done < into.nbytes:
            done += _preadv(self._handle.fileno(), into[done:], offset + done, f"the {self.name}")

    def forget_pages(self, offset: int, nbytes: int) -> None:
        """Let the next read of these bytes come from the disk itself, if they have been written to it."""
        _forget_pages(self._handle.fileno(), offset, nbytes)

    def write(self, offset: int, source: npt.NDArray[np.uint8]) -> None:
        """Write all of `source` at `offset`."""
        done = 0
        while done < source.nbytes:
            try:
                count = os.pwritev(self._handle.fileno(), [source[done:].data], offset + done)
            except OSError as error:
                raise StorageError(f"cannot write in {self._directory}: {error.strerror}") from error
            if not count:
                raise StorageError(f"cannot write in {self._directory}: nothing more can be written")
            done += count

    def close(self) -> None:
        """Give the room back."""
        with suppress(OSError):  # the descriptor is closed all the same, and what it held is of no use any more
            self._handle.close()
