"""Runs a block's beats: submits movements to lanes and calls computations, in the order of the schedule.

It does not wait for an operation's requirements itself: it hands their tickets to the lane or, for a computation, to
the operators, which wait. It knows the schedule and the lanes, and nothing of what is moved or computed.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from flexref.backend.protocol import Lane, Ticket
from flexref.schedule.hazards import requirements
from flexref.schedule.zigzag import Hop, Movement, Operation, Shape, Visit, beats
from flexref.tiers.mover import Mover
from flexref.tiers.transfer import Transfer
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
"""Each kind of move has its lane, so that a layer's weights never wait for a row's cache."""


class Work(Protocol):
    """What the executor runs: it turns movements into transfers, and computations into calls of operators."""

    def transfers(self, movement: Movement) -> Sequence[Transfer]:
        """The transfers of a movement, at this time; none, if all of its data lies where it is needed."""

    def compute(self, visit: Visit) -> None:
        """Call the operators of a visit. Its data is on the device when they run."""

    def alive(self) -> bool:
        """Whether another pass has anything to do."""


@dataclass(frozen=True, slots=True)
class Owed:
    """A ticket that is waited for, by number in the order of submission. `lane` None: a mark of the operators, which
    end in the order of their calls.
    """

    lane: Lane | None
    number: int
    ticket: Ticket


class Ledger:
    """The tickets to wait for, by operation.

    Usually that is the operation's own ticket. An operation that moves nothing has none: it hands on the tickets that
    it would have waited for, so that those who require it wait for them (a slot may be refilled by a computation, with
    no load in between). Of these the latest on every lane is enough, since a lane works in order. That keeps the lists
    short where the host is many visits further than the lanes.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._own: dict[Operation, Owed] = {}
        self._handed_on: dict[Operation, tuple[Owed, ...]] = {}
        self._numbers = count()

    def awaited(self, operation: Operation) -> list[Owed]:
        """The open tickets of all that `operation` requires; raises if one has failed."""
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
        """Note that the operation moves nothing: what it awaited is awaited in its place."""
        latest: dict[Lane | None, Owed] = {}
        for owed in sorted(awaited, key=lambda owed: owed.number):
            latest[owed.lane] = owed
        self._handed_on[operation] = tuple(latest.values())

    def forget(self, pass_number: int) -> None:
        """Drop the tickets of passes before that one: nothing that is still to come requires them."""
        for table in (self._own, self._handed_on):
            for operation in [operation for operation in table if operation.visit.pass_number < pass_number]:
                del table[operation]  # type: ignore[attr-defined]


def _is_open(owed: Owed) -> bool:
    """Whether the ticket is not done yet; raises if it has failed: nothing may be computed from what never arrived."""
    if not owed.ticket.done():
        return True
    owed.ticket.wait()
    return False


def run(mover: Mover, work: Work, shape: Shape, *, overlap: bool) -> Generator[Visit, None, None]:
    """Run the block; yields every visit when its operators have been called.

    Without `overlap` every movement ends before the next operation starts. However the run ends, it first waits until
    no lane is at work. Raises the first failure of any lane, and after every beat what the mover's `check` raises.
    """
    backend, ledger = mover.backend, Ledger(shape)

    def start(movement: Movement) -> None:
        transfers, awaited = work.transfers(movement), ledger.awaited(movement)
        if not transfers:
            ledger.hands_on(movement, awaited)
            return
        lane = LANE_OF[movement.hop, movement.kind]
        ticket = mover.submit(lane, transfers, [owed.ticket for owed in awaited], movement)
        ledger.owes(movement, lane, ticket)
        if not overlap:
            ticket.wait()

    try:
        for beat in beats(shape, overlap=overlap):
            computation = beat.computation
            if computation is not None and _starts_pass(computation.visit):
                if not work.alive():
                    break
                mover.harvest()
                ledger.forget(computation.visit.pass_number - 1)
            for movement in beat.ahead:
                start(movement)
            if computation is not None:
                for owed in ledger.awaited(computation):
                    backend.wait(owed.ticket)
                work.compute(computation.visit)
                ledger.owes(computation, None, backend.mark())
            for movement in beat.after:
                start(movement)
            mover.check()
            if computation is not None:
                yield computation.visit
    finally:
        mover.settle()


def _starts_pass(visit: Visit) -> bool:
    return visit.stage == 0 and visit.group == 0
