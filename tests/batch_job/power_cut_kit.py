"""A disk that may lose power: what was synced is there afterwards, of the rest any part; and that may fail at any call.

It stands in place of `os` in the modules that write; files really lie in a folder of the test.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WRITERS = ("flexref.batch_job.journal.growing_file", "flexref.files")
"""The modules that call the operating system to write a job's files."""


class PowerCut(BaseException):
    """The machine is off: no call does anything any more."""


Draw = Callable[[int], int]
"""A whole number from 0 to the given one."""


class Disk:
    """The folder `root`, and what of it is durable. After `calls_left` more calls that change it, `failure` happens.

    `failure` is an error that one call raises, after it has written a part; or `PowerCut`, and then every call does.
    As Linux does, it takes what a sync could not write for written: it can be read, and never reaches the disk unless
    it is written anew.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls = 0
        self.calls_left: int | None = None
        self.failure: BaseException = PowerCut()
        self._contents: dict[int, bytes] = {}
        self._names: dict[str, bytes | int] = {}
        self._given_up: dict[int, set[int]] = {}
        """By inode, bytes that a failed sync left unwritten."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _call(self) -> bool:
        """Count a call; whether it is the one that fails."""
        self.calls += 1
        if self.calls_left is None:
            return False
        self.calls_left -= 1
        if self.calls_left < 0 and isinstance(self.failure, PowerCut):
            raise self.failure
        return self.calls_left == 0

    def arm(self, calls: int | None, failure: BaseException | None = None) -> None:
        """Let the call number `calls` from now on fail; None: none."""
        self.calls_left, self.failure = calls, failure or PowerCut()

    def open(self, path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        fails = bool(flags & os.O_CREAT) and self._call()
        if fails:
            raise self.failure
        descriptor = os.open(path, flags, mode, **options)
        status = os.fstat(descriptor)
        if not status.st_size:
            self._contents[status.st_ino] = b""
            self._given_up.pop(status.st_ino, None)
        return descriptor

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        if self._call():
            os.pwrite(descriptor, memoryview(data)[: len(data) // 2], offset)
            raise self.failure
        # The operating system may write less than it is asked to.
        count = os.pwrite(descriptor, memoryview(data)[: max(1, len(data) * 2 // 3)], offset)
        self._given_up.get(os.fstat(descriptor).st_ino, set()).difference_update(range(offset, offset + count))
        return count

    def ftruncate(self, descriptor: int, length: int) -> None:
        if self._call():
            raise self.failure
        os.ftruncate(descriptor, length)

    def fdatasync(self, descriptor: int) -> None:
        self.fsync(descriptor)

    def fsync(self, descriptor: int) -> None:
        inode = os.fstat(descriptor).st_ino
        if self._call():
            unwritten = range(len(self._contents.get(inode, b"")), os.fstat(descriptor).st_size)
            self._given_up.setdefault(inode, set()).update(unwritten)
            raise self.failure
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            self._names = {entry.name: entry.inode() for entry in os.scandir(self.root)}
            return
        self._contents[inode] = self._written(inode, os.pread(descriptor, 1 << 30, 0))

    def _written(self, inode: int, content: bytes) -> bytes:
        """What of a file's content the operating system writes to the disk."""
        data = bytearray(content)
        for place in self._given_up.get(inode, ()):
            data[place : place + 1] = bytes(place < len(data))
        return bytes(data)

    def link(self, *paths: Any, **options: Any) -> None:
        if self._call():
            raise self.failure
        os.link(*paths, **options)

    def replace(self, *paths: Any) -> None:
        if self._call():
            raise self.failure
        os.replace(*paths)

    def lose_power(self, draw: Draw) -> None:
        """Leave in the folder what a power cut may leave of it."""
        self.arm(None)
        now = {
            entry.name: (entry.inode(), self._written(entry.inode(), Path(entry).read_bytes()))
            for entry in os.scandir(self.root)
        }
        for name in sorted({*now, *self._names}):
            inode, content = now.get(name, (None, b""))
            before = self._names.get(name)
            path = self.root / name
            if before != inode and draw(1):  # the name was not synced
                if before is None:
                    path.unlink()
                    continue
                inode, content = before, self._contents[before]
            assert inode is not None
            path.write_bytes(survivor(self._contents.get(inode, b""), content, draw))
        self._given_up.clear()
        for name in self._leave():
            inode = os.stat(self.root / name).st_ino
            self._contents[inode] = (self.root / name).read_bytes()

    def _leave(self) -> list[str]:
        self._names = {entry.name: entry.inode() for entry in os.scandir(self.root)}
        return list(self._names)


def survivor(durable: bytes, content: bytes, draw: Draw) -> bytes:
    """What a power cut may leave of a file of which `durable` was synced, and that has `content`."""
    if not content.startswith(durable):  # it was shortened, and that was not synced
        return content if draw(1) else durable
    tail = bytearray(content[len(durable) :])
    del tail[draw(len(tail)) :]
    if draw(1):  # blocks reach the disk in any order, and the length before them
        begin = draw(len(tail))
        end = begin + draw(len(tail) - begin)
        tail[begin:end] = bytes(end - begin)
    return durable + bytes(tail)


@contextmanager
def installed(disk: Disk) -> Iterator[Disk]:
    """The disk in place of `os` in the modules that write."""
    with pytest.MonkeyPatch.context() as patch:
        for module in WRITERS:
            patch.setattr(f"{module}.os", disk)
        yield disk


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
BROKEN = OSError(errno.EIO, os.strerror(errno.EIO))
