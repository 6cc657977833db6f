"""Lanes as threads over streams: the contract's clauses on lanes, on a device that is as late as it may be."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from flexref_numpy import NumpyBackend
from flexref_numpy.lanes import Lane
from hypothesis import given
from hypothesis import strategies as st

from flexref.backend import device_streams
from flexref.backend.copies import copies_of
from flexref.backend.device_streams import DeviceClock, DeviceEvent, DeviceStream, streams_of
from flexref.backend.lane_threads import HostStream, LaneThread, StreamLanes, StreamTicket
from flexref.backend.parts import Parts
from flexref.backend.protocol import HostWork, Move, Span
from flexref.testing.clauses import lanes, moves
from flexref.testing.clauses.closing import a_closed_port_is_done_and_takes_no_work
from flexref.testing.contract import CONTRACT, Clause, clause_name, violation

OPERATORS = ("gather", "linear", "activate", "upload", "download", "assign")

DEVICE_CLOCK_S = 1e4
"""What the device's clock is ahead of the host's."""


class LateDevice:
    """Streams that do nothing before the host waits for it, and then only what is needed; an idle one notes events.

    It is called like `torch.cuda`.
    """

    def __init__(self) -> None:
        self.lock, self.here = threading.RLock(), threading.local()
        self.default: deque[Any] = deque()

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.here.stream = stream
        yield
        del self.here.stream

    def copy(self, work: Callable[[], None]) -> None:
        """What PyTorch's copies do: they go to the stream that is current in the thread."""
        with self.lock:
            self.here.stream.append(work)

    def Event(self, enable_timing: bool) -> "LateEvent":
        assert enable_timing
        return LateEvent(self)


class LateEvent:
    def __init__(self, device: LateDevice) -> None:
        self.device, self.at, self.stream = device, 0.0, deque[Any]()

    def record(self, stream: Any) -> None:
        with self.device.lock:
            self.stream = stream
            stream.append(self.reach)
            if len(stream) == 1:
                stream.popleft()()

    def reach(self) -> None:
        self.at = time.perf_counter() + DEVICE_CLOCK_S

    def wait(self, stream: Any) -> None:
        with self.device.lock:
            if stream or not self.at:
                stream.append(self.synchronize)

    def synchronize(self) -> None:
        with self.device.lock:
            while not self.at:
                self.stream.popleft()()

    def query(self) -> bool:
        return self.at > 0

    def elapsed_time(self, end: "LateEvent") -> float:
        return (end.at - self.at) * 1e3


class QueuedPort(StreamLanes, NumpyBackend):
    """numpy's operators, which wait for what their stream waits for, and lanes that give copies to a late device."""

    def __init__(self) -> None:
        super().__init__()
        device = LateDevice()
        self._late, self._on_device = device, set[int]()
        self._begin_lanes(*streams_of(device, lambda: (device.default,), deque))
        for name in OPERATORS:
            setattr(self, name, self._after_its_stream(getattr(self, name)))

    def _after_its_stream(self, operator: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self._stream.join()
            return operator(*arguments, **named)

        return call

    def allocate(self, tier: str, nbytes: int) -> Any:
        buffer = super().allocate(tier, nbytes)
        if tier == "device":
            self._on_device.add(buffer.ctypes.data)
        return buffer

    def _is_on_host(self, buffer: Any) -> bool:
        return np.asarray(buffer).ctypes.data not in self._on_device

    def _copy(self, target: Any, source: Any) -> None:
        self._late.copy(lambda: np.copyto(target, source))

    def close(self) -> None:
        super().close()
        NumpyBackend.close(self)


ABOUT_LANES = tuple(clause for clause in CONTRACT if clause.__module__ in (lanes.__name__, moves.__name__))


def broken(clauses: Sequence[Clause], examples: int) -> dict[str, str]:
    """What is wrong by the clause that says so."""
    port = QueuedPort()
    found = {clause_name(clause): violation(port, clause, examples) for clause in clauses}
    port.close()
    return {name: str(error) for name, error in found.items() if error is not None}


def test_lanes_over_streams_keep_the_contract() -> None:
    assert len(ABOUT_LANES) == 10
    assert broken(ABOUT_LANES, 15) == {}
    a_closed_port_is_done_and_takes_no_work(QueuedPort)


def nothing(self: Any, *arguments: Any) -> None: ...


@pytest.mark.parametrize(
    ("part", "name", "defect", "clause"),
    [
        (DeviceStream, "follow", nothing, lanes.a_lane_waits_for_other_lanes),
        (DeviceStream, "join", nothing, lanes.a_lane_keeps_its_order),
        (DeviceEvent, "wait", nothing, moves.moves_copy_exactly_their_bytes),
        (DeviceClock, "anchor", lambda clock: (clock.event(), 0.0), lanes.times_are_those_of_the_host),
    ],
)
def test_a_stream_that_is_wrong_is_rejected(
    part: type, name: str, defect: Any, clause: Clause, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part, name, defect)
    assert clause_name(clause) in broken([clause], 50)


@given(st.integers(1, 3), st.integers(0, 2))
def test_a_submission_that_fails_is_over_and_so_are_its_earlier_copies(copies: int, later: int) -> None:
    """Whoever hears of the failure gives memory back that these copies would still write to."""
    device, copied = LateDevice(), list[str]()
    stream = streams_of(device, lambda: (device.default,), deque)[1]()

    def give(move: Move, _: DeviceStream) -> None:
        if move.what == "wrong":
            raise IndexError("bytes beyond a buffer")
        device.copy(lambda: copied.append(move.what))

    lane = LaneThread("a lane", stream, give)
    span = Span(np.zeros(1, np.uint8), 0, 1)
    named = [*map(str, range(copies)), "wrong", *["not begun"] * later]
    ticket = lane.submit([Move(what, span, span) for what in named], ())
    with pytest.raises(IndexError, match="beyond a buffer"):
        ticket.wait()
    assert copied == named[:copies]
    lane.close()


def test_a_stream_that_cannot_be_joined_after_a_failure_is_heard_of_too() -> None:
    class Lost(HostStream):
        def join(self) -> None:
            raise RuntimeError("the device is lost")

    def give(move: Move, stream: Any) -> None:
        raise IndexError("bytes beyond a buffer")

    span, ticket = Span(np.zeros(1, np.uint8), 0, 1), StreamTicket[Any]()
    ticket.give(Lost(), [Move("a move", span, span)], (), give)
    with pytest.raises(RuntimeError, match="the device is lost") as caught:
        ticket.wait()
    assert isinstance(caught.value.__context__, IndexError)


def test_a_clock_is_compared_anew_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    device = LateDevice()
    clock = DeviceClock(device, lambda: (deque(),))
    first = clock.anchor()
    assert clock.anchor() is first
    assert abs(first[0].at - DEVICE_CLOCK_S - first[1]) < 60
    monkeypatch.setattr(device_streams, "ANCHOR_S", 0.0)
    assert clock.anchor()[1] > first[1]


def test_a_device_with_one_stream_shares_it() -> None:
    device = LateDevice()
    operators, beside = streams_of(device, lambda: (device.default,))
    assert beside() is operators
    with operators.active():
        pass
    assert operators.mark().done()


@st.composite
def moves(draw: st.DrawFn) -> Move:
    """Moves between two buffers of 64 bytes, in pieces or in parts."""
    source, target = np.arange(64, dtype=np.uint8), np.zeros(64, np.uint8)
    count = draw(st.integers(1, 4))
    nbytes = draw(st.integers(1, 64 // count))
    most = 64 if count == 1 else (64 - nbytes) // (count - 1)
    strides = [draw(st.sampled_from((nbytes, draw(st.integers(nbytes, most))))) for _ in range(2)]
    spans = [
        Span(buffer, draw(st.integers(0, 64 - nbytes - (count - 1) * stride)), nbytes, count, stride)
        for buffer, stride in zip((source, target), strides, strict=True)
    ]
    if count > 1 or draw(st.booleans()):
        return Move("a move", *spans)
    place = st.integers(0, nbytes - 1)
    each = [(draw(place), draw(place), 1) for _ in range(draw(st.integers(0, 3)))]
    return Move("a move", *spans, parts=Parts.of(each, nbytes, nbytes))


def copied(move: Move) -> list[int]:
    """What the target holds afterwards, byte by byte, as `Move` says."""
    source, target = (np.asarray(span.buffer).copy() for span in (move.source, move.target))
    span, goal = move.source, move.target
    pieces = [(n * span.stride, n * goal.stride, span.nbytes) for n in range(span.count)]
    for there, here, nbytes in pieces if move.parts is None else move.parts.each:
        for byte in range(nbytes):
            target[goal.offset + here + byte] = source[span.offset + there + byte]
    return target.tolist()


@given(moves())
def test_copies_of_a_move_copy_its_bytes_and_no_others(move: Move) -> None:
    source, target = (np.asarray(span.buffer).copy() for span in (move.source, move.target))
    copies = copies_of(move)
    for there, here, nbytes in copies:
        target[here : here + nbytes] = source[there : there + nbytes]
    assert target.tolist() == copied(move)
    assert sum(nbytes for _, _, nbytes in copies) == move.nbytes


@pytest.mark.parametrize("span", [Span(np.zeros(8, np.uint8), -1, 4), Span(np.zeros(8, np.uint8), 0, 4, 2, 5)])
def test_a_span_outside_its_buffer_is_refused(span: Span) -> None:
    whole = Span(np.zeros(64, np.uint8), 0, 4, span.count, 4)
    for move in (Move("a move", span, whole), Move("a move", whole, span)):
        with pytest.raises(IndexError, match="of a buffer of 8"):
            copies_of(move)


@pytest.mark.parametrize("make", [lambda: LaneThread("a lane", HostStream(), print), lambda: Lane("a lane")])
def test_a_lane_to_which_threads_submit_at_once_has_one_thread(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that starts is as late as it may be: meanwhile the other ones submit."""
    start = threading.Thread.start

    def late(thread: threading.Thread) -> None:
        if "lane" in thread.name:
            time.sleep(0.05)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", late)
    lane, here = make(), set[int]()
    work = [HostWork("a call", lambda: here.add(threading.get_ident()))]
    with ThreadPoolExecutor(3) as pool:
        for ticket in list(pool.map(lambda _: lane.submit(work, ()), range(3))):
            ticket.wait()
    assert len(here) == 1
    lane.close()


@pytest.mark.parametrize("make", [lambda: LaneThread("a lane", HostStream(), print), lambda: Lane("a lane")])
def test_a_lane_for_which_the_system_had_no_thread_works_once_it_has_one(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    lane, called = make(), list[int]()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        with pytest.raises(RuntimeError, match="start new thread"):
            lane.submit([HostWork("a call", lambda: called.append(1))], ())
    ticket = lane.submit([HostWork("another call", lambda: called.append(2))], ())
    lane.close()
    assert ticket.done()
    assert called == [2]
