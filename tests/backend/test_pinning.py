"""Pinned memory and copies over its pieces, beside a stand-in for CUDA that refuses what CUDA refuses; no device."""

import signal
import threading
import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from flexref_cupy.memory import Buffer, Copying
from hypothesis import given
from hypothesis import strategies as st
from pinning_kit import PAGE, PIECE, REFUSED, Held, Registrations, no_thread_is_left, pinning_on

from flexref.backend.parts import Parts
from flexref.backend.protocol import Move, Span
from flexref.errors import CapacityError


@given(
    sizes=st.lists(st.integers(1, 9 * PIECE), min_size=1, max_size=4),
    threads=st.integers(1, 4),
    scarce=st.booleans(),
    settles=st.booleans(),
)
def test_memory_is_pinned_to_its_last_byte(sizes: list[int], threads: int, scarce: bool, settles: bool) -> None:
    cuda = Registrations()
    pinning = pinning_on(cuda, threads, free_bytes=0 if scarce else 1 << 40)
    memories = [pinning.allocate(nbytes) for nbytes in sizes]
    if settles:
        pinning.settle()
    for nbytes, memory in zip(sizes, memories, strict=True):
        assert memory.nbytes >= nbytes
        assert memory.address in cuda.pinned, "the first piece is, when it is given out"
        if scarce or settles:
            assert memory.whole
            assert all(cuda.pinned[address] == size for address, size in memory.pieces)
        assert sum(size for _, size in memory.pieces) == memory.nbytes
        assert not memory.bytes.any()
        for inside in (0, nbytes - 1, memory.nbytes - 1):
            assert pinning.find(memory.address + inside) is memory
    for memory in memories:
        pinning.release(memory)
        assert pinning.find(memory.address) is None
    assert not cuda.pinned
    assert no_thread_is_left()


@given(pieces=st.integers(2, 6), needed=st.integers(0, 5))
def test_a_copy_waits_for_the_piece_that_it_touches_and_for_no_other(pieces: int, needed: int) -> None:
    needed = min(needed, pieces - 1)
    cuda, touch = Registrations(), Held()
    touch.let.release()
    pinning = pinning_on(cuda, 1, touch)
    memory = pinning.allocate(pieces * PIECE)
    assert list(cuda.pinned) == [memory.address]
    found = threading.Thread(target=lambda: lefts.append(pinning.left(memory.address + needed * PIECE + 7)))
    lefts = list[int | None]()
    found.start()
    for number in range(1, needed + 1):
        assert not lefts, f"piece {needed} is not there, only {number}"
        touch.let.release()
    found.join(10)
    assert lefts == [PIECE - 7]
    assert memory.pieces[needed][0] in cuda.pinned
    touch.let.release(pieces)
    pinning.settle()
    assert touch.touched == [address for address, _ in memory.pieces], "from the start to the end"
    pinning.release(memory)


def test_what_is_waited_for_is_counted() -> None:
    touch = Held()
    touch.let.release()
    pinning = pinning_on(Registrations(), 1, touch)
    memory = pinning.allocate(3 * PIECE)
    assert pinning.left(memory.address) == PIECE
    before_s = pinning.seconds
    threading.Timer(0.1, lambda: touch.let.release(2)).start()
    assert pinning.left(memory.address + 2 * PIECE) == PIECE
    assert pinning.seconds - before_s >= 0.09
    pinning.settle()
    known_s = pinning.seconds
    assert pinning.left(memory.address + 2 * PIECE) == PIECE
    assert pinning.seconds == known_s, "nothing is waited for any more"
    pinning.release(memory)


class Until:
    """A ticket of work that is done at a time."""

    def __init__(self, end_s: float) -> None:
        self.end_s = end_s

    def done(self) -> bool:
        return time.perf_counter() >= self.end_s


@pytest.mark.parametrize("busy_s", [0.0, 0.1, 1.0])
def test_what_is_waited_for_beside_a_device_at_work_is_not_counted(busy_s: float) -> None:
    touch, begin_s = Held(), time.perf_counter()
    touch.let.release()
    tickets = [Until(begin_s), Until(begin_s + busy_s)]
    pinning = pinning_on(Registrations(), 1, touch, under_way=lambda: tickets)
    memory = pinning.allocate(2 * PIECE)
    threading.Timer(0.2, touch.let.release).start()
    assert pinning.left(memory.address + PIECE) == PIECE
    waited_s = time.perf_counter() - begin_s
    assert waited_s >= 0.2
    assert pinning.seconds <= max(0.0, waited_s - busy_s)
    assert (pinning.seconds > 0) is (busy_s < 1)
    pinning.release(memory)


@given(pieces=st.integers(2, 9), fails_at=st.integers(1, 8), threads=st.integers(1, 4), untouched=st.booleans())
def test_a_copy_of_what_was_refused_later_raises_why(pieces: int, fails_at: int, threads: int, untouched: bool) -> None:
    fails_at = min(fails_at, pieces - 1)

    def touch(address: int, nbytes: int) -> None:
        with one:
            calls.append(address)
            if untouched and len(calls) > fails_at:
                raise OSError(12, "Cannot allocate memory")

    one, calls = threading.Lock(), list[int]()
    cuda = Registrations({} if untouched else {fails_at: REFUSED})
    pinning = pinning_on(cuda, threads, touch)
    try:
        memory = pinning.allocate(pieces * PIECE)
    except CapacityError:
        assert threads > 1, "another thread's piece was refused before the first one came"
        assert not cuda.pinned
        return
    with pytest.raises(CapacityError) as found:
        pinning.settle()
    assert found.value.needed_bytes == pieces * PIECE, "it tells of a piece, not of what was asked for"
    assert "pinned memory was refused" in str(found.value)
    for address, _ in memory.pieces:
        if address in memory.pinned:
            assert pinning.left(address) == PIECE, "what is pinned is of use"
        else:
            with pytest.raises(CapacityError):
                pinning.left(address)
    pinning.release(memory)
    assert not cuda.pinned
    assert no_thread_is_left()


@given(pieces=st.integers(2, 9), let=st.integers(1, 8), threads=st.integers(1, 4))
def test_memory_that_is_given_back_before_all_of_it_is_pinned_leaves_nothing(
    pieces: int, let: int, threads: int
) -> None:
    cuda, touch = Registrations(), Held()
    touch.let.release(min(let, pieces))
    pinning = pinning_on(cuda, threads, touch)
    memory = pinning.allocate(pieces * PIECE)
    threading.Timer(0.002, lambda: touch.let.release(pieces + threads)).start()
    pinning.release(memory)
    assert not cuda.pinned
    assert no_thread_is_left()


FAILURES = st.sampled_from([REFUSED, RuntimeError("the device is gone"), KeyboardInterrupt()])


@given(
    pieces=st.integers(1, 9),
    failures=st.dictionaries(st.integers(0, 8), FAILURES, min_size=1),
    threads=st.integers(1, 4),
    untouched=st.booleans(),
)
def test_what_is_refused_leaves_nothing_pinned(
    pieces: int, failures: dict[int, BaseException], threads: int, untouched: bool
) -> None:
    def touch(address: int, nbytes: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    cuda = Registrations(failures)
    pinning = pinning_on(cuda, threads, touch if untouched else None, free_bytes=0)
    if not untouched and min(failures) >= pieces:
        pinning.release(pinning.allocate(pieces * PIECE))
        assert not cuda.pinned
        return
    with pytest.raises((CapacityError, RuntimeError, KeyboardInterrupt)) as found:
        pinning.allocate(pieces * PIECE)
    if untouched:
        assert isinstance(found.value, CapacityError)
    if isinstance(found.value, CapacityError):
        assert found.value.needed_bytes == pieces * PIECE, "it tells of a piece, not of what was asked for"
        assert "pinned memory was refused" in str(found.value)
        assert "\n" not in str(found.value)
    assert not cuda.pinned
    assert not pinning._by_address[1]
    assert no_thread_is_left()


def test_ctrl_c_while_memory_is_pinned_gives_back_what_was() -> None:
    class Interrupting(Registrations):
        def pin(self, address: int, nbytes: int) -> None:
            super().pin(address, nbytes)
            if address == first_of[0]:
                time.sleep(0.1)  # until all pieces have been asked for
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.01)

    cuda, first_of = Interrupting(), list[int]()
    pinning = pinning_on(cuda, touch=lambda address, nbytes: first_of.append(address), free_bytes=0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            pinning.allocate(100 * PIECE)
    finally:
        signal.signal(signal.SIGINT, before)
    assert cuda.calls < 100, "it went on after the interrupt"
    assert not cuda.pinned
    assert no_thread_is_left()


HOST_BYTES = 5 * PIECE
"""Of either side of a copy: several pieces."""


@st.composite
def moves(draw: st.DrawFn) -> tuple[str, Any]:
    """A move's shape: one range, rows, or parts, anywhere in both sides."""
    if draw(st.booleans()):
        nbytes = draw(st.integers(1, HOST_BYTES // 2))
        strides = [nbytes + draw(st.integers(0, PAGE)) for _ in range(2)]
        rows = draw(st.integers(1, min(1 + (HOST_BYTES - nbytes) // stride for stride in strides)))
        starts = [draw(st.integers(0, HOST_BYTES - (rows - 1) * stride - nbytes)) for stride in strides]
        return "rows", (nbytes, rows, starts, strides)
    cuts = sorted(draw(st.sets(st.integers(0, HOST_BYTES), min_size=2, max_size=6)))
    return "parts", tuple((first, first, last - first) for first, last in pairwise(cuts))


@given(move=moves(), device_is=st.sampled_from(["source", "target", "neither"]))
def test_copies_are_cut_where_pieces_meet(move: tuple[str, Any], device_is: str) -> None:
    cuda = Registrations()
    pinning = pinning_on(cuda)
    source, target = pinning.allocate(HOST_BYTES), pinning.allocate(HOST_BYTES)
    held = {"source": source.bytes, "target": target.bytes}
    if device_is != "neither":  # memory in no registration, as the device's is
        held[device_is] = np.zeros(HOST_BYTES, np.uint8)
    held["source"][:] = np.random.default_rng(0).integers(0, 256, HOST_BYTES, np.uint8)
    expected = held["target"].copy()
    ends = [Buffer("host", int(held[side].ctypes.data), HOST_BYTES, held[side]) for side in ("source", "target")]
    if move[0] == "rows":
        nbytes, rows, starts, strides = move[1]
        for row in range(rows):
            here, there = (starts[side] + row * strides[side] for side in range(2))
            expected[there : there + nbytes] = held["source"][here : here + nbytes]
        spans = [Span(ends[side], starts[side], nbytes, rows, strides[side]) for side in range(2)]
        asked = Move("a test's", *spans)
    else:
        for here, there, nbytes in move[1]:
            expected[there : there + nbytes] = held["source"][here : here + nbytes]
        spans = [Span(buffer, 0, HOST_BYTES) for buffer in ends]
        asked = Move("a test's", *spans, Parts.of(move[1], HOST_BYTES, HOST_BYTES))
    Copying(cuda, pinning).move(asked, 0)  # type: ignore[arg-type]
    np.testing.assert_array_equal(held["target"], expected)
