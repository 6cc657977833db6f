"""A spill file: room on disk for what a job writes, gone with it; it knows no cache and checks nothing."""

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flexref.errors import StorageError, in_gib
from flexref.tiers.file_reads import forget_pages, preadv
from flexref.units import ALIGNMENT_BYTES, aligned


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
            done += preadv(self._handle.fileno(), into[done:], offset + done, f"the {self.name}")

    def forget_pages(self, offset: int, nbytes: int) -> None:
        """Let the next read of these bytes come from the disk itself, if they have been written to it."""
        forget_pages(self._handle.fileno(), offset, nbytes)

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
