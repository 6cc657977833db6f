"""Loads weights to their homes in one pipeline: reads, checks and copies to the device overlap; it takes no memory.

Runs are read in the order in which a pass needs them, and copied to the device. What has its
home on the host is read in place. Anything else passes through a few places on the host: while a piece leaves one, the
next is read into another. Lanes are given work for some seconds, in which whoever loads may do something else; then it
lets the loading go on. A run that comes damaged is read again by itself, when nothing else is under way.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from flexref.architecture.program import Role
from flexref.backend.protocol import Lane, Ticket
from flexref.tiers.mover import Mover
from flexref.tiers.transfer import Copy, DiskFile, Region
from flexref.tiers.weight_reads import RunInPieces, WholeRun
from flexref.tiers.weight_source import WeightSource
from flexref.tiers.weights_plan import Needed, WeightsPlan, runs_to_load
from flexref.units import Kind, Tier

OPEN_BYTES = 4 << 30
"""Reads that are submitted before the first of them has ended: what a fast disk reads in the seconds that a layer of
long prompts takes on the host's processor, or a block's memory to be pinned."""

AT_ONCE, BESIDE = (Lane.DISK_IN, Lane.WEIGHTS_IN), (Lane.LOADING, Lane.LOADING)
"""The lanes of what is read and of what is copied to the device: where nothing else is done, and beside passes, which
have work of their own for the former. A copy of a piece takes a tenth of its reading at most, and the disk has been
asked for the next ones.
"""

WHAT = "loading"


class Home(Protocol):
    """Where a run has its home in memory."""

    @property
    def region(self) -> Region: ...


@dataclass(eq=False, slots=True)
class RunReading:
    """A run that is read in place, or passes through the host in pieces."""

    needed: Needed
    reader: DiskFile
    home: Home | None
    read_bytes: int = 0
    read_alone: bool = False
    """Whether it came damaged, and is read again by itself."""


@dataclass(eq=False, slots=True)
class Piece:
    """Bytes of a run that are under way; done with the last of its tickets."""

    of: RunReading
    nbytes: int
    tickets: Sequence[Ticket]


@dataclass(slots=True)
class Loading:
    """One loading of all weights. `homes`: by the name of a run's first tensor.

    `places` on the host, one at least, hold what passes through; `told` hears of bytes that have come, and of all.
    Whatever it raises ends it, and then nothing is under way any more.
    """

    plan: WeightsPlan
    mover: Mover
    source: WeightSource
    homes: Mapping[str, Home]
    places: Sequence[Region]
    told: Callable[[int, int], None] | None = None
    lanes: tuple[Lane, Lane] = AT_ONCE
    row_checksums: dict[str, npt.NDArray[np.uint64]] = field(init=False, default_factory=dict)
    """Of tables whose rows are read from disk one by one."""
    _submitting: Iterator[int] = field(init=False)
    _open: deque[Piece] = field(init=False, default_factory=deque)
    _open_bytes: int = field(init=False, default=0)
    _left: Counter[int] = field(init=False)
    """Runs that have not come, by the stage that needs them first."""
    _leaving: dict[int, Sequence[Ticket]] = field(init=False, default_factory=dict)
    """By place: what must be done before it is written to again."""
    _loaded_bytes: int = field(init=False, default=0)
    _total_bytes: int = field(init=False)
    _is_stopped: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        runs = runs_to_load(self.plan)
        self._total_bytes = sum(needed.run.nbytes for needed in runs)
        self._left = Counter(needed.stage for needed in runs)
        self._submitting = self._submissions(runs)

    @property
    def is_over(self) -> bool:
        """Whether all has come."""
        return not self._left.total()

    def go_on(self) -> None:
        """Take what has come, and submit what may be open beside the rest; waits for no disk."""
        with self._ending():
            while self._open and all(ticket.done() for ticket in self._open[0].tickets):
                self._finish_first()
            self._submit()
            self._let_go()

    def await_stage(self, number: int) -> None:
        """Wait for all that a pass has needed when it has been at a stage. Raises what `WeightStore.load` does."""
        with self._ending():
            self._submit()
            while any(self._left[each] for each in range(number + 1)):
                self._finish_first()
                self._submit()
            self._let_go()

    def finish(self) -> None:
        """Wait for all. Raises what `WeightStore.load` does; however it ends, nothing is under way any more."""
        self.await_stage(len(self.plan.stages) - 1)
        self.mover.settle()

    def stop(self) -> None:
        """Load no more: what was not read is not read any more, and nothing is under way.

        Whoever breaks the waiting for that off (`Mover.abandoned`) need not do so once more: it is done once.
        """
        if self._is_stopped:
            return
        self._is_stopped = True
        with suppress(Exception):  # it is of weights that nobody waits for, or of what has ended the loading already
            self.mover.settle()

    def _let_go(self) -> None:
        """When all has come: know no memory any more that others may give back."""
        if self.is_over:
            self.mover.harvest()

    @contextmanager
    def _ending(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.stop()
            raise

    def _submit(self) -> None:
        """Submit pieces until enough of them are open."""
        while self._open_bytes < OPEN_BYTES and next(self._submitting, 0):
            pass

    def _submissions(self, runs: Sequence[Needed]) -> Iterator[int]:
        """Submits one piece after another, and says how many bytes it has. Places take turns."""
        count = 0
        for needed in runs:
            reading = self._reading(needed)
            for start in self._starts(reading):
                if reading.read_alone:
                    break
                yield self._begin(reading, start, count % len(self.places))
                count += needed.tier is not Tier.HOST

    def _reading(self, needed: Needed) -> RunReading:
        run = needed.run
        home = None if needed.tier is Tier.DISK else self.homes[run.tensors[0].name]
        reader: DiskFile = self.source
        if needed.tier is Tier.HOST:
            reader = WholeRun(self.source, run)
        elif self.source.checked:
            # What has no home in memory is read for its check alone, and for checksums of rows where it has rows.
            tables = [tensor for tensor in run.tensors if tensor.spec.role is Role.TOKENS] if home is None else []
            reader = RunInPieces(self.source, run, tables)
        return RunReading(needed, reader, home)

    def _starts(self, reading: RunReading) -> range:
        """Where the pieces of a run start; what is read in place is one."""
        nbytes = reading.needed.run.nbytes
        return range(0, nbytes, nbytes if reading.needed.tier is Tier.HOST else self.places[0].nbytes)

    def _begin(self, reading: RunReading, start: int, place: int) -> int:
        """Submit a run's piece from `start` on, which is read when what was in its place before has left; its bytes."""
        tickets: list[Ticket] = []
        copies = self._copies(reading, start, place)
        passes_through = reading.needed.tier is not Tier.HOST
        for lane, copy in copies:
            after = tickets[-1:] or (self._leaving.get(place, ()) if passes_through else ())
            tickets.append(self.mover.submit(lane, [copy], after))
        if passes_through:
            self._leaving[place] = tickets[-1:]
        nbytes = copies[0][1].nbytes
        self._open.append(Piece(reading, nbytes, tickets))
        self._open_bytes += nbytes
        return nbytes

    def _copies(self, reading: RunReading, start: int, number: int) -> list[tuple[Lane, Copy]]:
        """How a run's piece from `start` on gets to its home on the host, or to place `number` and, if the run has a
        home, from there to it.
        """
        (read, bring), run, home = self.lanes, reading.needed.run, reading.home
        if reading.needed.tier is Tier.HOST and home is not None:
            source = Region(Tier.DISK, reading.reader, run.file_offset, run.nbytes)
            return [(read, Copy(Kind.WEIGHTS, WHAT, source, home.region.part(0, run.nbytes)))]
        size = min(self.places[number].nbytes, run.nbytes - start)
        place = self.places[number].part(0, size)
        source = Region(Tier.DISK, reading.reader, run.file_offset + start, size)
        copies = [(read, Copy(Kind.WEIGHTS, WHAT, source, place))]
        if home is not None:
            copies.append((bring, Copy(Kind.WEIGHTS, WHAT, place, home.region.part(start, size))))
        return copies

    def _finish_first(self) -> None:
        """Wait for what was submitted first; read its run again if that shows damage and there is hope."""
        piece = self._open.popleft()
        self._open_bytes -= piece.nbytes
        for ticket in piece.tickets:
            ticket.wait()
        reader = piece.of.reader
        if isinstance(reader, RunInPieces) and reader.failure is not None:
            self._come_to_rest()
            self._again(piece.of, reader)
            return
        self._came(piece.nbytes, piece.of)
        self.mover.check()

    def _came(self, nbytes: int, reading: RunReading) -> None:
        self._loaded_bytes += nbytes
        reading.read_bytes += nbytes
        if reading.read_bytes == reading.needed.run.nbytes:
            self._left[reading.needed.stage] -= 1
            if isinstance(reading.reader, RunInPieces):
                rows = reading.reader.rows.items()
                self.row_checksums.update({name: table.rows for name, table in rows if table.complete})
        if self.told is not None:
            self.told(self._loaded_bytes, self._total_bytes)

    def _again(self, reading: RunReading, reader: RunInPieces) -> None:
        """Read a run from its beginning on, piece by piece, until it passes its check; raises if it never will."""
        self._open = deque(piece for piece in self._open if piece.of is not reading)
        self._open_bytes = sum(piece.nbytes for piece in self._open)
        reading.read_alone = True
        while reader.failure is not None:
            reader.begin_again(reader.failure)
            self._loaded_bytes, reading.read_bytes = self._loaded_bytes - reading.read_bytes, 0
            for start in self._starts(reading):
                self._one_by_one(reading, start)
                if reader.failure is not None:
                    break
                self._came(min(self.places[0].nbytes, reading.needed.run.nbytes - start), reading)

    def _come_to_rest(self) -> None:
        """Wait for what is open, which is still wanted. What failed of other runs is raised when their turn comes."""
        for piece in self._open:
            for ticket in piece.tickets:
                with suppress(Exception):
                    ticket.wait()
        with suppress(Exception):
            self.mover.harvest()

    def _one_by_one(self, reading: RunReading, start: int) -> None:
        for lane, copy in self._copies(reading, start, 0):
            self.mover.run(lane, [copy])


def places_in(room: Region, nbytes: int) -> list[Region]:
    """A room cut into places of so many bytes each; itself if it has no more."""
    size = min(nbytes, room.nbytes)
    return [room.part(start, size) for start in range(0, room.nbytes - size + 1, size)] if size else [room]
