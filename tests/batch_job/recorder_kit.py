"""What tests of recorders share: a small job with answers that are known beforehand."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from flexref.batch_job.answers import LineAnswer
from flexref.batch_job.identity import Identity
from flexref.batch_job.job_files import JobFiles
from flexref.batch_job.journal.ledger import WritingPace
from flexref.batch_job.journal.line_facts import ExpectedLines
from flexref.batch_job.recorder import Recorder

IDENTITY = Identity({"lines": 9, "digest": "aa"}, {"name": "tiny"}, {"temperature": 1.0, "seed": 0}, {"numpy": "2.2"})

HASTY = WritingPace(sync_s=0.001, mark_bytes=1, mark_s=0.0, compact_bytes=1 << 12)
"""All that can happen happens soon."""


@dataclass(frozen=True)
class Job:
    """`lines` lines of which every seventh is blank and every fifth fails."""

    folder: Path
    lines: int = 20
    separate: bool = True

    @property
    def files(self) -> JobFiles:
        return JobFiles(self.folder / "out.jsonl", self.folder / "err.jsonl" if self.separate else None)

    @property
    def filled(self) -> "np.typing.NDArray[np.bool_]":
        return np.arange(1, self.lines + 1) % 7 != 0

    @property
    def expected(self) -> ExpectedLines:
        hashes = [xxhash.xxh3_64_intdigest(b"line %d" % number) for number in range(1, self.lines + 1)]
        return ExpectedLines(self.filled, np.array(hashes, np.uint64))

    def answer(self, number: int) -> LineAnswer:
        data = b'{"n": %d, "text": "%s"}' % (number, b"x" * (number % 13 * 20))
        return LineAnswer(number, None, xxhash.xxh3_64_intdigest(b"line %d" % number), number % 5 == 0, data)

    @property
    def numbers(self) -> list[int]:
        return list(self.expected)

    def open(
        self,
        identity: Identity = IDENTITY,
        *,
        files: JobFiles | None = None,
        expected: ExpectedLines | None = None,
        pace: WritingPace = HASTY,
        **options: bool,
    ) -> Recorder:
        return Recorder.open(files or self.files, identity, expected or self.expected, pace=pace, **options)

    def whole(self) -> tuple[bytes, bytes]:
        """What OUT and ERR are in the end."""
        answers = [self.answer(number) for number in self.numbers]
        failed = [answer.data + b"\n" for answer in answers if answer.failed and self.separate]
        return b"".join(a.data + b"\n" for a in answers if not (a.failed and self.separate)), b"".join(failed)

    def found(self) -> tuple[bytes, bytes]:
        """What OUT and ERR are now."""
        errors = self.files.errors
        return self.files.output.read_bytes(), errors.read_bytes() if errors else b""
