"""A weight file and maybe its mirror as one source: what cannot be read, or is not what belongs there, is read again.

Every read is checked, not the first one alone: bits turn on any of them, and the checksum is taken while the next bytes
are read. It knows no tensor's home.
"""

import threading
import time
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from flexref.errors import FlexrefError, StorageError, WeightFileError, how_many
from flexref.storage.weightfile import WeightFile
from flexref.tiers.disk import RangeAhead, WeightsOnDisk
from flexref.tiers.faults import FaultSeen, OnFault
from flexref.tiers.mirror import open_mirror
from flexref.tiers.weight_source import ByteChecker, Bytes, MakeChecker

WAITS_S = (0.1, 0.5, 2.0)
"""Pauses before a copy is read again, so one try more than there are pauses: what a bus or a network does to a read is
over in a second or is not."""

LOST_IN_A_ROW = 3
"""Ranges that a copy does not give, and none that it gives between them, after which others are asked first."""


class RowChecker:
    """One row of a table against its XXH3-64."""

    def __init__(self, checksum: int, name: str, path: str) -> None:
        self._checksum, self._name, self._path = checksum, name, path

    def feed(self, memory: Bytes) -> None:
        """The whole row."""
        found = xxhash.xxh3_64_intdigest(memory.data)
        if found != self._checksum:
            raise WeightFileError(
                f"{self._path}: a row of {self._name} is damaged: its checksum is {found:016x}, "
                f"needed {self._checksum:016x}"
            )


class WeightCopies:
    """A `weight_source.WeightSource`: the file, and a second copy of it for what the first one does not give.

    A range that one copy has not given in all its tries is read from the other from then on. A copy that was written
    to, as `check_unchanged` has it, is never read again if there is another: everything that it gave was checked.
    """

    checked = True

    def __init__(
        self,
        file: WeightFile,
        copies: Sequence[WeightsOnDisk],
        on_fault: OnFault,
        waits_s: Sequence[float] | None = None,
    ) -> None:
        """`copies` in the order in which they are asked. `waits_s` in place of `WAITS_S`."""
        self.copies, self.waits_s = tuple(copies), WAITS_S if waits_s is None else tuple(waits_s)
        self.on_fault = on_fault
        parts = sorted(file.parts, key=lambda part: part.extent.offset)
        self._starts, self._names = [part.extent.offset for part in parts], [part.dataset for part in parts]
        self._lock = threading.Lock()
        self._changed: set[WeightsOnDisk] = set()
        self._lost: dict[WeightsOnDisk, set[int]] = {copy: set() for copy in self.copies}
        self._in_a_row = dict.fromkeys(self.copies, 0)

    @classmethod
    def open(cls, file: WeightFile, mirror: str | None, on_fault: OnFault) -> "WeightCopies":
        """The file, and the `mirror` if there is one; raises what `open_mirror` does."""
        first = WeightsOnDisk(file.path)
        try:
            copies = (first,) if mirror is None else (first, open_mirror(first, mirror))
            return cls(file, copies, on_fault)
        except BaseException:
            first.close()
            raise

    @property
    def direct(self) -> bool:
        """Whether large reads bypass the page cache, of the copy that is asked first."""
        return self._order(-1)[0].direct

    @property
    def progress(self) -> int:
        """Chunks that have come from any copy."""
        return sum(copy.chunks_read for copy in self.copies)

    def read(self, offset: int, into: Bytes, checker: MakeChecker | None = None) -> None:
        """See `WeightSource.read`. A reading that is checked must be of the whole of what `checker` checks."""
        self._read(Tries(self, offset, into.nbytes), into, checker)

    def ask_ahead(self, offset: int, into: Bytes) -> RangeAhead | None:
        """See `WeightSource.ask_ahead`: of the copy that is asked first."""
        return self._order(offset)[0].ask_ahead(offset, into)

    def read_rows(
        self, offsets: npt.NDArray[np.int64], into: Bytes, checksums: npt.NDArray[np.uint64] | None = None
    ) -> None:
        """See `WeightSource.read_rows`. Only rows that are not as they should be are read again, each for itself."""
        first = self._order(-1)[0]
        try:
            first.read_rows(offsets, into)
        except StorageError as error:
            self.tell("retry", f"{error}; rows are read one by one", first, int(offsets.min()), into.nbytes, 1)
            wrong = list(range(len(offsets)))
        else:
            wrong = [] if checksums is None else _other(into, checksums)
            if wrong:
                row = into[wrong[0]]
                where = int(offsets[wrong[0]])
                text = f"{first.path}: {how_many(len(wrong), 'row')} of {self.name_at(where)} came back damaged"
                self.tell("retry", f"{text}; read again", first, where, len(wrong) * row.nbytes, 1)
        for number in wrong:
            start, row = int(offsets[number]), into[number]
            first.forget_pages(start, row.nbytes)
            self.read(start, row, None if checksums is None else self._row_checker(start, int(checksums[number])))

    def reading(self, offset: int, nbytes: int) -> "Reading":
        """See `WeightSource.reading`."""
        return Reading(self, offset, nbytes)

    def check_unchanged(self) -> None:
        """`StorageError` if a copy was written to and there is no other; else that copy is read no more."""
        for copy in self._order(-1):
            try:
                copy.check_unchanged()
            except StorageError as error:
                others = self.give_up_changed(copy)
                if not others:
                    raise
                text = f"{error}; what it gave had been checked, and from now on {others[0].path} is read"
                self.tell("mirror", text, copy, 0, 0, 0)

    def close(self) -> None:
        """Close all copies."""
        for copy in self.copies:
            copy.close()

    def name_at(self, offset: int) -> str:
        """The dataset that the byte at `offset` belongs to."""
        place = bisect_right(self._starts, offset) - 1
        return f"dataset {self._names[place]}" if place >= 0 else "the metadata"

    def give_up_changed(self, copy: WeightsOnDisk) -> list[WeightsOnDisk]:
        """Read a copy that was written to no more; the others that are left."""
        with self._lock:
            others = [other for other in self.copies if other not in self._changed and other is not copy]
            if others:
                self._changed.add(copy)
        return others

    def gave(self, copy: WeightsOnDisk) -> None:
        """A copy has given what was asked for."""
        self._in_a_row[copy] = 0

    def lost(self, copy: WeightsOnDisk, offset: int) -> None:
        """A copy has not given the range from `offset` on in all its tries."""
        with self._lock:
            self._lost[copy].add(offset)
            self._in_a_row[copy] += 1

    def tell(self, kind: str, text: str, copy: WeightsOnDisk, offset: int, nbytes: int, tries: int) -> None:
        """Tell of a fault."""
        self.on_fault(FaultSeen(kind, text, copy.path, offset, nbytes, tries))

    def _order(self, offset: int) -> list[WeightsOnDisk]:
        """The copies to ask for the range from `offset` on, the likeliest first."""
        with self._lock:
            left = [copy for copy in self.copies if copy not in self._changed]
            return sorted(left, key=lambda copy: (offset in self._lost[copy], self._in_a_row[copy] >= LOST_IN_A_ROW))

    def _read(self, tries: "Tries", into: Bytes, checker: MakeChecker | None = None) -> None:
        while True:
            copy = tries.copy
            for other in self.copies:
                if other is not copy:
                    other.drop_ahead(tries.offset, into)
            try:
                copy.read(tries.offset, into, None if checker is None else checker(copy.path).feed)
            except (StorageError, WeightFileError) as error:
                time.sleep(tries.failed(error))
            else:
                self.gave(copy)
                return

    def _row_checker(self, offset: int, checksum: int) -> MakeChecker:
        def make(path: str) -> ByteChecker:
            return RowChecker(checksum, self.name_at(offset), path)

        return make


class Tries:
    """What one range has come to so far: which copy is read now, and how often that was in vain."""

    def __init__(self, copies: WeightCopies, offset: int, nbytes: int, first: WeightsOnDisk | None = None) -> None:
        """`first` is asked before all others."""
        self.offset, self.nbytes = offset, nbytes
        self._copies = copies
        order = copies._order(offset)
        self._left = order if first is None else sorted(order, key=lambda copy: copy is not first)
        self._said: list[str] = []
        self._last = ""
        self._number = 0

    @property
    def copy(self) -> WeightsOnDisk:
        """The copy to read now."""
        return self._left[0]

    def failed(self, error: FlexrefError) -> float:
        """The copy did not give it: how many seconds to wait before the copy that is to be read now is asked.

        Raises an error that tells of all copies and tries if nothing is left. A copy that gives the same wrong bytes
        twice is damaged where it lies, and is not read a third time.
        """
        copy, copies = self.copy, self._copies
        changed = self._change_of(copy)
        self._number += 1
        again = self._number <= len(copies.waits_s) and not changed
        if isinstance(error, WeightFileError) and str(error) == self._last:
            again = False
        self._last = str(error)
        if again:
            wait_s = copies.waits_s[self._number - 1]
            self._tell("retry", f"{self._said_of(error)}; read again after {wait_s:g} s")
            copy.forget_pages(self.offset, self.nbytes)
            return wait_s
        said = changed or self._said_of(error, "1 try" if self._number == 1 else f"{self._number} tries")
        if not changed or not copies.give_up_changed(copy):
            copies.lost(copy, self.offset)
        self._said.append(said)
        if len(self._left) == 1:
            text = "; ".join(self._said)
            self._tell("fault", text)
            raise (StorageError if changed else type(error))(text) from error
        self._left.pop(0)
        text = f"{said}; {self.copy.path} is read in its place"
        copies.tell("mirror", text, copy, self.offset, self.nbytes, self._number)
        self._number, self._last = 0, ""
        return 0.0

    def _change_of(self, copy: WeightsOnDisk) -> str:
        """What somebody did to the copy; empty if nobody did."""
        try:
            copy.check_unchanged()
        except StorageError as error:
            return str(error)
        return ""

    def _said_of(self, error: FlexrefError, *more: str) -> str:
        """The error, with the dataset and the byte if it does not name them."""
        text, name = str(error), self._copies.name_at(self.offset)
        found = [] if name in text else [name]
        if " byte " not in text:
            found.append(f"from byte {self.offset} on")
        return f"{text} ({', '.join([*found, *more])})" if found or more else text

    def _tell(self, kind: str, text: str) -> None:
        self._copies.tell(kind, text, self.copy, self.offset, self.nbytes, self._number)


class Reading:
    """A `weight_source.PieceReading`."""

    def __init__(self, copies: WeightCopies, offset: int, nbytes: int) -> None:
        self._copies, self._tries = copies, Tries(copies, offset, nbytes)
        self._wait_s = 0.0

    @property
    def path(self) -> str:
        """See `PieceReading.path`."""
        return self._tries.copy.path

    def read(self, offset: int, into: Bytes) -> None:
        """See `PieceReading.read`."""
        wait_s, self._wait_s = self._wait_s, 0.0
        time.sleep(wait_s)
        self._copies._read(Tries(self._copies, offset, into.nbytes, self._tries.copy), into)

    def begin_again(self, error: WeightFileError) -> None:
        """See `PieceReading.begin_again`."""
        self._wait_s = self._tries.failed(error)


def _other(rows: Bytes, checksums: npt.NDArray[np.uint64]) -> list[int]:
    """Which rows have another XXH3-64."""
    return [
        number
        for number, (row, checksum) in enumerate(zip(rows, checksums.tolist(), strict=True))
        if xxhash.xxh3_64_intdigest(row.data) != checksum
    ]
