"""Runs a block's beats: starts every operation when what it requires is under way, and lets tickets order the rest.

It knows the schedule and the lanes, and nothing of what is moved or computed.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

from flexref.backend.protocol import Ticket
from flexref.schedule.hazards import requirements
from flexref.schedule.zigzag import Operation, Shape, Visit, beats
from flexref.tiers.transfer import Mover, Transfer

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


class Work(Protocol):
    """What the executor's operations mean."""

    def transfers(self, operation: Operation) -> Sequence[Transfer]:
        """What a move has to move now; nothing, if all of it is at home where it is needed."""

    def compute(self, visit: Visit) -> None:
        """Call the operators of a visit, whose data is on the device by the time they run."""

    def alive(self) -> bool:
        """Whether another pass has anything to do."""


def run(mover: Mover, work: Work, shape: Shape, *, overlap: bool) -> Iterator[Visit]:
    """Run the block; yields every visit when its operators have been called.

    Without `overlap` every move ends before the next operation starts. However it ends, nothing is under way any more
    when it has ended; the first failure of any lane is raised.
    """
    # What must end before an operation has ended: its own ticket; where it moves nothing, those that it waits for, so
    # that whoever requires it waits for them (a slot may be refilled by a computation, with no load in between).
    tickets: dict[Operation, tuple[Ticket, ...]] = {}
    backend = mover.backend

    def awaited(operation: Operation) -> tuple[Ticket, ...]:
        open_tickets: dict[int, Ticket] = {}
        for other in requirements(operation, shape):
            for ticket in tickets.get(other, ()):
                if ticket.done():
                    ticket.wait()  # raises if it has failed: nothing may be computed from what never arrived
                else:
                    open_tickets[id(ticket)] = ticket
        return tuple(open_tickets.values())

    def start(operation: Operation) -> None:
        transfers = work.transfers(operation)
        if not transfers:
            tickets[operation] = awaited(operation)
            return
        ticket = mover.submit(LANE_OF[operation.move, operation.kind], transfers, awaited(operation))
        tickets[operation] = (ticket,)
        if not overlap:
            ticket.wait()

    try:
        for beat in beats(shape, overlap=overlap):
            computation = beat.compute
            if computation is not None and _starts_turn(computation.visit):
                if not work.alive():
                    break
                mover.harvest()
                _forget(tickets, computation.visit.turn - 1)
            for operation in beat.ahead:
                start(operation)
            if computation is not None:
                for ticket in awaited(computation):
                    backend.wait(ticket)
                work.compute(computation.visit)
                tickets[computation] = (backend.mark(),)
            for operation in beat.behind:
                start(operation)
            if computation is not None:
                yield computation.visit
    finally:
        mover.settle()


def _starts_turn(visit: Visit) -> bool:
    return visit.stage == 0 and visit.group == 0 and visit.turn > 0


def _forget(tickets: dict[Operation, tuple[Ticket, ...]], turn: int) -> None:
    """Drop the tickets of passes before `turn`: nothing that is still to come requires them."""
    for operation in [operation for operation in tickets if operation.visit.turn < turn]:
        del tickets[operation]
