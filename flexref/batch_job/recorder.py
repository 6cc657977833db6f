"""Makes answers durable while a job runs: whoever adds one goes on at once, a thread of its own writes and syncs.

The thread syncs all that has come meanwhile at once. Its errors reach whoever makes the next call.
"""

import threading
import time
from array import array
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from flexref.batch_job.answers import LineAnswer
from flexref.batch_job.identity import Identity
from flexref.batch_job.job_files import JobFiles
from flexref.batch_job.journal.ledger import Answered, Entry, JobLedger, Kept, Noted, WritingPace
from flexref.batch_job.journal.line_facts import DONE, ExpectedLines
from flexref.batch_job.journal.opening import Opening
from flexref.batch_job.journal.reading import LONGEST_RECORD_BYTES, STATE
from flexref.batch_job.journal.records import AnsweredRecord, NoteRecord, TokensRecord, encoded
from flexref.errors import BatchError

PACE = WritingPace()


class Recorder:
    """A job's journal and outputs, open and locked. Use it as a context manager, or call `close`.

    `runs_before`: how often the job was begun or resumed before; `notices`: what the user should know of what was
    found, in words. All calls come from one thread.
    """

    def __init__(self, ledger: JobLedger, notices: Sequence[str]) -> None:
        self._ledger, self.notices = ledger, tuple(notices)
        self.runs_before = ledger.contents.run - 1
        done = np.frombuffer(ledger.facts.states, np.uint8) & DONE
        self._added = bytearray((done > 0).tobytes())
        self._tokens = {number: dict(choices) for number, choices in ledger.contents.tokens.items()}
        self._queue: list[Entry] = []
        self._queued_bytes = 0
        self._wanted = self._reached = 0
        """Calls that wait until all before them is durable, and of those how many need not wait any more."""
        self._finishing = self._closing = False
        self._error: BaseException | None = None
        self._error_told = False
        self._turn = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        files: JobFiles,
        identity: Identity,
        expected: ExpectedLines,
        *,
        force: bool = False,
        accept_arithmetic: bool = False,
        pace: WritingPace = PACE,
    ) -> "Recorder":
        """The recorder of a new job, or of one that goes on where its earlier runs ended; see `Opening`.

        Raises `StorageError` for files that cannot be written, or that another process holds; `BatchError` if they are
        of another job, damaged or changed.
        """
        opening = Opening(files, identity, expected, force=force, accept_arithmetic=accept_arithmetic)
        return cls(opening.run(pace), opening.notices)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def done_lines(self) -> int:
        """How many lines are answered, and durably so; failed ones included."""
        return self._ledger.done

    @property
    def failed_lines(self) -> int:
        """How many of those failed."""
        return self._ledger.failed

    @property
    def written_bytes(self) -> int:
        """Bytes that this run and those before it wrote to the journal, the output and the errors."""
        return self._ledger.written_bytes

    def is_done(self, number: int) -> bool:
        """Whether the answer to line `number` is durable."""
        return self._ledger.facts.is_done(number)

    def has_failed(self, number: int) -> bool:
        """Whether line `number` was answered, and failed."""
        return self._ledger.facts.has_failed(number)

    @property
    def written_line(self) -> int:
        """The answers to all lines up to this one are durable, and lie in the output or the errors."""
        return min(file.line for file in self._ledger.files)

    def tokens_of(self, number: int) -> Mapping[int, tuple[int, ...]]:
        """By choice, the tokens of line `number`'s rows that were kept latest; none once it has its answer."""
        return {choice: tuple(tokens) for choice, tokens in self._tokens.get(number, {}).items()}

    def expect(self, number: int) -> None:
        """Line `number` was read. `BatchError` if it was not there, or blank, when the job began."""
        if number not in self._ledger.expected:
            raise BatchError(f"line {number} of the input is none of those that this job answers: it was changed")

    def add(self, answer: LineAnswer) -> None:
        """Hand over what has become of a line; a second answer to it is the same, and left out.

        `BatchError` for a line that is not the one that was there when the job began; `ValueError` if the answer is no
        JSON value in one line.
        """
        self.expect(answer.number)
        known = int(self._ledger.expected.hashes[answer.number - 1])
        if answer.request_hash != known:
            raise BatchError(f"line {answer.number} of the input was changed while the job ran")
        if b"\n" in answer.data:
            raise ValueError(f"the answer to line {answer.number} has a line feed")
        if self._added[answer.number]:
            return
        data = msgspec.json.decode(answer.data, type=msgspec.Raw)
        record = encoded(AnsweredRecord(answer.number, f"{known:016x}", answer.failed, data))
        if len(record) > LONGEST_RECORD_BYTES:  # whoever reads the journal would take it for a torn one
            found = f"the answer to line {answer.number} has {len(answer.data)} bytes"
            raise BatchError(f"{found}, more than a journal's records may: divide the line")
        self._put(Answered(record, answer.number, answer.failed, answer.data))
        self._added[answer.number] = True
        self._tokens.pop(answer.number, None)

    def keep_tokens(self, number: int, choice: int, tokens: Sequence[int]) -> None:
        """Keep all tokens that a row in flight has so far, in place of those that were kept before."""
        self.expect(number)
        if not self._added[number]:
            kept = array("q", tokens)
            self._put(Kept(encoded(TokensRecord(number, choice, list(tokens))), number, choice, kept))
            self._tokens.setdefault(number, {})[choice] = kept

    def note(self, kind: str, values: Mapping[str, Any]) -> None:
        """Keep what a report tells: JSON values by name. `TypeError` for a value that is none."""
        self._put(Noted(encoded(NoteRecord(kind, dict(values))), kind == STATE))

    def commit(self) -> None:
        """Return when all that was handed over is durable."""
        with self._turn:
            self._wanted += 1
            mine = self._wanted
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._error is not None or self._reached >= mine)
        self._check()

    def finish(self) -> None:
        """Return when all answers are there, and the output and the errors are whole and durable.

        Raises `BatchError` if a line has no answer.
        """
        with self._turn:
            self._finishing = True
        self.commit()

    def close(self) -> None:
        """Make durable what was handed over, and give files and locks back. Once is enough."""
        with self._turn:
            self._closing = True
            self._turn.notify_all()
        self._thread.join()
        self._ledger.close()
        if not self._error_told:
            self._check()

    def _check(self) -> None:
        """Raise what ended the thread."""
        if self._error is not None:
            self._error_told = True
            raise self._error

    def _put(self, entry: Entry) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._error is not None or self._queued_bytes < self._ledger.pace.queue_bytes)
            self._check()
            if self._closing:
                raise ValueError("the recorder was closed")
            if not self._queue:
                self._turn.notify_all()
            self._queue.append(entry)
            self._queued_bytes += len(entry.record)

    def _run(self) -> None:
        """The thread: until it is to close, or something fails."""
        try:
            due = None
            while True:
                entries, wanted, closing, finishing = self._next(due)
                if entries:
                    self._ledger.write(entries)
                now = time.monotonic()
                if self._ledger.unsynced and due is None:
                    due = now + self._ledger.pace.sync_s
                if closing or wanted > self._reached or (due is not None and now >= due):
                    self._make_durable(closing, finishing)
                    due = None
                with self._turn:
                    self._reached = wanted
                    self._turn.notify_all()
                if closing:
                    return
        except BaseException as error:  # raised where the next call is made
            with self._turn:
                self._error = error
                self._turn.notify_all()

    def _next(self, due: float | None) -> tuple[list[Entry], int, bool, bool]:
        """What was handed over, and what is wanted; waits for some of it, or until `due`.

        It is to finish only if all answers are among what was handed over until now.
        """
        with self._turn:
            left = None if due is None else max(0.0, due - time.monotonic())
            self._turn.wait_for(lambda: self._queue or self._closing or self._wanted > self._reached, left)
            entries, self._queue, self._queued_bytes = self._queue, [], 0
            self._turn.notify_all()
            return entries, self._wanted, self._closing, self._finishing

    def _make_durable(self, closing: bool, finishing: bool) -> None:
        self._ledger.sync()
        self._ledger.settle()
        if finishing:
            self._ledger.finish()
            self._finishing = False
        if closing:
            self._ledger.mark()
            self._ledger.sync()
