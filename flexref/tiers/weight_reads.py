"""Runs of a weight file as places that copies come from, checked when they are read; they know no tier's memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import xxhash

from flexref.errors import StorageError, WeightFileError
from flexref.storage.checks import PartChecker
from flexref.storage.weightfile import Part, StoredTensor
from flexref.tiers.disk import RangeAhead
from flexref.tiers.weight_source import Bytes, MakeChecker, WeightSource
from flexref.tiers.weights_plan import Run


def checker_of(run: Run) -> MakeChecker:
    """Checks the whole of a run."""
    return partial(PartChecker, [part for tensor in run.tensors for part in tensor.parts], run.file_offset)


@dataclass(frozen=True, slots=True)
class WholeRun:
    """A run that is read in one piece, every time with its check, if its source has any."""

    source: WeightSource
    run: Run

    def read(self, offset: int, into: Bytes) -> None:
        """Fill `into`, as long as the run, from its beginning on."""
        self.source.read(offset, into, checker_of(self.run) if self.source.checked else None)

    def ask_ahead(self, offset: int, into: Bytes) -> RangeAhead | None:
        """See `reads_ahead.FileAhead`."""
        return self.source.ask_ahead(offset, into)


class RowChecksums:
    """The XXH3-64 of every row of a table, taken while the table's bytes go by."""

    def __init__(self, part: Part) -> None:
        self._extent, rows = part.extent, part.shape[0]
        self._row_bytes = part.extent.nbytes // rows
        self.rows: npt.NDArray[np.uint64] = np.zeros(rows, np.uint64)
        self.complete = False
        """Whether the last of its bytes has gone by: a port that is wrong may have left copies out."""
        self._digest = xxhash.xxh3_64()

    def feed(self, position: int, memory: Bytes) -> None:
        """Bytes of the file from `position` on, those after the last ones."""
        first = max(position, self._extent.offset)
        stop = min(position + memory.nbytes, self._extent.stop)
        while first < stop:
            row, done = divmod(first - self._extent.offset, self._row_bytes)
            end = min(stop, first - done + self._row_bytes)
            piece = memory[first - position : end - position].data
            if not done and end - first == self._row_bytes:
                self.rows[row] = xxhash.xxh3_64_intdigest(piece)
            else:
                self._digest.update(piece)
                if end - first + done == self._row_bytes:
                    self.rows[row] = self._digest.intdigest()
                    self._digest.reset()
            first = end
        self.complete = stop == self._extent.stop


class RunInPieces:
    """A run that is read piece by piece, since there is no memory for the whole of it: damage shows when the last of
    its bytes have come by, and then all of it is to be read again.

    `failure`: what was found to be damaged since it began, None if nothing was. A lane does not fail by it: what comes
    after the run is read meanwhile.

    `rows`: of every table in `tables`, by its name, the checksums of its rows; complete once the run has passed.
    """

    def __init__(self, source: WeightSource, run: Run, tables: Sequence[StoredTensor] = ()) -> None:
        self._source, self._reading = source, source.reading(run.file_offset, run.nbytes)
        self._make, self._tables = checker_of(run), tables
        self._start = self._next = run.file_offset
        self.failure: WeightFileError | None = None
        self._begin()

    def read(self, offset: int, into: Bytes) -> None:
        """The next piece; `failure` as soon as a dataset that ends in it does not match its checksum, and from then on
        nothing is read until it begins again. `StorageError` if the piece before it could not be read: what has not
        been read is not damaged.
        """
        if self.failure is not None:
            return
        if offset != self._next:
            raise StorageError(f"{self._reading.path}: bytes {self._next} to {offset} could not be read")
        self._reading.read(offset, into)
        self._next = offset + into.nbytes
        try:
            self._checker.feed(into)
        except WeightFileError as error:
            self.failure = error
            return
        for rows in self.rows.values():
            rows.feed(offset, into)

    def ask_ahead(self, offset: int, into: Bytes) -> RangeAhead | None:
        """See `reads_ahead.FileAhead`: of one of its pieces."""
        return None if self.failure is not None else self._source.ask_ahead(offset, into)

    def begin_again(self, error: WeightFileError) -> None:
        """Read from its first piece on once more; raises `error` if nothing is left to try."""
        self._reading.begin_again(error)
        self._begin()

    def _begin(self) -> None:
        self.failure, self._next = None, self._start
        self._checker = self._make(self._reading.path)
        self.rows = {tensor.name: RowChecksums(tensor.parts[0]) for tensor in self._tables}
