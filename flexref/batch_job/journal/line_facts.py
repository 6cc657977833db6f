"""What is known of every line of a job, in nine bytes a line; it knows no file."""

import re
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.batch_job.shard import WHOLE, Shard

EXPECTED, DONE, FAILED = 1, 2, 4
"""Bits of a line's state: it must be answered; its answer is durable; it failed."""

IS_EXPECTED = re.compile(rb"[\x01\x03\x05\x07]")
"""The state of a line that must be answered; a shard may have as good as none."""


class ExpectedLines:
    """The lines of an input that a job must answer: those that are not blank, and are the shard's; by number, in order.

    `filled` (lines,): whether a line is not blank. `hashes` (lines,): the XXH3-64 of every line, as answers have it.
    """

    def __init__(self, filled: npt.NDArray[np.bool_], hashes: npt.NDArray[np.uint64], shard: Shard = WHOLE) -> None:
        self.lines, self.hashes = len(filled), hashes
        self._mask = filled.astype(bool)
        if shard.count > 1:
            chunks = np.arange(self.lines, dtype=np.int64) // shard.chunk_lines
            self._mask &= chunks % shard.count == shard.index
        self._count = int(np.count_nonzero(self._mask))

    def __len__(self) -> int:
        return self._count

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and 1 <= number <= self.lines and bool(self._mask[number - 1])

    def __iter__(self) -> Iterator[int]:
        return (int(line) + 1 for line in np.flatnonzero(self._mask))

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(lines,): whether a line must be answered."""
        return self._mask


class LineFacts:
    """The state of each of `lines` lines, and where in the journal its answer stands, 0: nowhere."""

    def __init__(self, lines: int) -> None:
        self.lines = lines
        self.states = bytearray(lines + 1)
        self.offsets = array("q", bytes(8 * (lines + 1)))

    def expect(self, expected: ExpectedLines) -> None:
        """Set which lines must be answered."""
        states: npt.NDArray[Any] = np.frombuffer(self.states, np.uint8)[1:]
        states[expected.mask] |= EXPECTED

    def next_expected(self, line: int) -> int | None:
        """The number of the first line after number `line` that must be answered, if there is one."""
        found = IS_EXPECTED.search(self.states, line + 1)
        return None if found is None else found.start()

    def put(self, number: int, failed: bool, offset: int) -> None:
        """Line `number` has its answer, at `offset` of the journal, 0: in OUT or ERR alone."""
        self.states[number] = (self.states[number] & EXPECTED) | DONE | (FAILED if failed else 0)
        self.offsets[number] = offset

    def put_many(self, numbers: npt.NDArray[np.int64], failed: npt.NDArray[np.bool_]) -> None:
        """Lines of these numbers have their answers in OUT or ERR, and nowhere else."""
        states: npt.NDArray[Any] = np.frombuffer(self.states, np.uint8)
        states[numbers] = (states[numbers] & EXPECTED) | DONE | np.where(failed, FAILED, 0)
        self.offsets_array[numbers] = 0

    def forget(self, numbers: npt.NDArray[np.int64]) -> None:
        """Lines of these numbers have no answers."""
        states: npt.NDArray[Any] = np.frombuffer(self.states, np.uint8)
        states[numbers] &= EXPECTED
        self.offsets_array[numbers] = 0

    @property
    def offsets_array(self) -> npt.NDArray[np.int64]:
        """(lines + 1,): the offsets, as they lie in memory."""
        return np.frombuffer(self.offsets, np.int64)

    def is_done(self, number: int) -> bool:
        """Whether the answer to line `number` is durable."""
        return bool(self.states[number] & DONE)

    def has_failed(self, number: int) -> bool:
        """Whether line `number` was answered, and failed."""
        return bool(self.states[number] & FAILED)

    def have_failed(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """`has_failed` of each of these lines."""
        return (np.frombuffer(self.states, np.uint8)[numbers] & FAILED) > 0

    def count(self, bit: int) -> int:
        """How many lines have `bit` set."""
        return int(np.count_nonzero(np.frombuffer(self.states, np.uint8) & bit))

    def first_missing(self) -> int | None:
        """The number of the first line that must be answered and is not, if there is one."""
        missing = (np.frombuffer(self.states, np.uint8) & (EXPECTED | DONE)) == EXPECTED
        return int(missing.argmax()) if missing.any() else None

    def numbers(self, bit: int) -> npt.NDArray[np.int64]:
        """The lines that have `bit` set, in order."""
        found: npt.NDArray[np.int64] = np.flatnonzero(np.frombuffer(self.states, np.uint8) & bit)
        return found
