"""Runs a block's beats: starts every operation when what it requires is under way, and lets tickets order the rest.

It knows the schedule and the lanes, and nothing of what is moved or computed.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from flexref.backend.protocol import Ticket
from flexref.schedule.hazards import requirements
from flexref.schedule.zigzag import Operation, Shape, Visit, beats
from flexref.tiers.mover import Mover
from flexref.tiers.transfer import Transfer

LANE_OF = {
    ("fetch", "weights"): "disk_in",
    ("fetch", "cache"): "disk_in",
    ("fetch", "activations"): "disk_in",
    ("load", "weights"): "weights_in",
    ("load", "cache"): "cache_in",
    ("load", "activations"): "cache_in",
    ("store", "cache"): "cache_out",
    ("store", "activations"): "cache_out",
    ("spill", "cache"): "disk_out",
    ("spill", "activations"): "disk_out",
}
"""Each kind of move has its lane, so that a layer's weights never wait behind a row's cache."""


OPERATORS = "operators"
"""Stands for a lane: operators end in the order of their calls, too."""


class Work(Protocol):
    """What the executor's operations mean."""

    def transfers(self, operation: Operation) -> Sequence[Transfer]:
        """What a move has to move now; nothing, if all of it is at home where it is needed."""

    def compute(self, visit: Visit) -> None:
        """Call the operators of a visit, whose data is on the device by the time they run."""

    def alive(self) -> bool:
        """Whether another pass has anything to do."""


@dataclass(frozen=True, slots=True)
class Owed:
    """A ticket on the lane (or of the operators) that it is number `number` of."""

    lane: str
    number: int
    ticket: Ticket


class Ledger:
    """What must end before each operation has ended, as tickets.

    An operation owes its own ticket. Where it moves nothing it owes what it waits for, so that whoever requires it
    waits for that (a slot may be refilled by a computation, with no load in between); of this the latest on every lane
    is enough, for a lane works in order, and keeps the list short when the host is far ahead.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._own: dict[Operation, Owed] = {}
        self._passed_on: dict[Operation, tuple[Owed, ...]] = {}
        self._numbers = count()

    def awaited(self, operation: Operation) -> list[Owed]:
        """What is still owed of all that `operation` requires; raises if some of it has failed."""
        latest: dict[str, Owed] = {}
        found: list[Owed] = []
        for other in requirements(operation, self._shape):
            own = self._own.get(other)
            if own is not None:
                if _is_open(own):
                    found.append(own)
                continue
            for owed in self._passed_on.get(other, ()):
                known = latest.get(owed.lane)
                if (known is None or known.number < owed.number) and _is_open(owed):
                    latest[owed.lane] = owed
        direct = {owed.number for owed in found}
        return found + [owed for owed in latest.values() if owed.number not in direct]

    def owes(self, operation: Operation, lane: str, ticket: Ticket) -> None:
        """The operation has a ticket of its own."""
        self._own[operation] = Owed(lane, next(self._numbers), ticket)

    def passes_on(self, operation: Operation, awaited: Sequence[Owed]) -> None:
        """The operation moves nothing."""
        latest: dict[str, Owed] = {}
        for owed in sorted(awaited, key=lambda owed: owed.number):
            latest[owed.lane] = owed
        self._passed_on[operation] = tuple(latest.values())

    def forget(self, turn: int) -> None:
        """Drop what passes before `turn` owe: nothing that is still to come requires them."""
        for table in (self._own, self._passed_on):
            for operation in [operation for operation in table if operation.visit.turn < turn]:
                del table[operation]  # type: ignore[attr-defined]


def _is_open(owed: Owed) -> bool:
    """Whether the ticket is not done yet; raises if it has failed: nothing may be computed from what never arrived."""
    if not owed.ticket.done():
        return True
    owed.ticket.wait()
    return False


def run(mover: Mover, work: Work, shape: Shape, *, overlap: bool) -> Generator[Visit, None, None]:
    """Run the block; yields every visit when its operators have been called.

    Without `overlap` every move ends before the next operation starts. However it ends, nothing is under way any more
    when it has ended; the first failure of any lane is raised. Behind every beat the mover's `check` may end it.
    """
    backend, ledger = mover.backend, Ledger(shape)

    def start(operation: Operation) -> None:
        transfers, awaited = work.transfers(operation), ledger.awaited(operation)
        if not transfers:
            ledger.passes_on(operation, awaited)
            return
        lane = LANE_OF[operation.move, operation.kind]
        ticket = mover.submit(lane, transfers, [owed.ticket for owed in awaited])
        ledger.owes(operation, lane, ticket)
        if not overlap:
            ticket.wait()

    try:
        for beat in beats(shape, overlap=overlap):
            computation = beat.compute
            if computation is not None and _starts_turn(computation.visit):
                if not work.alive():
                    break
                mover.harvest()
                ledger.forget(computation.visit.turn - 1)
            for operation in beat.ahead:
                start(operation)
            if computation is not None:
                for owed in ledger.awaited(computation):
                    backend.wait(owed.ticket)
                work.compute(computation.visit)
                ledger.owes(computation, OPERATORS, backend.mark())
            for operation in beat.behind:
                start(operation)
            mover.check()
            if computation is not None:
                yield computation.visit
    finally:
        mover.settle()


def _starts_turn(visit: Visit) -> bool:
    return visit.stage == 0 and visit.group == 0 and visit.turn > 0
