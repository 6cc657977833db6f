"""Whatever happens to a job and its disk, what was durable is there, and the files come out the same."""

import tempfile
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from power_cut_kit import BROKEN, FULL, Disk, PowerCut, installed
from recorder_kit import IDENTITY, Job

from flexref.batch_job.journal.answer_file import AnswerFile
from flexref.batch_job.journal.growing_file import GrowingFile
from flexref.batch_job.journal.ledger import Answered, Entry, JobLedger, Kept, Noted, WritingPace
from flexref.batch_job.journal.line_facts import DONE
from flexref.batch_job.journal.opening import Opening
from flexref.batch_job.journal.reading import read_notes
from flexref.batch_job.journal.records import (
    AnsweredRecord,
    MarkRecord,
    NoteRecord,
    TokensRecord,
    encoded,
)
from flexref.errors import FlexrefError, StorageError

PHASES = (Phase.generate,)
"""A failure is found, and not made small: that takes minutes."""

Row = tuple[int, int]


class JobStates(RuleBasedStateMachine):
    """A job's ledger beside a model of what is durable, on a disk that loses power and refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.disk = Disk(Path(self.folder.name))
        self.installed = installed(self.disk)
        self.installed.__enter__()
        self.written: set[int] = set()
        self.durable: set[int] = set()
        self.tokens: dict[Row, list[list[int]]] = {}
        self.durable_tokens: dict[Row, int] = {}
        self.notes: list[int] = []
        self.durable_notes = 0
        self.ledger: JobLedger | None = None

    @initialize(separate=st.booleans(), compact=st.sampled_from([1, 300, 1 << 20]), mark=st.sampled_from([1, 200]))
    def begin(self, separate: bool, compact: int, mark: int) -> None:
        self.job = Job(Path(self.folder.name), lines=12, separate=separate)
        self.pace = WritingPace(mark_bytes=mark, mark_s=1e9, compact_bytes=compact)
        self.open()

    def open(self) -> None:
        """Open the job as its next run does, and hold what is there against the model."""
        opening = Opening(self.job.files, IDENTITY, self.job.expected)
        self.ledger = opening.run(self.pace)
        assert opening.notices == []
        done = set(map(int, self.ledger.facts.numbers(DONE)))
        assert self.durable <= done <= self.written
        for row, versions in self.tokens.items():
            if row[0] not in done:
                found = self.ledger.contents.tokens.get(row[0], {}).get(row[1])
                least = self.durable_tokens.get(row, -1)
                assert (found is None and least < 0) or list(found or ()) in versions[max(0, least) :]
        assert all(number not in done for number in self.ledger.contents.tokens)
        notes = [note.values["note"] for note in read_notes(self.job.files.journal)]
        assert notes == self.notes[: len(notes)]
        assert len(notes) >= self.durable_notes
        for found, whole in zip(self.job.found(), self.job.whole(), strict=True):
            assert whole.startswith(found)
        self.written, self.notes = done, notes
        for row in self.tokens:
            kept = self.ledger.contents.tokens.get(row[0], {}).get(row[1])
            self.tokens[row] = [] if kept is None else [list(kept)]
        self.is_durable()

    def is_durable(self) -> None:
        self.durable, self.durable_notes = set(self.written), len(self.notes)
        self.durable_tokens = {row: len(versions) - 1 for row, versions in self.tokens.items() if versions}

    def attempt(self, data: st.DataObject, call: Callable[[], None]) -> bool:
        """Whether a call ended; else the machine was off, or the disk refused, and the job was opened again."""
        try:
            call()
            return True
        except (PowerCut, StorageError) as error:
            self.disk.arm(None)
            self.broken_off()
            if isinstance(error, PowerCut):
                self.disk.lose_power(lambda most: data.draw(st.integers(0, most)))
        self.open()
        return False

    def broken_off(self) -> None:
        if self.ledger is not None:
            self.ledger.close()
            self.ledger = None

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        """Entries of all kinds, in any order."""
        assert self.ledger is not None
        entries: list[Answered | Kept | Noted] = []
        for kind in data.draw(
            st.lists(st.sampled_from(["answer", "answer", "tokens", "note"]), min_size=1, max_size=5)
        ):
            missing = sorted(set(self.job.numbers) - self.written)
            if kind == "note":
                self.notes.append(len(self.notes))
                entries.append(Noted(encoded(NoteRecord("event", {"note": self.notes[-1]})), False))
            elif missing and kind == "answer":
                answer = self.job.answer(data.draw(st.sampled_from(missing)))
                self.written.add(answer.number)
                record = AnsweredRecord(
                    answer.number, f"{answer.request_hash:016x}", answer.failed, msgspec.Raw(answer.data)
                )
                entries.append(Answered(encoded(record), answer.number, answer.failed, answer.data))
            elif missing:
                row = data.draw(st.sampled_from(missing)), data.draw(st.integers(0, 1))
                versions = self.tokens.setdefault(row, [])
                versions.append([*range(len(versions) + 1)])
                entries.append(Kept(encoded(TokensRecord(*row, versions[-1])), *row, array("q", versions[-1])))
        ledger = self.ledger
        if self.attempt(data, lambda: ledger.write(entries)):
            assert set(map(int, ledger.facts.numbers(DONE))) <= self.durable
            assert not self.written & ledger.contents.tokens.keys()

    @rule(data=st.data())
    def sync(self, data: st.DataObject) -> None:
        assert self.ledger is not None
        if self.attempt(data, self.ledger.sync):
            self.is_durable()
            assert self.ledger.done == len(self.durable)
            self.attempt(data, self.ledger.settle)

    @rule(data=st.data())
    def mark(self, data: st.DataObject) -> None:
        assert self.ledger is not None
        self.attempt(data, self.ledger.mark)

    @rule(data=st.data())
    def lose_power(self, data: st.DataObject) -> None:
        self.attempt(data, lambda: self.raises(PowerCut()))

    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        self.attempt(data, lambda: self.raises(StorageError("killed")))

    def raises(self, error: BaseException) -> None:
        raise error

    @precondition(lambda self: self.disk.calls_left is None)
    @rule(calls=st.integers(1, 12), failure=st.sampled_from([None, None, FULL, BROKEN]))
    def arm(self, calls: int, failure: OSError | None) -> None:
        self.disk.arm(calls, failure)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """A run ends in order; the next one begins."""
        assert self.ledger is not None
        ledger = self.ledger
        if self.attempt(data, lambda: self.end_in_order(ledger)):
            self.is_durable()
            self.broken_off()
            self.attempt(data, self.open)

    def end_in_order(self, ledger: JobLedger) -> None:
        for step in (ledger.sync, ledger.settle, ledger.mark, ledger.sync):
            step()

    @precondition(lambda self: len(self.written) > 6)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        assert self.ledger is not None
        ledger = self.ledger
        if self.attempt(data, lambda: self.complete(ledger)):
            self.is_durable()
            assert self.job.found() == self.job.whole()

    def complete(self, ledger: JobLedger) -> None:
        for number in sorted(set(self.job.numbers) - self.written):
            answer = self.job.answer(number)
            record = AnsweredRecord(number, f"{answer.request_hash:016x}", answer.failed, msgspec.Raw(answer.data))
            self.written.add(number)
            ledger.write([Answered(encoded(record), number, answer.failed, answer.data)])
        ledger.finish()

    def teardown(self) -> None:
        try:
            self.disk.arm(None)
            if self.ledger is not None:
                self.broken_off()
                self.open()
                assert self.ledger is not None
                self.complete(self.ledger)
                self.broken_off()
                assert self.job.found() == self.job.whole()
        finally:
            self.broken_off()
            self.installed.__exit__(None, None, None)
            self.folder.cleanup()


def run(examples: int) -> None:
    chosen = settings(max_examples=examples, stateful_step_count=30, report_multiple_bugs=False, phases=PHASES)
    run_machine(JobStates, settings=chosen)  # type: ignore[no-untyped-call]


def test_a_job_does_what_its_model_does() -> None:
    run(60)


def does_nothing(*arguments: object) -> None:
    """In place of what must not be left out."""


def counts_at_once(self: JobLedger, entries: Iterable[Entry]) -> None:
    """Answers count before they are synced."""
    entries = list(entries)
    WRITE(self, entries)
    for entry in entries:
        if isinstance(entry, Answered):
            self.facts.put(entry.number, entry.failed, self.facts.offsets[entry.number])
    self.settle()


def marks_without_sync(self: AnswerFile) -> MarkRecord | None:
    """A mark that nothing vouches for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GrowingFile, "sync", does_nothing)
        return MARK(self)


def knows_no_end(self: AnswerFile, *arguments: object, **options: object) -> bool:
    """What lies in OUT is taken as it is."""
    found = RECOVER(self, *arguments, **options)  # type: ignore[arg-type]
    self.line = self.file.read(0, 1 << 20).count(b"\n")
    return found


WRITE, MARK, RECOVER = JobLedger.write, AnswerFile.mark, AnswerFile.recover


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("flexref.batch_job.journal.growing_file.GrowingFile.sync", does_nothing),
        ("flexref.batch_job.journal.growing_file.GrowingFile.cut", does_nothing),
        ("flexref.batch_job.journal.growing_file.GrowingFile.sync_name", does_nothing),
        ("flexref.batch_job.journal.ledger.JobLedger.write", counts_at_once),
        ("flexref.batch_job.journal.answer_file.AnswerFile.mark", marks_without_sync),
        ("flexref.batch_job.journal.answer_file.AnswerFile.recover", knows_no_end),
        ("flexref.batch_job.journal.compaction.Compaction._is_kept", lambda self, placed: False),
        ("flexref.batch_job.journal.compaction.Compaction._update", does_nothing),
    ],
)
def test_a_ledger_that_is_wrong_is_found_out(where: str, what: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, what)
    with pytest.raises((AssertionError, FlexrefError, OSError, LookupError)):
        run(100)
