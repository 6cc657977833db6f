"""The whole CUDA port against the contract with no device: its kernels run on the CPU (see emulated_cuda.py)."""

from collections.abc import Iterator

import pytest
from emulated_bench import NO_COMPILER
from emulated_cuda import EmulatedCuda, compiler_is_here
from flexref_cupy import CupyBackend, events
from flexref_cupy.operators.on_host import is_possible
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.backend.protocol import LANES, Backend, HostWork
from flexref.testing import CONTRACT, clause_name, clauses_for
from flexref.testing.clauses.closing import a_closed_port_is_done_and_takes_no_work
from flexref.testing.contract import HOST_ATTENTION, Clause

pytestmark = pytest.mark.skipif(not compiler_is_here(), reason=NO_COMPILER)

DEVICES = {
    # The oldest and smallest; whatever the port asks for is done before the call returns, so that errors point at it.
    "at-once": {"capability": (7, 5), "multiprocessors": 3},
    # A newer and larger one; what streams are given is done as late as a device may do it: what waits for nobody shows.
    "late": {"capability": (9, 0), "multiprocessors": 40, "late": True},
}

PIECE_BYTES = {"at-once": 1 << 20, "late": 4096}
"""Of host memory: buffers are of one piece as a rule, or many are of several."""

CLAUSES = CONTRACT if is_possible() else tuple(clause for clause in CONTRACT if clause not in HOST_ATTENTION)


@pytest.fixture(scope="module", params=DEVICES)
def port(request: pytest.FixtureRequest) -> Iterator[Backend]:
    cuda = EmulatedCuda(**DEVICES[request.param])
    made = CupyBackend(cuda=cuda, piece_bytes=PIECE_BYTES[request.param])
    yield made
    made.close()
    assert not cuda.pinned()
    waited = {stream for stream, nbytes in cuda.pageable.items() if nbytes}
    assert waited <= {cuda.compute_stream, made.device.reading_stream}, "a lane had to wait"


def test_these_are_the_clauses_that_the_port_must_pass(port: Backend) -> None:
    assert clauses_for(port.caps) == CLAUSES


@pytest.mark.parametrize("clause", CLAUSES, ids=clause_name)
@settings(
    max_examples=settings.default.max_examples // 2
)  # on two devices, so that each clause has as many as elsewhere
@given(data=st.data())
def test_the_port_keeps_the_contract(port: Backend, clause: Clause, data: st.DataObject) -> None:
    clause(port, data)


def test_a_closed_port_has_given_back_streams_events_and_memory_and_refuses_work() -> None:
    cuda = EmulatedCuda(late=True)
    free = cuda.memory()
    port = CupyBackend(cuda=cuda)
    tickets = [port.submit(lane, [HostWork("work", lambda: None)] * count, ()) for count, lane in enumerate(LANES)]
    tickets.append(port.mark())
    for ticket in tickets:
        ticket.wait()
        ticket.times()
    port.close()
    port.close()
    for lane in LANES:
        with pytest.raises(RuntimeError, match=f"{lane} is closed"):
            port.submit(lane, (), ())
    tickets.clear()
    del ticket
    assert not cuda.alive()
    assert cuda.memory() == free


@pytest.mark.parametrize("late", [False, True])
def test_the_port_closes_as_every_port_must(late: bool) -> None:
    a_closed_port_is_done_and_takes_no_work(lambda: CupyBackend(cuda=EmulatedCuda(late=late)))


def test_anchors_of_the_clock_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "ANCHOR_S", 0.0)  # a new one for every time
    cuda = EmulatedCuda()
    port = CupyBackend(cuda=cuda)
    made = []
    for _ in range(20):
        port.mark().times()
        made.append(len(cuda.alive()))
    assert made[-1] == made[1]
    port.close()
