"""Writes a journal anew without what nobody needs any more: whole or not at all, in bounded memory.

What goes: answers that lie in OUT or ERR and are marked, all but the latest marks, tokens of lines that are done, and
every other one of the older states. Of lines whose answers go there stays that they are done, failed or not, and their
hash.
"""

import os
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from flexref.batch_job.journal.answer_file import AnswerFile, lie_in
from flexref.batch_job.journal.growing_file import GOES_ON, GrowingFile, told
from flexref.batch_job.journal.line_facts import DONE
from flexref.batch_job.journal.reading import STATE, JournalContents, JournalReader, PlacedRecord
from flexref.batch_job.journal.records import (
    AnsweredRecord,
    FinishedRecord,
    LinesRecord,
    MarkRecord,
    NoteRecord,
    TokensRecord,
    encoded,
)
from flexref.errors import StorageError
from flexref.files import NewFile, successor
from flexref.units import MIB

LINES_PER_RECORD = 8192
"""Of lines that are told of together: their record has some 90 KiB."""

LATEST_STATES = 2000
"""States that are never thinned out: those of the last five hours, at one every ten seconds."""


class Compaction:
    """A journal on its way to a shorter one; everything in it is synced, and its files are marked."""

    def __init__(
        self,
        journal: GrowingFile,
        contents: JournalContents,
        files: Sequence[AnswerFile],
        hashes: npt.NDArray[np.uint64],
    ) -> None:
        self._journal, self._contents, self._files, self._hashes = journal, contents, files, hashes
        self._offsets: dict[int, int] = {}
        self._states_seen = self._states_kept = 0
        self._length = 0

    def run(self) -> None:
        """Let the shorter journal take the place of the old one, which `journal` and `contents` then speak of."""
        path = self._journal.path
        with told(path):
            file = successor(path)
            if file is None:
                raise StorageError(f"cannot write {path}: it is no regular file")
            descriptor = -1
            try:
                self._write(file)
                descriptor = os.dup(file.descriptor)  # it keeps the lock that the new file has had from the first
                file.publish()
            except BaseException:
                if descriptor >= 0:
                    os.close(descriptor)
                raise
            finally:
                file.close()
        self._journal.become(descriptor, self._length)
        self._update()

    def _write(self, file: NewFile) -> None:
        data = bytearray()
        for record in self._records():
            data += record
            if len(data) >= MIB:
                self._flush(file, data)
        self._flush(file, data)

    def _flush(self, file: NewFile, data: bytearray) -> None:
        file.write(memoryview(bytes(data)), self._length)
        self._length += len(data)
        data.clear()

    def _records(self) -> Iterator[bytes]:
        contents = self._contents
        at = 0
        for record in self._fixed():
            at += len(record)
            yield record
        reader = JournalReader(self._journal.path)
        for placed in reader:
            if self._is_kept(placed):
                if isinstance(placed.record, AnsweredRecord):
                    self._offsets[placed.record.number] = at
                at += placed.nbytes
                yield self._journal.read(placed.offset, placed.nbytes)
        if reader.end != self._journal.length:  # what follows would be lost
            raise StorageError(f"{reader.path} is damaged at byte {reader.end}: it cannot be written anew; {GOES_ON}")
        for number, choices in contents.tokens.items():
            yield from (encoded(TokensRecord(number, choice, list(kept))) for choice, kept in choices.items())
        if contents.finished:
            yield encoded(FinishedRecord())

    def _fixed(self) -> Iterator[bytes]:
        """What is known without reading the old journal."""
        contents = self._contents
        yield encoded(contents.header)
        if contents.opened is not None:
            yield encoded(contents.opened)
        yield from (encoded(record) for record in self._lines())
        yield from (encoded(mark) for file in self._files if (mark := self._latest_mark(file)) is not None)

    def _is_kept(self, placed: PlacedRecord) -> bool:
        record = placed.record
        if isinstance(record, AnsweredRecord):
            return self._contents.facts.offsets[record.number] == placed.offset and not self._is_marked(record.number)
        if isinstance(record, NoteRecord):
            return record.note != STATE or self._is_kept_state()
        return False

    def _is_kept_state(self) -> bool:
        self._states_seen += 1
        kept = self._states_seen % 2 == 1 or self._states_seen > self._contents.states - LATEST_STATES
        self._states_kept += kept
        return kept

    def _is_marked(self, number: int) -> bool:
        """Whether the answer to a line that is done lies in its file, and is marked."""
        failed = self._contents.facts.has_failed(number)
        return any(file.takes(failed) and number <= file.marked_line for file in self._files)

    def _lines(self) -> Iterator[LinesRecord]:
        """Of all lines whose answers go."""
        facts = self._contents.facts
        done = facts.numbers(DONE)
        gone = done[lie_in(self._files, facts, done, marked=True)]
        for numbers in np.split(gone, np.flatnonzero(np.diff(gone // LINES_PER_RECORD)) + 1):
            if len(numbers):
                first = int(numbers[0])
                bits = np.zeros((2, LINES_PER_RECORD), bool)
                bits[0, numbers - first] = True
                bits[1, numbers - first] = facts.have_failed(numbers)
                done_bits, failed_bits = (np.packbits(flags, bitorder="little").tobytes() for flags in bits)
                yield LinesRecord(first, done_bits, failed_bits, self._hashes[numbers - 1].astype("<u8").tobytes())

    def _latest_mark(self, file: AnswerFile) -> MarkRecord | None:
        """What vouches for the file as it is marked now."""
        marks = self._contents.marks[file.name]
        return next((mark for mark in reversed(marks) if mark.line == file.marked_line), None)

    def _update(self) -> None:
        """Let `contents` speak of the new journal."""
        contents, facts = self._contents, self._contents.facts
        facts.offsets_array[:] = 0
        for number, offset in self._offsets.items():
            facts.offsets[number] = offset
        for file in self._files:
            mark = self._latest_mark(file)
            contents.marks[file.name] = [] if mark is None else [mark]
        contents.states, contents.droppable_bytes = self._states_kept, 0
