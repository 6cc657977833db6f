"""Pinning beside whatever else goes on: other memory, refusals, interrupts and lanes, beside a stand-in for CUDA."""

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from flexref_cupy.pinning import Pinning
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from pinning_kit import PIECE, REFUSED, Held, Registrations, no_thread_is_left, pinning_on

from flexref.errors import CapacityError


class Gated(Registrations):
    """Notes in which order it pins; what it begins when `is_closed` is set it ends when `go` is."""

    def __init__(self) -> None:
        super().__init__()
        self.order, self.is_closed = list[int](), False
        self.held, self.go = threading.Event(), threading.Event()

    def pin(self, address: int, nbytes: int) -> None:
        self.order.append(address)
        if self.is_closed:
            self.is_closed = False
            self.order = [address]
            self.held.set()
            self.go.wait()
        super().pin(address, nbytes)


def is_mapped(address: int) -> bool:
    """Whether the process has memory there."""
    with open("/proc/self/maps", encoding="ascii") as maps:
        spans = [line.split(" ", 1)[0].split("-") for line in maps]
    return any(int(first, 16) <= address < int(last, 16) for first, last in spans)


@contextmanager
def interrupts() -> Iterator[Callable[[], None]]:
    """Sends the main thread Ctrl-C, which acts at once."""
    main = threading.main_thread().ident or 0
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield lambda: signal.pthread_kill(main, signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("nbytes", [1, 3 * PIECE])
def test_memory_that_is_asked_for_does_not_wait_for_the_turns_of_other_memory(nbytes: int) -> None:
    cuda = Gated()
    pinning = pinning_on(cuda, 8)
    large = pinning.allocate(2000 * PIECE)
    cuda.is_closed = True
    assert cuda.held.wait(10)
    threading.Timer(0.3, cuda.go.set).start()  # when it has long been asked for
    memory = pinning.allocate(nbytes)
    assert pinning.find(cuda.order[1]) is memory, "it comes after what was under way"
    pinning.release(memory)
    pinning.release(large)


def test_who_waits_ends_the_pause_after_another_registration() -> None:
    class Once(Registrations):
        def pin(self, address: int, nbytes: int) -> None:
            if len(self.pinned) == 1:
                time.sleep(0.3)
            super().pin(address, nbytes)

    pinning = pinning_on(Once(), 1)
    large = pinning.allocate(5 * PIECE)  # its second piece takes 0.3 s, and as long a pause follows
    begin_s = time.perf_counter()
    small = pinning.allocate(1)
    assert time.perf_counter() - begin_s < 0.5
    pinning.release(small)
    pinning.release(large)


def test_room_that_memory_given_out_before_will_take_is_not_given_out_twice() -> None:
    touch = Held()
    touch.let.release()
    pinning = pinning_on(Registrations(), 1, touch, free_bytes=10 * PIECE)
    first = pinning.allocate(8 * PIECE)
    assert not first.whole
    assert pinning.free_bytes() == 3 * PIECE
    threading.Timer(0.05, lambda: touch.let.release(100)).start()
    second = pinning.allocate(8 * PIECE)
    assert second.whole, "the second was given out as if the first took nothing"
    pinning.settle()
    assert pinning.free_bytes() == 10 * PIECE
    pinning.release(first)
    pinning.release(second)


def test_pages_of_what_was_refused_go_however_long_its_error_lives() -> None:
    places = list[int]()
    pinning = pinning_on(Registrations({5: REFUSED}), 1, lambda address, nbytes: places.append(address))
    memory = pinning.allocate(9 * PIECE)
    with pytest.raises(CapacityError) as found:
        pinning.settle()
    pinning.release(memory)
    del memory
    assert found.value.__traceback__ is not None, "it knows the frames of those who pinned"
    assert not any(map(is_mapped, places))


def test_a_second_ctrl_c_leaves_no_registration_of_memory_that_has_gone() -> None:
    cuda, held = Registrations(), threading.Event()

    def touch(address: int, nbytes: int) -> None:
        if cuda.pinned and not held.is_set():
            interrupt()
            threading.Timer(0.1, interrupt).start()
            held.wait()

    pinning = pinning_on(cuda, 1, touch, free_bytes=0)
    with interrupts() as interrupt, pytest.raises(KeyboardInterrupt):
        pinning.allocate(3 * PIECE)
    gc.collect()
    (left,) = cuda.pinned
    assert is_mapped(left), "CUDA knows pages that may be another's now"
    held.set()
    pinning.release(pinning.allocate(1))
    assert not cuda.pinned, "the next allocation gives back what was left"
    assert not is_mapped(left)


def test_who_waits_for_memory_that_is_given_back_is_told() -> None:
    touch = Held()
    touch.let.release()
    pinning = pinning_on(Registrations(), 1, touch)
    memory = pinning.allocate(3 * PIECE)
    errors = list[RuntimeError]()

    def wait() -> None:
        try:
            memory.wait(2)
        except RuntimeError as error:
            errors.append(error)

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    threading.Timer(0.05, lambda: touch.let.release(3)).start()
    pinning.release(memory)
    waiter.join(5)
    assert not waiter.is_alive()
    assert "given back" in str(errors[0])


@pytest.mark.parametrize("of_a_lane", [False, True])
def test_waits_of_a_lane_are_no_time_of_the_caller(of_a_lane: bool) -> None:
    """The caller may compute meanwhile: its time goes on all the same, and is counted where it goes."""
    touch = Held()
    touch.let.release()
    pinning = pinning_on(Registrations(), 1, touch)
    memory = pinning.allocate(3 * PIECE)

    def wait() -> None:
        if of_a_lane:
            pinning.beside()
        pinning.left(memory.address + 2 * PIECE)

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.05)
    touch.let.release(2)
    waiter.join()
    assert (pinning.seconds > 0) is not of_a_lane
    pinning.release(memory)


class PinningStates(RuleBasedStateMachine):
    """Memory that comes, is copied and goes, while the system refuses some and Ctrl-C comes.

    What is drawn depends on no thread: a rule that has nothing to work on does nothing.
    """

    @initialize(threads=st.integers(1, 4))
    def begin(self, threads: int) -> None:
        self.cuda, self.free_bytes = Registrations(), 1 << 40
        self.touched: Callable[[], None] = lambda: None
        more: dict[str, Any] = {"touch": lambda address, nbytes: self.touched(), "spare_bytes": lambda: self.free_bytes}
        self.pinning = Pinning(self.cuda, PIECE, threads, **more)  # type: ignore[arg-type]
        self.alive: list[Any] = []
        self.armed, self.refusals = False, 0

    @rule(fails_after=st.integers(0, 8))
    def let_the_system_refuse(self, fails_after: int) -> None:
        """One of the next registrations, of whatever memory."""
        with self.cuda.lock:
            self.refusals += 1
            self.cuda.failures[self.cuda.calls + fails_after] = REFUSED

    @rule(pieces=st.integers(1, 6), scarce=st.booleans())
    def allocate(self, pieces: int, scarce: bool) -> None:
        self.free_bytes = 0 if scarce else 1 << 40
        try:
            memory = self.pinning.allocate(pieces * PIECE)
        except CapacityError:
            assert self.refusals
        else:
            assert memory.whole or not scarce
            self.alive.append(memory)

    @rule(pieces=st.integers(1, 6), twice=st.booleans())
    def allocate_as_ctrl_c_comes(self, pieces: int, twice: bool) -> None:
        """The second time it may break off what the first one began to give back."""
        come, sent, self.free_bytes, main = threading.Event(), threading.Event(), 0, threading.main_thread().ident or 0

        def touched() -> None:
            if come.is_set():
                return
            come.set()
            for _ in range(1 + twice):
                signal.pthread_kill(main, signal.SIGINT)
                time.sleep(0.002)
            sent.set()

        def act(number: int, frame: object) -> None:
            if self.armed:
                raise KeyboardInterrupt

        before = signal.signal(signal.SIGINT, act)
        with suppress(KeyboardInterrupt):
            try:
                self.touched, self.armed = touched, True
                self.pinning.allocate(pieces * PIECE)
                self.armed = False
            except (KeyboardInterrupt, CapacityError):
                self.armed = False
        self.armed = False
        assert sent.wait(10)
        signal.signal(signal.SIGINT, before)
        self.touched = lambda: None
        self.alive = list(self.pinning._by_address[1])

    @rule(which=st.integers(0, 99), at=st.integers(0, 6 * PIECE))
    def copy(self, which: int, at: int) -> None:
        if not self.alive:
            return
        memory = self.alive[which % len(self.alive)]
        try:
            left = self.pinning.left(memory.address + at % memory.nbytes)
        except CapacityError:
            assert memory.refused
            assert self.pinning.refused
        else:
            assert left == PIECE - at % memory.nbytes % PIECE
            assert memory.pieces[at % memory.nbytes // PIECE][0] in self.cuda.pinned

    @rule(which=st.integers(0, 99))
    def release(self, which: int) -> None:
        if not self.alive:
            return
        self.pinning.release(self.alive.pop(which % len(self.alive)))

    @rule()
    def settle(self) -> None:
        try:
            self.pinning.settle()
        except CapacityError:
            assert self.pinning.refused
        else:
            assert all(memory.whole for memory in self.alive)
            assert self.pinning.free_bytes() == self.free_bytes

    @invariant()
    def what_is_pinned_belongs_to_memory_that_is_there(self) -> None:
        ours = {address for memory in (*self.alive, *self.pinning._leaving) for address, _ in memory.pieces}
        with self.cuda.lock:
            assert self.cuda.pinned.keys() <= ours
        assert all(self.pinning.find(memory.address) is memory for memory in self.alive)
        still = self.free_bytes - sum(memory.nbytes for memory in self.alive)
        assert max(0, still) <= self.pinning.free_bytes() <= self.free_bytes

    def teardown(self) -> None:
        if not hasattr(self, "alive"):
            return
        for memory in self.alive:
            self.pinning.release(memory)
        self.cuda.failures.clear()
        self.free_bytes = 1 << 40
        self.pinning.release(self.pinning.allocate(1))
        assert not self.cuda.pinned
        assert not self.pinning._by_address[1]
        assert no_thread_is_left()


TestPinningStates = PinningStates.TestCase
TestPinningStates.settings = settings(max_examples=30, stateful_step_count=20)
