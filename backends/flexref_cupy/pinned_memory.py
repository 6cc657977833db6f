"""Host memory in pieces that threads pin and others wait for, and whose turn it is to register; it calls no CUDA."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from flexref.backend.host_pages import mapped
from flexref_cupy.driver.cuda import refused


class Turns:
    """Registrations are made one at a time, first those of memory that somebody waits for.

    And not in a row: CUDA starts nothing while it registers, so a thread that calls it would wait for all that others
    register before its turn. As long a pause follows each, which ends when somebody waits.
    """

    def __init__(self) -> None:
        self.state = threading.Condition()
        """That of all memory whose turns these are."""
        self._waited_for: dict[object, PinnedMemory] = {}
        """By who waits, for what."""
        self._taken = False

    @contextmanager
    def waiting(self, memory: "PinnedMemory") -> Iterator[None]:
        """Somebody waits for memory meanwhile; the state is held."""
        who = object()
        try:
            self._waited_for[who] = memory
            self.state.notify_all()
            yield
        finally:
            self._waited_for.pop(who, None)
            self.state.notify_all()

    def register(self, memory: "PinnedMemory", call: Callable[[], None]) -> None:
        """Call when it is the turn of this memory, and never if nothing more of it is to be pinned before."""
        with self.state:
            self.state.wait_for(lambda: memory.ended or self._is_turn_of(memory))
            if memory.ended:
                return
            self._taken = True
        try:
            begin_s = time.perf_counter()
            call()
            took_s = time.perf_counter() - begin_s
            with self.state:
                self.state.wait_for(lambda: memory.ended or self._hurry(), took_s)
        finally:
            with self.state:
                self._taken = False
                self.state.notify_all()

    def _is_turn_of(self, memory: "PinnedMemory") -> bool:
        hurry = self._hurry()
        return not self._taken and (not hurry or memory in hurry)

    def _hurry(self) -> list["PinnedMemory"]:
        """What is waited for and still comes; an interrupt may leave behind who waited."""
        return [memory for memory in self._waited_for.values() if not (memory.whole or memory.ended)]


class PinnedMemory:
    """`nbytes` from `address` on, in pieces of `piece_bytes`, the last of which may be shorter; pinned by `Pinning`."""

    def __init__(self, nbytes: int, piece_bytes: int, turns: Turns) -> None:
        """Maps address space; nothing of it is present yet. `CapacityError` if the system refuses."""
        self.nbytes, self.piece_bytes = nbytes, piece_bytes
        try:
            self.bytes = mapped(nbytes)
        except (OSError, OverflowError) as error:
            raise refused(nbytes, f"the system has no room for it: {error}") from error
        self.address = int(self.bytes.ctypes.data)
        starts = range(0, nbytes, piece_bytes)
        self.pieces = [(self.address + start, min(piece_bytes, nbytes - start)) for start in starts]
        """Where every piece starts, and its bytes."""
        self.whole = False
        """Whether all of it is pinned: what is asked before every copy."""
        self.ended = False
        """Whether nothing more of it is to be pinned."""
        self.refused = False
        """Whether a piece could not be pinned."""
        self._turns, self._state = turns, turns.state
        self._at_work = 0
        self._next = iter(range(len(self.pieces)))
        self._pinned: set[int] = set()
        self._error: BaseException | None = None

    @property
    def pinned(self) -> list[int]:
        """Where the pieces start that are pinned."""
        with self._state:
            return [self.pieces[number][0] for number in sorted(self._pinned)]

    @property
    def awaited_bytes(self) -> int:
        """Bytes that are still to be pinned, for which the system must find room."""
        with self._state:
            return 0 if self.ended else self.nbytes - sum(self.pieces[number][1] for number in self._pinned)

    def wait(self, number: int | None = None, at_most_s: float | None = None) -> bool:
        """Wait until a piece is pinned, or all of them; whether it is, after `at_most_s`. Raises why it never will."""
        with self._state:
            with self._turns.waiting(self):
                if not self._state.wait_for(lambda: self.ended or self._has(number), at_most_s):
                    return False
            if not self._has(number):
                raise self._error or RuntimeError(
                    "pinned memory is waited for that was given back, or whose port is closed"
                )
            return True

    def _has(self, number: int | None) -> bool:
        return self.whole if number is None else number in self._pinned

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """A thread pins pieces meanwhile, or finds that it has come too late."""
        with self._state:
            self._at_work += 1
        try:
            yield
        finally:
            with self._state:
                self._at_work -= 1
                self._state.notify_all()

    def take(self) -> int | None:
        """A piece to pin, by number, that no other thread has taken; None if there is none, or none more is to be."""
        with self._state:
            return None if self.ended else next(self._next, None)

    def note(self, number: int) -> None:
        """A piece is pinned."""
        with self._state:
            self._pinned.add(number)
            self.whole = len(self._pinned) == len(self.pieces)
            self._state.notify_all()

    def fail(self, error: BaseException) -> None:
        """A piece cannot be pinned, and then none more is."""
        with self._state:
            self.ended = self.refused = True
            self._error = self._error or error
            self._state.notify_all()

    def end(self) -> None:
        """Pin nothing more of it, but what a thread registers just now."""
        with self._state:
            self.ended = True
            self._state.notify_all()

    def give_back(self, unpin: Callable[[int], None]) -> None:
        """Pin nothing more, and when no thread is at it call `unpin` with the start of all that is pinned.

        Its pages go then, whoever still has this object: an error may have it for long. It can be called again after
        something broke it off.
        """
        self.end()
        with self._state:
            self._state.wait_for(lambda: not self._at_work)
        self.whole = False
        while self._pinned:
            unpin(self.pieces[self._pinned.pop()][0])
        self.bytes = np.empty(0, np.uint8)
