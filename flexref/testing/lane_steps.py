"""Steps that tests submit to lanes, and the times of a ticket; it knows no law."""

import time
from collections.abc import Callable

from flexref.backend.protocol import HostWork, LaneStep, Ticket
from flexref.testing.bench import Bench, move, whole

LATE_S = 0.01
"""A step that sleeps so long is overtaken by every copy that does not wait for it."""

LONG_BYTES = 8 << 20
"""Some moves of so many bytes take longer than a port takes to start an operator after them."""


def host_work(call: Callable[[], None]) -> HostWork:
    return HostWork("host work of a test", call)


def late() -> HostWork:
    return host_work(lambda: time.sleep(LATE_S))


def long_moves(bench: Bench) -> list[LaneStep]:
    """Moves that take long on any device, and that no host has to wait for."""
    source, target = bench.buffer("host", LONG_BYTES), bench.buffer("device", LONG_BYTES)
    return [move(whole(source), whole(target))] * 4


def times_of(ticket: Ticket, steps: int | None = None) -> list[tuple[float, float]]:
    """(start, end) of every step of a ticket, or of a mark where no number of steps is given."""
    found = ticket.times()
    what, needed = ("a mark", "one pair of start and end")
    if steps is not None:
        what, needed = f"a ticket of {steps} steps", "a pair of start and end for every step"
    try:
        pairs = [(float(start), float(end)) for start, end in found]
    except (TypeError, ValueError):
        pairs = []
    assert len(pairs) == (1 if steps is None else steps), f"times() of {what} gives {found!r:.120}, needed {needed}"
    return pairs
