"""A spill file: room on disk for what a job writes, gone with it; it knows no cache and checks nothing.

It is read and written past the page cache where the file system allows that: what is spilled is more than memory holds,
and would push out everything else. Then places on disk, lengths and memory must be aligned; what is not goes through
memory that is, page by page, and of a page of which only some bytes are written the others are read first.
"""

import errno
import fcntl
import mmap
import os
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flexref.errors import StorageError, in_gib
from flexref.tiers.disk import READERS
from flexref.tiers.file_reads import ended, fill, forget_pages, moved
from flexref.units import ALIGNMENT_BYTES, SPILL_BOUNCE_BYTES, aligned

Bytes = npt.NDArray[np.uint8]

AT_ONCE = READERS
"""Reads and writes that are under way together, of each sort."""

LOCKS = 64
"""Pages that are written in part by two threads at a time wait for each other; so many of them have locks apart."""


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


def _free_on(directory: str | Path) -> str:
    """How much is free where a folder lies, in words."""
    try:
        status = os.statvfs(directory)
    except OSError as error:
        return f"an unknown number ({error.strerror})"
    return in_gib(status.f_bavail * status.f_frsize)


class SpillFile:
    """A nameless file in a directory: room for cache and activations, gone when the process ends, however it ends.

    Several threads may read it and write it, each at places of its own.
    """

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

        self.direct = _bypasses_page_cache(self._handle.fileno())
        self._bounces: queue.SimpleQueue[Bytes] = queue.SimpleQueue()
        self.borrow(np.frombuffer(mmap.mmap(-1, SPILL_BOUNCE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8))
        self._locks = [threading.Lock() for _ in range(LOCKS)]
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="flexref spill")

    def borrow(self, memory: Bytes) -> None:
        """Use this memory of `SPILL_BOUNCE_BYTES`, which begins with a page, in place of its own; nobody reads or
        writes.
        """
        self._bounces = queue.SimpleQueue()
        for part in memory.reshape(AT_ONCE, -1):
            self._bounces.put(part)

    def read(self, offset: int, into: Bytes) -> None:
        """Fill `into` from `offset` on."""
        first, end = _direct_part(offset, into) if self.direct else (0, into.nbytes)
        self._fill(offset + first, into[first:end])
        for start, rest in ((0, into[:first]), (end, into[end:])):
            for page, some, skipped, part in self._bounced(offset + start, rest):
                self._fill(page, some)
                part[:] = some[skipped : skipped + part.nbytes]

    def forget_pages(self, offset: int, nbytes: int) -> None:
        """Let the next read of these bytes come from the disk itself, if they have been written to it."""
        forget_pages(self._handle.fileno(), offset, nbytes)

    def write(self, offset: int, source: Bytes) -> None:
        """Write all of `source` at `offset`."""
        first, end = _direct_part(offset, source) if self.direct else (0, source.nbytes)
        self._put(offset + first, source[first:end])
        for start, rest in ((0, source[:first]), (end, source[end:])):
            for page, some, skipped, part in self._bounced(offset + start, rest):
                with self._kept(page, some, skipped, skipped + part.nbytes):
                    some[skipped : skipped + part.nbytes] = part
                    self._put(page, some)

    def _bounced(self, offset: int, memory: Bytes) -> Iterator[tuple[int, Bytes, int, Bytes]]:
        """Parts of `memory` with the pages around each: (where these lie, memory for them, bytes before it, it)."""
        done = 0
        while done < memory.nbytes:
            skipped = (offset + done) % ALIGNMENT_BYTES
            with self._bounce() as bounce:
                some = bounce[: aligned(skipped + memory.nbytes - done)]
                part = memory[done : done + some.nbytes - skipped]
                yield offset + done - skipped, some, skipped, part
            done += part.nbytes

    def together(self, calls: Sequence[Callable[[], None]], done: Callable[[], None]) -> None:
        """Make calls that read or write this file, `AT_ONCE` at a time; `done` is called after each, in order.

        Whatever is raised: when this has ended none of them is under way.
        """
        running: list[Future[None]] = []
        try:
            running.extend(self._pool.submit(call) for call in calls)
            for each in running:
                each.result()
                done()
        finally:
            ended(running)

    def close(self) -> None:
        """Give the room back."""
        self._pool.shutdown()
        with suppress(OSError):  # the descriptor is closed all the same, and what it held is of no use any more
            self._handle.close()

    @property
    def _unit(self) -> int:
        """Places in the file at which a call may begin are its multiples, from an aligned one on."""
        return ALIGNMENT_BYTES if self.direct else 1

    def _fill(self, offset: int, into: Bytes) -> None:
        fill(self._handle.fileno(), into, offset, f"the {self.name}", self._unit)

    def _put(self, offset: int, source: Bytes) -> None:
        def write(done: int) -> int:
            try:
                return os.pwritev(self._handle.fileno(), [source[done:].data], offset + done)
            except OSError as error:
                raise StorageError(f"cannot write in {self._directory}: {error.strerror}") from error

        def none(done: int) -> StorageError:
            return StorageError(f"cannot write in {self._directory}: nothing more can be written")

        moved(source.nbytes, self._unit, write, none)

    @contextmanager
    def _bounce(self) -> Iterator[Bytes]:
        bounce = self._bounces.get()
        try:
            yield bounce
        finally:
            self._bounces.put(bounce)

    @contextmanager
    def _kept(self, offset: int, pages: Bytes, first: int, end: int) -> Iterator[None]:
        """Read those of `pages`, which are to be written at `offset`, of which bytes before `first` or from `end` on
        must stay; until they are written nobody else writes a part of them.
        """
        partial = {at - at % ALIGNMENT_BYTES for at in (first, end) if at % ALIGNMENT_BYTES}
        with ExitStack() as held:
            for lock in sorted({(offset + start) // ALIGNMENT_BYTES % LOCKS for start in partial}):
                held.enter_context(self._locks[lock])
            for start in partial:
                self._fill(offset + start, pages[start : start + ALIGNMENT_BYTES])
            yield


def _bypasses_page_cache(file: int) -> bool:
    """Let an open file be read and written past the page cache from now on; whether that is possible."""
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError:
        return False
    return True


def _direct_part(offset: int, memory: Bytes) -> tuple[int, int]:
    """From where to where memory can be moved directly: whole pages that are pages on disk, too."""
    first = -offset % ALIGNMENT_BYTES
    if (memory.ctypes.data + first) % ALIGNMENT_BYTES or first > memory.nbytes:
        return 0, 0
    return first, first + (memory.nbytes - first) // ALIGNMENT_BYTES * ALIGNMENT_BYTES
