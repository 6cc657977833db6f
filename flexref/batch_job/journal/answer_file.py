"""OUT or ERR: answers in the order of the input, with marks of how much of it is synced; it knows no journal."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from flexref.batch_job.journal.growing_file import GrowingFile
from flexref.batch_job.journal.line_facts import LineFacts
from flexref.batch_job.journal.records import ERR, MarkRecord
from flexref.errors import BatchError

READ_BYTES = 1 << 20
"""Read at a time to compute a checksum."""


class AnswerFile:
    """The file that `name` (OUT or ERR) is in a journal; all of its answers up to line `line` are in it.

    With `shared`, failed lines are answered in OUT, and there is no ERR.
    """

    def __init__(self, name: str, file: GrowingFile, *, shared: bool) -> None:
        self.name, self.file = name, file
        self._shared = shared
        self._digest = xxhash.xxh3_64()
        self.line = self.marked_line = self.marked_bytes = 0

    @property
    def unmarked_bytes(self) -> int:
        """Bytes after its latest mark."""
        return self.file.length - self.marked_bytes

    def takes(self, failed: bool) -> bool:
        """Whether an answer that failed, or did not, belongs here."""
        return self._shared or failed == (self.name == ERR)

    def begins_as(self, marks: Sequence[MarkRecord]) -> bool:
        """Whether it begins with bytes that one of `marks` vouches for."""
        least = min((mark for mark in marks if mark.bytes), key=lambda mark: mark.bytes, default=None)
        if least is None or least.bytes > self.file.length:
            return False
        running = xxhash.xxh3_64()
        self._read_to(least.bytes, 0, running)
        return running.hexdigest() == least.hash

    def recover(self, marks: Sequence[MarkRecord], *, finished: bool, force: bool) -> bool:
        """Cut it to the latest of `marks` that it reaches and matches; whether it had ended before the latest of all.

        What is beyond the marks was never vouched for: it is written again. Raises `BatchError` if it has other bytes
        than a mark says, or more than a job that is `finished` wrote, unless `force`.
        """
        ordered = sorted(marks, key=lambda mark: (mark.bytes, mark.line))
        at, running = 0, xxhash.xxh3_64()
        for mark in ordered:
            if mark.bytes > self.file.length:
                break
            at = self._read_to(mark.bytes, at, running)
            if running.hexdigest() == mark.hash:
                self._digest = running.copy()
                self.line, self.marked_line, self.marked_bytes = mark.line, mark.line, mark.bytes
            elif not force:
                raise BatchError(
                    f"{self.file.path} was changed: its first {mark.bytes} bytes are not those that the job wrote; "
                    "restore it, remove it to have it written anew, or begin anew with --force"
                )
        if finished and ordered and self.file.length > ordered[-1].bytes and not force:
            raise BatchError(
                f"{self.file.path} was changed: it has {self.file.length} bytes, the finished job wrote "
                f"{ordered[-1].bytes}; shorten it to those, or begin anew with --force"
            )
        short = bool(ordered) and self.file.length < ordered[-1].bytes
        self.file.cut(self.marked_bytes)
        return short

    def _read_to(self, end: int, at: int, running: "xxhash.xxh3_64") -> int:
        while at < end and (data := self.file.read(at, min(READ_BYTES, end - at))):
            running.update(data)
            at += len(data)
        return at

    def append(self, data: bytes | bytearray, line: int) -> None:
        """Append answers in their order; all up to line `line` that belong here are in it then, not synced yet."""
        if data:
            self.file.append(data)
            self._digest.update(data)
        self.line = line

    def mark(self) -> MarkRecord | None:
        """Sync it, and what vouches for that; None if nothing has changed since the latest mark."""
        if self.line == self.marked_line:
            return None
        if self.unmarked_bytes:
            self.file.check_in_place()
            self.file.sync()
        self.marked_line, self.marked_bytes = self.line, self.file.length
        return MarkRecord(self.name, self.line, self.file.length, self._digest.hexdigest())


def lie_in(
    files: Sequence[AnswerFile], facts: LineFacts, numbers: npt.NDArray[np.int64], *, marked: bool
) -> npt.NDArray[np.bool_]:
    """Whether the answers to these lines, which are done, lie in a file; `marked`: in the part of it that is marked."""
    failed = facts.have_failed(numbers)
    found = np.zeros(len(numbers), bool)
    for file in files:
        mine = np.where(failed, file.takes(True), file.takes(False))
        found |= mine & (numbers <= (file.marked_line if marked else file.line))
    return found
