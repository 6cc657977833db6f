"""Reads a journal: its records, what they say of the job, its notes; takes no lock and changes nothing.

A journal may be read while its job runs. A torn end, as a power cut leaves it, is where reading ends.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flexref.batch_job.identity import Identity
from flexref.batch_job.journal.line_facts import DONE, FAILED, LineFacts
from flexref.batch_job.journal.records import (
    ERR,
    FORMAT,
    OUT,
    AnsweredRecord,
    AnyRecord,
    FinishedRecord,
    HeaderRecord,
    LinesRecord,
    MarkRecord,
    NoteRecord,
    OpenedRecord,
    SyncedRecord,
    TokensRecord,
    decoded,
)
from flexref.errors import BatchError, StorageError
from flexref.files import open_regular

SUFFIX = ".journal"

LONGEST_RECORD_BYTES = 1 << 28
"""Bounds what is read of a file that has no line feeds."""

STATE = "state"
"""The kind of note of which there are many."""


class PlacedRecord(NamedTuple):
    """A record, and where it stands in the journal."""

    offset: int
    nbytes: int
    record: AnyRecord


class LineFact(NamedTuple):
    """A line that is answered: its number, and whether it failed."""

    number: int
    failed: bool


class JournalNote(NamedTuple):
    """A note of a job: its kind (`run`, `state`, `event`, `end` ...) and its values, fit for JSON."""

    kind: str
    values: dict[str, Any]


def journal_path(output: str | Path) -> Path:
    """Where the journal of an output lies: beside the file itself, whatever link leads to it."""
    path = Path(output).resolve()
    return path.with_name(path.name + SUFFIX)


class JournalReader:
    """The records of the journal `path`, in order; `end` is the byte after the last good one that was given.

    Raises `StorageError` if it cannot be read, and `BatchError` for a bad record among those that were synced.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end = 0

    def __iter__(self) -> Iterator[PlacedRecord]:
        try:
            with open_regular(self.path) as file:
                yield from self._records(iter(lambda: file.readline(LONGEST_RECORD_BYTES), b""))
        except OSError as error:
            raise StorageError(f"cannot read {self.path}: {error.strerror or error}") from error

    def _records(self, lines: Iterator[bytes]) -> Iterator[PlacedRecord]:
        offset = 0
        for line in lines:
            record = decoded(line, f"{self.path}, byte {offset}")
            if record is None:
                if line.endswith(b"\n") or len(line) == LONGEST_RECORD_BYTES:
                    self._check_torn(lines, offset)
                return  # what had no line feed was the end: it may be growing while it is read
            self.end = offset + len(line)
            yield PlacedRecord(offset, len(line), record)
            offset = self.end

    def _check_torn(self, lines: Iterator[bytes], bad: int) -> None:
        """`BatchError` if what follows the bad record at byte `bad` says that it had been synced.

        The blocks of an unsynced end reach the disk in any order: that good records follow a bad one is no damage yet.
        """
        for line in lines:
            record = decoded(line, str(self.path))
            if isinstance(record, SyncedRecord) and record.bytes > bad:
                raise BatchError(
                    f"{self.path} is damaged at byte {bad}, in the midst of what was synced: restore it from a copy, "
                    "or begin anew with --force"
                )


@dataclass(slots=True)
class JournalContents:
    """What a journal says of its job. `marks`: of OUT and ERR, in order; `run`: the number of its latest run.

    `tokens`: by line and choice, of lines that are not done. `end`: the byte at which its good part ends, of which the
    first `synced_bytes` are said to be synced.
    `droppable_bytes`: of records that a compaction may leave out.
    """

    path: Path
    identity: Identity
    header: HeaderRecord
    facts: LineFacts
    marks: dict[str, list[MarkRecord]] = field(default_factory=lambda: {OUT: [], ERR: []})
    tokens: dict[int, dict[int, "array[int]"]] = field(default_factory=dict)
    opened: OpenedRecord | None = None
    finished: bool = False
    states: int = 0
    droppable_bytes: int = 0
    end: int = 0
    synced_bytes: int = 0

    @property
    def expected(self) -> int:
        """How many lines must be answered."""
        return self.header.expected

    @property
    def run(self) -> int:
        """How many times the job was begun or resumed."""
        return self.opened.run if self.opened else 0

    @property
    def done(self) -> int:
        """How many lines are answered, failed ones included."""
        return self.facts.count(DONE)

    @property
    def failed(self) -> int:
        """How many lines failed."""
        return self.facts.count(FAILED)

    def answered(self) -> Iterator[LineFact]:
        """The lines that are answered, in the order of the input."""
        return (LineFact(number, self.facts.has_failed(number)) for number in map(int, self.facts.numbers(DONE)))

    def take(self, placed: PlacedRecord) -> None:
        """Learn what a record says."""
        record = placed.record
        match record:
            case AnsweredRecord():
                self.facts.put(record.number, record.failed, placed.offset)
                self.tokens.pop(record.number, None)
            case TokensRecord():
                if not self.facts.is_done(record.number):
                    self.tokens.setdefault(record.number, {})[record.choice] = array("q", record.tokens)
            case LinesRecord():
                numbers, failed, _ = lines_in(record)
                self.facts.put_many(numbers, failed)
            case MarkRecord():
                self.marks[record.file].append(record)
            case HeaderRecord():
                self.header, self.identity = record, Identity.of(record.identity)
            case OpenedRecord():
                self.opened = record
            case SyncedRecord():
                self.synced_bytes = record.bytes
            case FinishedRecord():
                self.finished = True
            case NoteRecord():
                self.states += record.note == STATE
        if isinstance(record, AnsweredRecord | TokensRecord | MarkRecord | SyncedRecord):
            self.droppable_bytes += placed.nbytes
        self.end = placed.offset + placed.nbytes


def lines_in(record: LinesRecord) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.uint64]]:
    """The numbers of the lines that a record stands for, whether each failed, and its hash."""
    done = np.unpackbits(np.frombuffer(record.done, np.uint8), bitorder="little")
    failed = np.unpackbits(np.frombuffer(record.failed, np.uint8), bitorder="little")
    places = np.flatnonzero(done)
    return places + record.first, failed[places] > 0, np.frombuffer(record.hashes, "<u8").astype(np.uint64)


def read_journal(path: str | Path) -> JournalContents:
    """What the journal at `path` says; see `journal_path` for where an output has it.

    Raises `StorageError` if it cannot be read, `BatchError` if it is none, is damaged or has another format.
    """
    reader = JournalReader(Path(path))
    contents: JournalContents | None = None
    for placed in reader:
        if contents is None:
            contents = _begun(reader.path, placed.record)
        contents.take(placed)
    if contents is None:
        raise BatchError(f"{path} is no journal of flexref batch: it does not begin with what job it is")
    return contents


def _begun(path: Path, record: AnyRecord) -> JournalContents:
    if not isinstance(record, HeaderRecord):
        raise BatchError(f"{path} is no journal of flexref batch: it does not begin with what job it is")
    if record.format != FORMAT:
        raise BatchError(f"{path} has format {record.format}; this flexref reads format {FORMAT}")
    return JournalContents(path, Identity.of(record.identity), record, LineFacts(record.lines))


def read_notes(path: str | Path) -> Iterator[JournalNote]:
    """The notes of the journal at `path`, in the order in which they were made; raises as `read_journal` does."""
    for placed in JournalReader(Path(path)):
        if isinstance(placed.record, NoteRecord):
            yield JournalNote(placed.record.note, placed.record.values)


def first_other_line(path: Path, hashes: npt.NDArray[np.uint64]) -> int | None:
    """The number of the first line that the journal knows and whose hash is not the one in `hashes` (lines,)."""
    others = (
        number
        for placed in JournalReader(path)
        for number, known in _known(placed.record)
        if number > len(hashes) or int(hashes[number - 1]) != known
    )
    return min(others, default=None)


def _known(record: AnyRecord) -> Iterator[tuple[int, int]]:
    """(number, hash) of the lines that a record knows."""
    if isinstance(record, AnsweredRecord):
        yield record.number, int(record.hash, 16)
    elif isinstance(record, LinesRecord):
        numbers, _, hashes = lines_in(record)
        yield from zip(numbers.tolist(), hashes.tolist(), strict=True)
