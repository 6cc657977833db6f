"""Memory that is pinned in the background, beside a model: slow, refused and given back in any order; no device."""

import ctypes
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flexref_cupy.memory import Copying
from flexref_cupy.pinning import PinnedMemory, Pinning
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from flexref.errors import CapacityError

PAGE = 4096
PIECE = 4 * PAGE
THREADS = 2
PATIENCE_S = 20.0
"""Far longer than anything here takes: what takes longer hangs."""

REFUSAL = CapacityError("host", "pinned memory", PIECE, 0, {}, "pinned memory was refused by this test")
FAILURES = st.sampled_from([REFUSAL, RuntimeError("the device is gone")])


@dataclass(eq=False)
class SlowCuda:
    """Pins in threads other than the first only when it is told to, and notices what CUDA would refuse."""

    held: bool = True
    asked: list[int] = field(default_factory=list)
    """Addresses whose pinning waits, in the order in which it was asked for."""
    pinned: dict[int, int] = field(default_factory=dict)
    answers: dict[int, BaseException | None] = field(default_factory=dict)
    state: threading.Condition = field(default_factory=threading.Condition)
    order: list[int] = field(default_factory=list)
    first: threading.Thread = field(default_factory=threading.current_thread)

    def join_thread(self) -> None:
        assert threading.current_thread() is not self.first

    def pin(self, address: int, nbytes: int) -> None:
        with self.state:
            self.order.append(address)
            if self.held and threading.current_thread() is not self.first:
                self.asked.append(address)
                self.state.notify_all()
                assert self.state.wait_for(lambda: address in self.answers or not self.held, PATIENCE_S)
                failure = self.answers.pop(address, None)
                if address in self.asked:
                    self.asked.remove(address)
                if failure is not None:
                    raise failure
            others = self.pinned.items()
            assert not any(at < address + nbytes and address < at + size for at, size in others), "pinned twice"
            self.pinned[address] = nbytes

    def unpin(self, address: int) -> None:
        with self.state:
            del self.pinned[address]

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self.copy_rows((target, nbytes), (source, nbytes), nbytes, 1, stream)

    def copy_rows(self, target: tuple[int, int], source: tuple[int, int], nbytes: int, rows: int, stream: int) -> None:
        first, last = source[0], source[0] + (rows - 1) * source[1] + nbytes
        assert any(at <= first and last <= at + size for at, size in self.pinned.items()), "not within one registration"
        for row in range(rows):
            ctypes.memmove(target[0] + row * target[1], source[0] + row * source[1], nbytes)

    def answer(self, address: int, failure: BaseException | None) -> None:
        with self.state:
            self.answers[address] = failure
            self.asked.remove(address)
            self.state.notify_all()


@dataclass(eq=False)
class Held:
    """Memory that was asked for, and what its bytes should be."""

    memory: PinnedMemory
    expected: npt.NDArray[np.uint8]


@dataclass(eq=False)
class Reader:
    """A thread that copies rows of a memory as soon as they have come."""

    held: Held
    first: int
    stride: int
    nbytes: int
    rows: int
    found: npt.NDArray[np.uint8] | None = None
    error: BaseException | None = None
    thread: threading.Thread | None = None

    @property
    def pieces(self) -> range:
        return self.held.memory.touched(self.held.memory.address + self.first, self.whole)

    @property
    def whole(self) -> int:
        return (self.rows - 1) * self.stride + self.nbytes


class PinningStates(RuleBasedStateMachine):
    """The host writes to memory before, while and after it is pinned, as reads from disk do."""

    def __init__(self) -> None:
        super().__init__()
        self.cuda = SlowCuda()
        self.pinning = Pinning(self.cuda, PIECE, THREADS)  # type: ignore[arg-type]
        self.held: list[Held] = []
        self.readers: list[Reader] = []
        self.marks = 0

    # What may happen

    @rule(nbytes=st.sampled_from([PAGE, PIECE, 3 * PIECE, 5 * PIECE - PAGE, 7 * PIECE]) | st.integers(1, 7 * PIECE))
    def allocate(self, nbytes: int) -> None:
        memory = self.pinning.allocate(nbytes)
        assert not memory.bytes.any()
        self.held.append(Held(memory, np.zeros(memory.nbytes, np.uint8)))
        if memory.nbytes <= PIECE // 4:
            assert self.cuda.pinned[memory.address] == memory.nbytes, "small memory is there at once"
        self.settle()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.held))
        if any(reader.held is held for reader in self.readers):
            return
        first = data.draw(st.integers(0, held.memory.nbytes - 1))
        part = slice(first, first + data.draw(st.integers(1, held.memory.nbytes)))
        self.marks = self.marks % 255 + 1
        held.memory.bytes[part] = held.expected[part] = self.marks

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.held))
        size = held.memory.nbytes
        first = data.draw(st.integers(0, size - 1))
        nbytes = data.draw(st.integers(1, size - first))
        stride = nbytes + data.draw(st.integers(0, PAGE))
        rows = 1 + data.draw(st.integers(0, (size - first - nbytes) // stride))
        reader = Reader(held, first, stride, nbytes, rows)
        reader.thread = threading.Thread(target=self.copy, args=(reader,), daemon=True)
        self.readers.append(reader)
        reader.thread.start()
        thread = reader.thread
        self.until(
            lambda: not thread.is_alive() or self.pinning.held_up._lanes == len(self.readers), "a reader does not begin"
        )
        self.settle()

    @precondition(lambda self: self.cuda.asked)
    @rule(data=st.data(), failure=st.none() | st.none() | st.none() | FAILURES)
    def let_one_through(self, data: st.DataObject, failure: BaseException | None) -> None:
        starts = [held.memory.extent(piece)[0] for held in self.held for piece in range(len(held.memory.pieces))]
        asked = [address for address in starts if address in self.cuda.asked]
        self.cuda.answer(asked[data.draw(st.integers(0, len(asked) - 1))], failure)
        self.settle()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.held))
        if any(reader.held is held for reader in self.readers):
            return
        self.held.remove(held)
        self.release(held.memory, data.draw(st.none() | FAILURES))
        self.settle()

    # What must hold

    def copy(self, reader: Reader) -> None:
        memory = reader.held.memory
        address = memory.address + reader.first
        try:
            self.pinning.need(address, reader.whole)
            found = np.zeros((reader.rows, reader.nbytes), np.uint8)
            target = found.ctypes.data, reader.nbytes
            copying = Copying(self.cuda, self.pinning)  # type: ignore[arg-type]
            copying.copy_rows(target, (address, reader.stride), reader.nbytes, reader.rows, 0)
            reader.found = found
        except BaseException as error:
            reader.error = error

    def settle(self) -> None:
        """Wait until every thread waits for an answer or has ended; then whoever can have been served has been."""
        self.until(self.is_still, "threads of the pinning hang")
        for reader in list(self.readers):
            memory = reader.held.memory
            if not memory.is_pinned(reader.pieces) and memory.error is None:
                continue
            assert reader.thread is not None
            reader.thread.join(PATIENCE_S)
            assert not reader.thread.is_alive(), "whoever can be served still waits"
            self.readers.remove(reader)
            if reader.error is not None:
                assert isinstance(reader.error, CapacityError), repr(reader.error)
                assert reader.error.needed_bytes == memory.nbytes
                assert "pinned memory was refused" in str(reader.error)
                assert "\n" not in str(reader.error)
                assert memory.error is not None
                continue
            places = reader.first + np.arange(reader.rows)[:, None] * reader.stride + np.arange(reader.nbytes)
            np.testing.assert_array_equal(reader.found, reader.held.expected[places])
        for held in self.held:
            np.testing.assert_array_equal(held.memory.bytes, held.expected)
            spans = (held.memory.extent(piece) for piece, state in enumerate(held.memory.pieces) if state == 2)
            assert all(self.cuda.pinned[address] == nbytes for address, nbytes in spans)

    def is_still(self) -> bool:
        with self.pinning._state:
            owed = sum(
                sum(state == 0 for state in held.memory.pieces) for held in self.held if held.memory.error is None
            )
            at_work = sum(state == 1 for held in self.held for state in held.memory.pieces)
        return len(self.cuda.asked) == at_work and at_work == min(THREADS, owed + at_work) and not self.cuda.answers

    def until(self, condition: Callable[[], bool], otherwise: str) -> None:
        waiter = threading.Event()
        for _ in range(int(PATIENCE_S / 0.001)):
            if condition():
                return
            waiter.wait(0.001)
        raise AssertionError(otherwise)

    def release(self, memory: PinnedMemory, failure: BaseException | None) -> None:
        thread = threading.Thread(target=self.pinning.release, args=(memory,), daemon=True)
        thread.start()
        own = range(memory.address, memory.address + memory.nbytes)

        def answer_own() -> bool:
            for address in [address for address in self.cuda.asked if address in own]:
                self.cuda.answer(address, failure)
            return not thread.is_alive()

        self.until(answer_own, "release hangs")
        assert not any(address in own for address in self.cuda.pinned), "memory was given back while it was pinned"

    def teardown(self) -> None:
        for held in list(self.held):
            if not any(reader.held is held for reader in self.readers):
                self.held.remove(held)
                self.release(held.memory, None)
        with self.cuda.state:
            self.cuda.held = False
            self.cuda.state.notify_all()
        self.pinning.close()
        assert not any(thread.is_alive() for thread in self.pinning._threads)
        for reader in self.readers:
            assert reader.thread is not None
            reader.thread.join(PATIENCE_S)
            assert not reader.thread.is_alive(), "a closed port keeps somebody waiting"
        for held in self.held:
            self.pinning.release(held.memory)
        assert not self.cuda.pinned


def test_what_is_copied_was_pinned_and_holds_what_was_written() -> None:
    run_state_machine_as_test(PinningStates)


def test_what_the_host_writes_before_its_pages_are_there_stays() -> None:
    cuda = SlowCuda()
    pinning: Any = Pinning(cuda, PIECE, 1)  # type: ignore[arg-type]
    memory = pinning.allocate(4 * PIECE)
    memory.bytes[:] = 7  # as a read from disk may, that does not wait
    with cuda.state:
        cuda.held = False
        cuda.state.notify_all()
    pinning.need(memory.address, memory.nbytes)
    assert (memory.bytes == 7).all()
    pinning.close()


def test_what_somebody_waits_for_comes_next() -> None:
    cuda = SlowCuda()
    pinning: Any = Pinning(cuda, PIECE, 1)  # type: ignore[arg-type]
    memory = pinning.allocate(10 * PIECE)
    start = memory.address
    waiter = threading.Thread(target=pinning.need, args=(start + 6 * PIECE - 1, 2), daemon=True)
    try:
        waiting = threading.Event()
        while not cuda.asked:
            waiting.wait(0.001)
        waiter.start()
        while (memory, 5) != pinning._queue[0]:
            waiting.wait(0.001)
        with cuda.state:
            cuda.held = False
            cuda.state.notify_all()
        waiter.join(PATIENCE_S)
        assert not waiter.is_alive()
        pinning.need(start, 10 * PIECE)
        order = [(address - start) // PIECE for address in cuda.order]
        assert order == [0, 5, 6, 1, 2, 3, 4, 7, 8, 9]
        assert Counter(order).most_common(1)[0][1] == 1
    finally:
        pinning.close()


def test_a_system_that_refuses_threads_is_told_of_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    cuda = SlowCuda()
    pinning: Any = Pinning(cuda, PIECE, THREADS)  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            pinning.allocate(PIECE)
    assert not pinning.coming
    assert not pinning._queue
    pinning.close()
