"""Files as a tier: direct reads of weights from several threads, and a spill file for what a job writes."""

import errno
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flexref.errors import StorageError, in_gib
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

    checked = True
    """What is read must match the file's checksums."""

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
        self._pool = _readers()

    @property
    def direct(self) -> bool:
        """Whether large reads bypass the page cache."""
        return self._direct_file is not None

    def read(self, offset: int, into: npt.NDArray[np.uint8]) -> None:
        """Fill `into` from `offset` on, in chunks that several threads read; `StorageError` if bytes are missing."""
        if offset + into.nbytes > self._size:
            raise StorageError(f"{self.path} ends at byte {self._size}, needed {offset + into.nbytes}")
        chunks = range(0, into.nbytes, CHUNK_BYTES)
        pieces = [(offset + start, into[start : start + CHUNK_BYTES]) for start in chunks]
        if len(pieces) == 1:
            self._piece(*pieces[0])
        else:
            list(self._pool.map(lambda piece: self._piece(*piece), pieces))

    def read_rows(self, offsets: npt.NDArray[np.int64], into: npt.NDArray[np.uint8]) -> None:
        """into (R, row bytes): one short read per row, through the page cache, several at a time."""

        def some(part: npt.NDArray[np.int64]) -> None:
            for row in part:
                self._buffered(int(offsets[row]), into[row])

        list(self._pool.map(some, np.array_split(np.arange(len(offsets)), READERS)))

    def check_unchanged(self) -> None:
        """`StorageError` if somebody wrote to the file since it was opened, by its size and its times.

        Checksums cannot tell at every reading: bytes that came from disk are checked the first time they are read.
        A file that another one has taken the name of has lost a link, and not a byte.
        """
        found, known = os.fstat(self._file), self._stat
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
                status = os.statvfs(directory)
                free = status.f_bavail * status.f_frsize
                raise StorageError(
                    f"the disk of {directory} is full: {in_gib(nbytes)} are needed, {in_gib(free)} are free"
                ) from error
            raise StorageError(f"cannot reserve {in_gib(nbytes)} in {directory}: {error.strerror}") from error

    def read(self, offset: int, into: npt.NDArray[np.uint8]) -> None:
        """Fill `into` from `offset` on."""
        done = 0
        while done < into.nbytes:
            done += _preadv(self._handle.fileno(), into[done:], offset + done, f"the spill file in {self._directory}")

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
        self._handle.close()
