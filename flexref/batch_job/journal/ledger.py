"""Keeps a job's journal, OUT and ERR in step, one call after the other: what is synced, written and marked, and when.

The order of writes is what makes a job durable: an answer goes to the journal, which is synced; only then does it count
and go to OUT or ERR, in the order of the input; these are synced before a mark says how far they are.
"""

import os
import platform
import time
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from flexref.batch_job.journal.answer_file import AnswerFile
from flexref.batch_job.journal.compaction import LATEST_STATES, Compaction
from flexref.batch_job.journal.growing_file import GrowingFile
from flexref.batch_job.journal.line_facts import DONE, FAILED, ExpectedLines
from flexref.batch_job.journal.reading import JournalContents
from flexref.batch_job.journal.records import (
    ERR,
    OUT,
    AnsweredRecord,
    FinishedRecord,
    OpenedRecord,
    SyncedRecord,
    decoded,
    encoded,
)
from flexref.errors import BatchError, StorageError
from flexref.units import MIB

RECORD_BYTES = 4096
"""Read at a time of a record whose length is not known: most answers are shorter."""

FINISHED_BYTES = MIB
"""Of droppable records in a finished journal that are worth its being written anew."""


@dataclass(frozen=True, slots=True)
class WritingPace:
    """How often things are written; none of it changes a byte of OUT or ERR.

    sync_s: at most so long does an answer wait to be synced. mark_bytes, mark_s: OUT and ERR are synced after so many
    bytes or seconds. compact_bytes: so many bytes that nobody needs may lie in the journal. queue_bytes: so many may
    wait to be written before whoever adds more waits, too; as many are held so that they need not be read again.
    """

    sync_s: float = 0.2
    mark_bytes: int = 4 * MIB
    mark_s: float = 10.0
    compact_bytes: int = 64 * MIB
    queue_bytes: int = 4 * MIB


class Answered(NamedTuple):
    """An answer as it is handed over: its record as bytes, and its data."""

    record: bytes
    number: int
    failed: bool
    data: bytes


class Kept(NamedTuple):
    """Tokens of a row in flight as they are handed over."""

    record: bytes
    number: int
    choice: int
    tokens: "array[int]"


class Noted(NamedTuple):
    """A note as it is handed over."""

    record: bytes
    is_state: bool


Entry = Answered | Kept | Noted


class JobLedger:
    """A journal that is open and locked, what it says, and the files that are written from it.

    One thread at a time may call it. After any error nothing more may be written: the next run goes on.
    """

    def __init__(
        self,
        journal: GrowingFile,
        contents: JournalContents,
        files: Sequence[AnswerFile],
        expected: ExpectedLines,
        pace: WritingPace,
    ) -> None:
        self.journal, self.contents, self.files, self.expected, self.pace = journal, contents, files, expected, pace
        self.facts = contents.facts
        self.done, self.failed = self.facts.count(DONE), self.facts.count(FAILED)
        self.synced_bytes = journal.length
        self._stated_bytes = 0
        self._gone_before = contents.opened.gone_bytes if contents.opened else 0
        self._waiting: list[Answered] = []
        self._fresh: dict[int, bytes] = {}
        self._fresh_bytes = 0
        self._marked_at = time.monotonic()

    def write(self, entries: Iterable[Entry]) -> None:
        """Append entries to the journal; they count when `sync` has returned."""
        data = self._vouched()
        start = self.journal.length
        for entry in entries:
            self._take(entry, start + len(data))
            data += entry.record
        self.journal.append(data)

    def _vouched(self) -> bytearray:
        """What says how much of the journal is synced, as often as that changes; it precedes what is written next."""
        if self.synced_bytes == self._stated_bytes:
            return bytearray()
        self._stated_bytes = self.synced_bytes
        record = encoded(SyncedRecord(self.synced_bytes))
        self.contents.droppable_bytes += len(record)
        return bytearray(record)

    def _append(self, record: bytes) -> None:
        self.journal.append(self._vouched() + record)

    def begin(self) -> None:
        """Say which run of the job this is, and whose."""
        opened = OpenedRecord(self.contents.run + 1, os.getpid(), platform.node(), self._errors(), self._gone_bytes)
        self._append(encoded(opened))
        self.contents.opened = opened
        self.sync()
        self.settle()

    @property
    def _gone_bytes(self) -> int:
        return self._gone_before + self.journal.gone_bytes + sum(file.file.gone_bytes for file in self.files)

    @property
    def written_bytes(self) -> int:
        """Bytes that this run and those before it wrote to the journal, OUT and ERR, as far as they are known."""
        return self._gone_bytes + self.journal.length + sum(file.file.length for file in self.files)

    def _errors(self) -> str | None:
        """Where ERR lies, seen from the folder of OUT: both may be moved together."""
        paths = {file.name: file.file.path for file in self.files}
        return os.path.relpath(paths[ERR], paths[OUT].parent) if ERR in paths else None

    def _take(self, entry: Entry, offset: int) -> None:
        match entry:
            case Answered():
                self.facts.offsets[entry.number] = offset
                self._waiting.append(entry)
                if self._fresh_bytes < self.pace.queue_bytes:
                    self._fresh[entry.number] = entry.data
                    self._fresh_bytes += len(entry.data)
                self.contents.tokens.pop(entry.number, None)
            case Kept():
                self.contents.tokens.setdefault(entry.number, {})[entry.choice] = entry.tokens
                self.contents.droppable_bytes += len(entry.record)
            case Noted():
                self.contents.states += entry.is_state
                if self.contents.states > 2 * LATEST_STATES:  # half of those that are not the latest will go
                    self.contents.droppable_bytes += len(entry.record) // 2 * entry.is_state

    @property
    def unsynced(self) -> bool:
        """Whether the journal has bytes that are not synced."""
        return self.journal.length > self.synced_bytes

    def sync(self) -> None:
        """Return when all that was written is durable; the answers among it count from now on."""
        if not self.unsynced:
            return
        self.journal.check_in_place()
        self.journal.sync()
        self.synced_bytes = self.journal.length
        for number, failed in ((entry.number, entry.failed) for entry in self._waiting):
            if not self.facts.is_done(number):  # it may have come twice: the second is the same
                self.done, self.failed = self.done + 1, self.failed + failed
            self.facts.put(number, failed, self.facts.offsets[number])
        self._waiting.clear()

    def settle(self) -> None:
        """Append to OUT and ERR what is durable and next in order; mark them, compact the journal, when it is time."""
        for file in self.files:
            self._advance(file)
        due = time.monotonic() - self._marked_at >= self.pace.mark_s
        if due or any(file.unmarked_bytes >= self.pace.mark_bytes for file in self.files):
            self.mark()
        if self.contents.droppable_bytes >= self.pace.compact_bytes:
            self.compact()

    def _advance(self, file: AnswerFile) -> None:
        data, line = bytearray(), file.line
        while (number := self.facts.next_expected(line)) is not None and self.facts.is_done(number):
            line = number
            if file.takes(self.facts.has_failed(number)):
                data += self._answer(number)
            if len(data) >= self.pace.mark_bytes:
                file.append(data, line)
                data = bytearray()
        file.append(data, self.facts.lines if number is None else line)

    def _answer(self, number: int) -> bytes:
        """The answer to a line, with its line feed; what was handed over long ago is read from the journal."""
        fresh = self._fresh.pop(number, None)
        if fresh is not None:
            self._fresh_bytes -= len(fresh)
            return fresh + b"\n"
        offset, nbytes = self.facts.offsets[number], RECORD_BYTES
        while not (data := self.journal.read(offset, nbytes)).count(b"\n") and len(data) == nbytes:
            nbytes *= 8
        record = decoded(data[: data.find(b"\n") + 1], f"{self.journal.path}, byte {offset}")
        if not isinstance(record, AnsweredRecord) or record.number != number:
            raise StorageError(f"{self.journal.path} is damaged at byte {offset}, where line {number} was answered")
        return bytes(record.data) + b"\n"

    def mark(self) -> None:
        """Sync OUT and ERR, and say in the journal how far they are (durable with the next `sync`)."""
        self._marked_at = time.monotonic()
        for file in self.files:
            before, mark = file.marked_bytes, file.mark()
            if mark is not None:
                record = encoded(mark)
                self.contents.marks[file.name].append(mark)
                self.contents.droppable_bytes += len(record) + mark.bytes - before
                self._append(record)

    def compact(self) -> None:
        """Write the journal anew without what nobody needs any more."""
        self.mark()
        self.sync()
        if self.contents.opened is not None:
            gone_bytes = self._gone_bytes + self.journal.length
            self.contents.opened = msgspec.structs.replace(self.contents.opened, gone_bytes=gone_bytes)
        Compaction(self.journal, self.contents, self.files, self.expected.hashes).run()
        self.synced_bytes, self._stated_bytes = self.journal.length, 0

    def finish(self) -> None:
        """Bring OUT and ERR to their end, and say so. Raises `BatchError` if a line has no answer."""
        self.sync()
        missing = self.facts.first_missing()
        if missing is not None:
            raise BatchError(f"line {missing} of the input has no answer: the job cannot end")
        self.settle()
        self.mark()
        if not self.contents.finished:
            self._append(encoded(FinishedRecord()))
            self.contents.finished = True
        self.sync()
        for file in self.files:
            file.file.check_in_place()
        if self.contents.droppable_bytes >= FINISHED_BYTES:
            self.compact()

    def close(self) -> None:
        """Give files and locks back; nothing is written."""
        for file in self.files:
            file.file.close()
        self.journal.close()
