"""A file that one process appends to, holds a lock on, and syncs; it knows nothing of what is in it.

The lock is the descriptor's (flock): whatever ends the process ends it, too.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flexref.errors import StorageError, how_many
from flexref.files import sync_folder
from flexref.units import MIB

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What a file system says that has no locks."""

GOES_ON = "what was synced is kept: give the same command again when this is mended"


class FileInUse(StorageError):
    """Another process, or another job of this one, holds the lock of a file."""


@contextmanager
def told(path: Path, doing: str = "write") -> Iterator[None]:
    """What the file system refuses, as a `StorageError` that names the file."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot {doing} {path}: {error.strerror or error}; {GOES_ON}") from error


class GrowingFile:
    """The regular file `path`, locked and open to be read and appended to; `length` bytes are in it.

    `gone_bytes` were in it, and are not any more, or were written once more in their places.

    With `create` it is made if it is not there. Raises `StorageError`, and `FileInUse` if somebody else holds it.
    `locked` says whether the file system has locks.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        self.locked = True
        self.gone_bytes = 0
        with told(path, "open"):
            while True:
                flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
                self.descriptor = os.open(path, flags | (os.O_CREAT if create else 0), 0o666)
                try:
                    if self._held():
                        return
                except BaseException:
                    self.close()
                    raise
                self.close()  # it was replaced between its opening and its locking

    def _held(self) -> bool:
        """Lock it; whether it still is what its path leads to."""
        found = os.fstat(self.descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise StorageError(f"cannot open {self.path}: it is no regular file")
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileInUse(f"{self.path} is being written by another job: wait for its end, or end it") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            self.locked = False
        self.length = os.fstat(self.descriptor).st_size
        return self.in_place()

    def in_place(self) -> bool:
        """Whether its path still leads to it."""
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        ours = os.fstat(self.descriptor)
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def check_in_place(self) -> None:
        """`StorageError` if somebody removed, replaced or shortened it."""
        with told(self.path, "find"):
            if not self.in_place():
                raise StorageError(f"{self.path} was removed or replaced while the job ran; {GOES_ON}")
        self._check_length()

    def _check_length(self) -> None:
        """`StorageError` if somebody shortened it: what is written next would leave a hole."""
        with told(self.path, "look at"):
            found = os.fstat(self.descriptor).st_size
        if found < self.length:
            had = f"it had {how_many(self.length, 'byte')}, now it has {found}"
            raise StorageError(f"{self.path} was shortened while the job ran: {had}; {GOES_ON}")

    def append(self, data: bytes | bytearray) -> int:
        """Write all of `data` at the end; the offset at which it stands. It is not synced yet.

        `StorageError` if it was shortened.
        """
        self._check_length()
        offset = self.length
        for count in self._write(data, offset):
            self.length += count
        return offset

    def write_again(self, begin: int, end: int) -> None:
        """Write the bytes from `begin` to before `end` once more, as they are.

        After a sync that failed Linux holds them for written: they can be read, and no other sync brings them to the
        disk.
        """
        while begin < end and (data := self.read(begin, min(MIB, end - begin))):
            for count in self._write(data, begin):
                begin += count
                self.gone_bytes += count

    def _write(self, data: bytes | bytearray, offset: int) -> Iterator[int]:
        """Write all of `data` at `offset`; how many bytes, whenever some are written."""
        rest = memoryview(data)
        with told(self.path):
            while rest:
                count = os.pwrite(self.descriptor, rest, offset)
                if not count:
                    raise OSError(errno.ENOSPC, "nothing more can be written")
                yield count
                offset, rest = offset + count, rest[count:]

    def read(self, offset: int, nbytes: int) -> bytes:
        """Bytes from `offset` on; fewer where the file ends."""
        with told(self.path, "read"):
            return os.pread(self.descriptor, nbytes, offset)

    def sync(self) -> None:
        """Return when all that was appended has reached the disk."""
        with told(self.path, "sync"):
            os.fdatasync(self.descriptor)

    def cut(self, length: int) -> None:
        """Forget what is beyond `length` bytes; returns when that has reached the disk."""
        if length < self.length:
            with told(self.path, "shorten"):
                os.ftruncate(self.descriptor, length)
            self.gone_bytes += self.length - length
            self.length = length
        with told(self.path, "sync"):
            os.fsync(self.descriptor)

    def sync_name(self) -> None:
        """Return when the folder's entry of it has reached the disk."""
        folder = Path(os.path.realpath(self.path)).parent  # a link's own folder says nothing of it
        with told(folder, "sync"):
            sync_folder(folder)

    def become(self, descriptor: int, length: int) -> None:
        """Go on with a file that took the path of this one; its descriptor is this object's from now on."""
        self.gone_bytes += self.length
        old, self.descriptor, self.length = self.descriptor, descriptor, length
        with suppress(OSError):  # a late failure of a file that has no name any more
            os.close(old)

    def close(self) -> None:
        """Close it and give its lock back; once is enough, and nothing is raised: what counts was synced."""
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            with suppress(OSError):
                os.close(descriptor)
