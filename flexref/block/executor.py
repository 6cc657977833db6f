"""Runs a block's beats: submits movements to lanes and calls computations; it knows not what is moved or computed.

A submission returns at once, with a ticket that is done when the work is. Before an operation may start, others must
have ended (`hazards`). The executor does not wait for these itself: it passes their tickets on, for a movement to its
lane and for a computation to the operators' own order (`Backend.wait`).
"""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from flexref.backend.protocol import Lane, Ticket
from flexref.schedule.hazards import requirements
from flexref.schedule.zigzag import Hop, Movement, Operation, Shape, Visit, beats
from flexref.tiers.mover import COMPUTE, Mover
from flexref.tiers.transfer import Traffic, Transfer
from flexref.units import Kind

LANE_OF = {
    (Hop.FETCH, Kind.WEIGHTS): Lane.DISK_IN,
    (Hop.FETCH, Kind.CACHE): Lane.DISK_IN,
    (Hop.FETCH, Kind.ACTIVATIONS): Lane.DISK_IN,
    (Hop.LOAD, Kind.WEIGHTS): Lane.WEIGHTS_IN,
    (Hop.LOAD, Kind.CACHE): Lane.CACHE_IN,
    (Hop.LOAD, Kind.ACTIVATIONS): Lane.CACHE_IN,
    (Hop.STORE, Kind.CACHE): Lane.CACHE_OUT,
    (Hop.STORE, Kind.ACTIVATIONS): Lane.CACHE_OUT,
    (Hop.SPILL, Kind.CACHE): Lane.DISK_OUT,
    (Hop.SPILL, Kind.ACTIVATIONS): Lane.DISK_OUT,
}
"""The lane of every movement. Weights have one of their own, so that they never wait for a row's cache."""


class Work(Protocol):
    """A block as the executor sees it: it turns movements into transfers, and visits into calls of operators."""

    def transfers(self, movement: Movement) -> Sequence[Transfer]:
        """The transfers of a movement; none where all of its data already lies where it is needed."""

    def prepare(self, visit: Visit) -> None:
        """Wait for what the visit needs and no movement brings."""

    def compute(self, visit: Visit) -> None:
        """Call the operators of a visit. Its data is on the device when they run."""

    def alive(self) -> bool:
        """Whether the pass that would begin now has anything to do."""

    def goes_on(self, pass_number: int) -> bool:
        """Whether that pass may come, asked in the one before it: what is loaded for it early would else be in vain."""


@dataclass(frozen=True, slots=True)
class Owed:
    """A ticket, its number in the order of submission, and its lane; None stands for the operators, which end in the
    order of their calls.
    """

    lane: Lane | None
    number: int
    ticket: Ticket


class Ledger:
    """Which tickets stand for an operation that others must wait for.

    Usually it is the operation's own ticket. A movement that has nothing to move has none. Then whoever requires it
    must wait for what it would have waited for, since a slot may be used again without a load in between: so it hands
    on these tickets. A lane works in order, so the latest ticket of every lane is enough, and the lists stay short even
    where the host is many visits ahead of the lanes.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._own: dict[Operation, Owed] = {}
        self._handed_on: dict[Operation, tuple[Owed, ...]] = {}
        self._numbers = count()

    def awaited(self, operation: Operation) -> list[Owed]:
        """The tickets, not done yet, of all that `operation` requires. Raises the error of one that has failed."""
        latest: dict[Lane | None, Owed] = {}
        found: list[Owed] = []
        for other in requirements(operation, self._shape):
            own = self._own.get(other)
            if own is not None:
                if _is_open(own):
                    found.append(own)
                continue
            for owed in self._handed_on.get(other, ()):
                known = latest.get(owed.lane)
                if (known is None or known.number < owed.number) and _is_open(owed):
                    latest[owed.lane] = owed
        direct = {owed.number for owed in found}
        return found + [owed for owed in latest.values() if owed.number not in direct]

    def owes(self, operation: Operation, lane: Lane | None, ticket: Ticket) -> None:
        """Note the operation's own ticket."""
        self._own[operation] = Owed(lane, next(self._numbers), ticket)

    def hands_on(self, operation: Operation, awaited: Sequence[Owed]) -> None:
        """Note that the operation moves nothing, and that what it awaited stands in its place."""
        latest: dict[Lane | None, Owed] = {}
        for owed in sorted(awaited, key=lambda owed: owed.number):
            latest[owed.lane] = owed
        self._handed_on[operation] = tuple(latest.values())

    def forget(self, pass_number: int) -> None:
        """Drop the tickets of all passes before `pass_number`: nothing to come requires them."""
        for table in (self._own, self._handed_on):
            for operation in [operation for operation in table if operation.visit.pass_number < pass_number]:
                del table[operation]  # type: ignore[attr-defined]


def _is_open(owed: Owed) -> bool:
    """Whether the ticket is not done yet. Raises its error if it has failed."""
    if not owed.ticket.done():
        return True
    owed.ticket.wait()
    return False


class ReadsOfVisits:
    """What is read from disk for visits that have not come yet; at the end, what was read for some that never did."""

    def __init__(self, traffic: Traffic) -> None:
        self.reached: Visit | None = None
        """The last visit that was computed."""
        self._traffic, self._before_bytes = traffic, traffic.unread_bytes
        self._begun: list[tuple[Visit, int]] = []

    def begun(self, visit: Visit, transfers: Sequence[Transfer]) -> None:
        """Reads for a visit are under way."""
        self._begun.append((visit, sum(transfer.nbytes for transfer in transfers)))

    def forget(self, pass_number: int) -> None:
        """A pass begins: what was read for those before it has been used."""
        self._begun = [(visit, nbytes) for visit, nbytes in self._begun if visit.pass_number >= pass_number]

    def close(self) -> None:
        """No visit comes any more, and no lane is at work."""
        reached = (-1, 0, 0) if self.reached is None else _order(self.reached)
        left = sum(nbytes for visit, nbytes in self._begun if _order(visit) > reached)
        unread = self._traffic.unread_bytes - self._before_bytes
        self._traffic.in_vain_bytes += max(0, left - unread)


def _order(visit: Visit) -> tuple[int, int, int]:
    return visit.pass_number, visit.stage, visit.group


def run(mover: Mover, work: Work, shape: Shape, *, overlap: bool) -> Generator[Visit, None, None]:
    """Run a block; yields every visit once its operators have been called, which may be before they have ended.

    Without `overlap`, every movement ends before the next operation starts. At the end, and after an error, it waits
    until no lane is at work. Raises the first failure of any lane and, after every beat, what `Mover.check` raises.
    """
    backend, ledger, reads = mover.backend, Ledger(shape), ReadsOfVisits(mover.traffic)

    def start(movement: Movement) -> None:
        transfers, awaited = work.transfers(movement), ledger.awaited(movement)
        if not transfers:
            ledger.hands_on(movement, awaited)
            return
        lane = LANE_OF[movement.hop, movement.kind]
        ticket = mover.submit(lane, transfers, [owed.ticket for owed in awaited], movement)
        ledger.owes(movement, lane, ticket)
        if lane is Lane.DISK_IN:
            reads.begun(movement.visit, transfers)
        if not overlap:
            ticket.wait()

    try:
        for beat in beats(shape, overlap=overlap, goes_on=work.goes_on):
            computation = beat.computation
            if computation is not None and _starts_pass(computation.visit):
                if not work.alive():
                    break
                mover.harvest()
                ledger.forget(computation.visit.pass_number - 1)
                reads.forget(computation.visit.pass_number)
            for movement in beat.ahead:
                start(movement)
            if computation is not None:
                work.prepare(computation.visit)
                for owed in ledger.awaited(computation) if shape.kinds else ():
                    backend.wait(owed.ticket)
                begin_s = time.perf_counter()
                work.compute(computation.visit)
                reads.reached = computation.visit
                if backend.caps.one_memory:  # the host's processor computes: operators end before their calls return
                    mover.traffic.worked(COMPUTE, time.perf_counter() - begin_s)
                if shape.kinds:  # else no lane waits for it
                    ledger.owes(computation, None, backend.mark())
            for movement in beat.after:
                start(movement)
            mover.check()
            if computation is not None:
                yield computation.visit
    finally:
        mover.settle()
        reads.close()


def _starts_pass(visit: Visit) -> bool:
    return visit.stage == 0 and visit.group == 0
