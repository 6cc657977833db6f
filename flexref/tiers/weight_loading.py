"""Loads weights to their homes in one pipeline: reads, checks and copies to the device overlap; it takes no memory.

Runs are read in the order of stages on one lane, and copied to the device on another. What has its home on the host is
read in place. Anything else passes through a few places on the host: while a piece leaves one, the next is read into
another. A run that comes damaged is read again by itself, when nothing else is under way.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from flexref.architecture.program import Role
from flexref.architecture.stages import StageKind
from flexref.backend.protocol import Lane, Ticket
from flexref.errors import WeightFileError
from flexref.tiers.mover import Mover
from flexref.tiers.transfer import Copy, DiskFile, Region
from flexref.tiers.weight_reads import RunInPieces, WholeRun
from flexref.tiers.weight_source import WeightSource
from flexref.tiers.weights_plan import Run, WeightsPlan
from flexref.units import Kind, Tier

MOST_OPEN = 16
"""Reads that are submitted before the first of them has ended: more than the disk is ever ahead of the host."""

WHAT = "loading"


class Home(Protocol):
    """Where a run has its home in memory."""

    @property
    def region(self) -> Region: ...


@dataclass(eq=False, slots=True)
class RunReading:
    """A run that passes through the host in pieces."""

    run: Run
    reader: DiskFile
    home: Home | None
    read_bytes: int = 0
    read_alone: bool = False
    """Whether it came damaged, and has been read again."""


@dataclass(eq=False, slots=True)
class Piece:
    """Bytes that are under way, of a run that is read in pieces or in place; done with the last of its tickets."""

    nbytes: int
    tickets: Sequence[Ticket]
    place: int = -1
    """The number of the place on the host that it passes through; none if it is read in place."""
    of: RunReading | None = None


@dataclass(slots=True)
class Loading:
    """One loading of all weights. `homes`: by the name of a run's first tensor.

    `places` on the host, one at least, hold what passes through; `told` hears of bytes that have come, and of all.
    """

    plan: WeightsPlan
    mover: Mover
    source: WeightSource
    homes: Mapping[str, Home]
    places: Sequence[Region]
    told: Callable[[int, int], None] | None = None
    row_checksums: dict[str, npt.NDArray[np.uint64]] = field(init=False, default_factory=dict)
    """Of tables whose rows are read from disk one by one."""
    _open: deque[Piece] = field(init=False, default_factory=deque)
    _next_place: int = field(init=False, default=0)
    _loaded_bytes: int = field(init=False, default=0)
    _total_bytes: int = field(init=False, default=0)

    def run(self) -> None:
        """Load everything. Raises what `WeightStore.load` does; however it ends, nothing is under way any more."""
        runs = list(runs_to_load(self.plan))
        self._total_bytes = sum(run.nbytes for run, _ in runs)
        try:
            for run, tier in runs:
                if tier is Tier.HOST:
                    self._in_place(run)
                else:
                    self._through(run, self.homes[run.tensors[0].name] if tier is Tier.DEVICE else None)
            while self._open:
                self._finish_first()
        except BaseException:
            with suppress(Exception):  # what else has failed meanwhile is not what ended the loading
                self.mover.settle()
            raise
        self.mover.settle()

    def _in_place(self, run: Run) -> None:
        source = Region(Tier.DISK, WholeRun(self.source, run), run.file_offset, run.nbytes)
        target = self.homes[run.tensors[0].name].region.part(0, run.nbytes)
        while len(self._open) >= MOST_OPEN:
            self._finish_first()
        ticket = self.mover.submit(Lane.DISK_IN, [Copy(Kind.WEIGHTS, WHAT, source, target)], ())
        self._open.append(Piece(run.nbytes, [ticket]))

    def _through(self, run: Run, home: Home | None) -> None:
        """Submit a run's pieces; one that comes damaged is read again by itself."""
        reader: DiskFile = self.source
        if self.source.checked:
            # What has no home in memory is read for its check alone, and for checksums of rows where it has rows.
            tables = [tensor for tensor in run.tensors if tensor.spec.role is Role.TOKENS] if home is None else []
            reader = RunInPieces(self.source, run, tables)
        reading = RunReading(run, reader, home)
        for start in self._starts(run):
            if not self._submit(reading, start):
                return

    def _starts(self, run: Run) -> range:
        return range(0, run.nbytes, self.places[0].nbytes)

    def _submit(self, reading: RunReading, start: int) -> bool:
        """Submit a run's piece from `start` on; False if the whole run has been read meanwhile, piece by piece."""
        number = self._next_place
        while any(piece.place == number for piece in self._open):
            self._finish_first()
        if reading.read_alone:
            return False
        self._next_place = (number + 1) % len(self.places)
        tickets: tuple[Ticket, ...] = ()
        copies = self._copies(reading, start, number)
        for lane, copy in copies:
            tickets = (*tickets, self.mover.submit(lane, [copy], tickets))
        self._open.append(Piece(copies[0][1].nbytes, tickets, number, reading))
        return True

    def _copies(self, reading: RunReading, start: int, number: int) -> list[tuple[Lane, Copy]]:
        """How a run's piece from `start` on gets to place `number` and, if the run has a home, from there to it."""
        size = min(self.places[number].nbytes, reading.run.nbytes - start)
        place = self.places[number].part(0, size)
        source = Region(Tier.DISK, reading.reader, reading.run.file_offset + start, size)
        copies = [(Lane.DISK_IN, Copy(Kind.WEIGHTS, WHAT, source, place))]
        if reading.home is not None:
            copies.append((Lane.WEIGHTS_IN, Copy(Kind.WEIGHTS, WHAT, place, reading.home.region.part(start, size))))
        return copies

    def _finish_first(self) -> None:
        """Wait for what was submitted first; read its run again if that shows damage and there is hope."""
        piece = self._open.popleft()
        try:
            for ticket in piece.tickets:
                ticket.wait()
        except WeightFileError as error:
            if piece.of is None or not isinstance(piece.of.reader, RunInPieces):
                raise
            self._come_to_rest([piece, *self._open])
            self._again(piece.of, piece.of.reader, error)
            return
        self._came(piece.nbytes, piece.of)
        self.mover.check()

    def _came(self, nbytes: int, reading: RunReading | None) -> None:
        self._loaded_bytes += nbytes
        if reading is not None:
            reading.read_bytes += nbytes
            if reading.read_bytes == reading.run.nbytes and isinstance(reading.reader, RunInPieces):
                rows = reading.reader.rows.items()
                self.row_checksums.update({name: table.rows for name, table in rows if table.complete})
        if self.told is not None:
            self.told(self._loaded_bytes, self._total_bytes)

    def _again(self, reading: RunReading, reader: RunInPieces, error: WeightFileError) -> None:
        """Read a run from its beginning on, piece by piece, until it passes its check; raises if it never will."""
        self._open = deque(piece for piece in self._open if piece.of is not reading)
        reading.read_alone = True
        while reading.read_bytes < reading.run.nbytes:
            reader.begin_again(error)
            self._loaded_bytes, reading.read_bytes = self._loaded_bytes - reading.read_bytes, 0
            try:
                for start in self._starts(reading.run):
                    self._one_by_one(reading, start)
            except WeightFileError as found:
                error = found

    def _come_to_rest(self, pieces: Sequence[Piece]) -> None:
        """Wait for pieces, which are still wanted. What failed of other runs is raised when their turn comes."""
        for piece in pieces:
            for ticket in piece.tickets:
                with suppress(Exception):
                    ticket.wait()
        with suppress(Exception):
            self.mover.harvest()

    def _one_by_one(self, reading: RunReading, start: int) -> None:
        copies = self._copies(reading, start, 0)
        for lane, copy in copies:
            self.mover.run(lane, [copy])
        self._came(copies[0][1].nbytes, reading)


def runs_to_load(plan: WeightsPlan) -> Iterator[tuple[Run, Tier]]:
    """Every run that is read before the first pass, and its home: on disk only what rows are gathered from."""
    tied = plan.file.spec.tied_head
    for each in plan.stages:
        gathered = tied and each.stage.kind is StageKind.HEAD
        for tier in (Tier.HOST, Tier.DEVICE, *((Tier.DISK,) if gathered else ())):
            for run in each.homes[tier].runs:
                yield run, tier
    for tensor, tier in plan.gathered:
        yield Run.of([tensor]), tier
