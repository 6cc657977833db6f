"""What a port does when it is closed: a law beside the contract, for it takes a port that nobody uses afterwards."""

from collections.abc import Callable

from flexref.backend.protocol import LANES, Backend, HostWork
from flexref.testing.bench import assert_raises

SUBMITTED = 20
"""Submissions that wait on a lane when the port is closed."""


def a_closed_port_is_done_and_takes_no_work(make: Callable[[], Backend]) -> None:
    """`close` ends what was submitted; `submit` after it raises on every lane, used before or not, for whoever waited
    for it would wait for ever. Closing again does nothing, and memory can still be given back."""
    port, ran = make(), list[str]()
    buffer = port.allocate("host", 64)
    work = HostWork("host work of a test", lambda: ran.append("before"))
    tickets = [port.submit(LANES[0], [work], ()) for _ in range(SUBMITTED)]
    port.close()
    done = sum(ticket.done() for ticket in tickets)
    assert done == SUBMITTED, f"after close {done} of {SUBMITTED} tickets are done, needed all"
    if port.caps.computes:
        assert len(ran) == SUBMITTED, f"until close {len(ran)} of {SUBMITTED} pieces of host work ran, needed all"
    late = [HostWork("host work of a test", lambda: ran.append("too late"))]
    for lane in LANES:
        assert_raises(RuntimeError, lambda lane=lane: port.submit(lane, late, ()), f"{lane} of a closed port")  # type: ignore[misc]
    assert "too late" not in ran, "a closed port ran host work, needed none"
    port.close()
    port.release(buffer)
