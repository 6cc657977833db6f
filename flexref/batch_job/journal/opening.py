"""Opens a job's files, new or of an earlier run: what they vouch for is kept, the rest forgotten; or says why not."""

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from flexref.batch_job.identity import Identity
from flexref.batch_job.job_files import JobFiles
from flexref.batch_job.journal.answer_file import AnswerFile, lie_in
from flexref.batch_job.journal.growing_file import FileInUse, GrowingFile
from flexref.batch_job.journal.ledger import JobLedger, WritingPace
from flexref.batch_job.journal.line_facts import DONE, ExpectedLines
from flexref.batch_job.journal.reading import JournalContents, JournalReader, first_other_line, read_journal
from flexref.batch_job.journal.records import ERR, FORMAT, HeaderRecord, encoded
from flexref.errors import BatchError, FlexrefError, StorageError, how_many
from flexref.files import remove_leftovers

TORN_HEADER = re.compile(rb"[0-9a-f]{0,16}\0*|[0-9a-f]{16} [^\n]*\n?")
"""What a power cut may leave of a journal whose header was not synced yet."""

HEADER_BYTES = 1 << 16
"""Read of what may be a torn header."""


class Opening:
    """How a job's files are opened. `force`: what does not fit this job is begun anew, and what is there is replaced.

    `accept_arithmetic`: go on although what computes is not what it was. `notices`: what the user should know.
    """

    def __init__(
        self,
        files: JobFiles,
        identity: Identity,
        expected: ExpectedLines,
        *,
        force: bool = False,
        accept_arithmetic: bool = False,
    ) -> None:
        errors = "in the output" if files.errors is None else "in a file of their own"
        self._files, self._expected = files, expected
        whole = replace(identity, settings={**identity.settings, "failed lines": errors})
        self._identity = Identity.of(whole.as_json())
        self._force, self._accept_arithmetic = force, accept_arithmetic
        self.notices: list[str] = []

    def run(self, pace: WritingPace) -> JobLedger:
        """The ledger of the job, which has what earlier runs made durable.

        Raises `StorageError` for files that cannot be, or that another process holds; `BatchError` for those of another
        job, and for those that were damaged or changed.
        """
        self._files.check()
        path = self._files.journal
        if not self._force and not (path.exists() and path.stat().st_size):
            self._files.check_new()
        with ExitStack() as undo:
            journal = self._locked(path)
            undo.callback(journal.close)
            contents = self._contents(journal)
            answers = []
            for name, target in self._files.answers():
                file = GrowingFile(target)
                undo.callback(file.close)
                file.sync_name()
                answers.append(AnswerFile(name, file, shared=self._files.errors is None))
            ledger = self._recovered(journal, contents, answers, pace)
            undo.pop_all()
        return ledger

    def _locked(self, path: Path) -> GrowingFile:
        """The journal, made if it is not there; `FileInUse` names the process that holds it."""
        try:
            journal = GrowingFile(path)
        except FileInUse as error:
            raise FileInUse(f"{self._files.output} is being written by {self._holder(path)}") from error
        if not journal.locked:
            self.notices.append(f"the file system of {path} has no locks: nothing keeps a second process from this job")
        remove_leftovers(Path(os.path.realpath(path)))  # of compactions that were killed
        return journal

    def _holder(self, path: Path) -> str:
        """Who holds a journal, in words, as far as it says so."""
        try:
            opened = read_journal(path).opened
        except FlexrefError:
            opened = None
        return "another process" if opened is None else f"process {opened.pid} on {opened.host}"

    def _contents(self, journal: GrowingFile) -> JournalContents:
        """What the journal says of this job; what follows its last good record is cut off. It is synced then."""
        contents = None
        if journal.length and not self._is_torn_header(journal):
            try:
                contents = read_journal(journal.path)
                self._check_identity(contents)
            except BatchError:
                if not self._force:
                    raise
                contents = None
        if contents is None:
            if not self._force:
                self._files.check_new()  # its header was synced before there was an output
            return self._new(journal)
        journal.write_again(contents.synced_bytes, contents.end)
        journal.cut(contents.end)
        if contents.identity != self._identity:  # other arithmetic, which is accepted
            contents.header, contents.identity = self._header(), self._identity
            journal.append(encoded(contents.header))
            journal.sync()
        return contents

    def _is_torn_header(self, journal: GrowingFile) -> bool:
        """Whether there is nothing but what a run left that was broken off while it wrote the header."""
        return TORN_HEADER.fullmatch(journal.read(0, HEADER_BYTES)) is not None and not any(JournalReader(journal.path))

    def _header(self) -> HeaderRecord:
        return HeaderRecord(FORMAT, self._expected.lines, len(self._expected), self._identity.as_json())

    def _new(self, journal: GrowingFile) -> JournalContents:
        """A journal that says no more than what job this is."""
        journal.cut(0)
        journal.append(encoded(self._header()))
        journal.sync()
        journal.sync_name()
        return read_journal(journal.path)

    def _check_identity(self, contents: JournalContents) -> None:
        """`BatchError` says all in which this is another job than the one that was begun."""
        differences = self._identity.differences(contents.identity, arithmetic=not self._accept_arithmetic)
        if self._identity.input != contents.identity.input:
            other = first_other_line(contents.path, self._expected.hashes)
            if other is not None:
                differences.insert(0, f"line {other} of the input is another one")
        if differences:
            other_machine = not self._identity.differences(contents.identity, arithmetic=False)
            helps = "--accept-changed-machine to go on all the same" if other_machine else "the command as it was"
            raise BatchError(
                f"{contents.path} is of another job: {'; '.join(differences)}; give {helps}, another output, or "
                "--force to begin anew"
            )
        if self._identity.arithmetic != contents.identity.arithmetic:
            words = "; ".join(self._identity.differences(contents.identity))
            self.notices.append(f"answers may differ in their last bits from those before: {words}")

    def _check_begun(self, file: AnswerFile, contents: JournalContents) -> None:
        """`StorageError` if the errors lie elsewhere than before, and what is there was not written by this job."""
        before = None if contents.opened is None else contents.opened.errors
        if self._force or file.name != ERR or not file.file.length or file.begins_as(contents.marks[ERR]):
            return
        known = None if before is None else os.path.realpath(self._files.output.parent / before)
        if known != os.path.realpath(file.file.path):
            lie = "have no file yet" if known is None else f"lie in {known}"
            raise StorageError(
                f"cannot write {file.file.path}: it is there already, and the errors of this job {lie}; --force "
                "replaces it"
            )

    def _recovered(
        self, journal: GrowingFile, contents: JournalContents, answers: Sequence[AnswerFile], pace: WritingPace
    ) -> JobLedger:
        for file in answers:
            self._check_begun(file, contents)
            if file.recover(contents.marks[file.name], finished=contents.finished, force=self._force):
                self.notices.append(f"{file.file.path} had lost its end, or was removed: it is written again")
        facts = contents.facts
        numbers = facts.numbers(DONE)
        held = (facts.offsets_array[numbers] > 0) | lie_in(answers, facts, numbers, marked=False)
        lost = numbers[~held]
        facts.forget(lost)
        if len(lost):
            contents.finished = False
            self.notices.append(f"{how_many(len(lost), 'answer')} that only those held are computed again")
        facts.expect(self._expected)
        ledger = JobLedger(journal, contents, answers, self._expected, pace)
        ledger.begin()
        if len(lost):
            ledger.compact()  # the journal says at once that it does not have them
        return ledger
