"""Host memory that CUDA's copies run from beside the host: made present and registered, in pieces, by many threads.

To pin memory is to make its pages present and to register it. Whoever asks for memory has its address at once, and
threads pin it, from its start to its end, beside what the caller does next; a copy waits for the pieces that it touches
(`memory.Copying`). CUDA takes no copy that touches two registrations, so copies are cut where pieces meet.

Registrations are made one at a time, and not in a row: CUDA starts nothing while it registers, so a thread that calls
it would wait for all that others register before its turn.
"""

import os
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import psutil

from flexref.backend.host_pages import make_present, mapped
from flexref.backend.pinning_time import PinningTime
from flexref.errors import CapacityError
from flexref.units import ALIGNMENT_BYTES, aligned
from flexref_cupy.driver.cuda import Cuda, refused

PIECE_BYTES = 64 << 20
"""One registration: a copy of so many bytes runs at the link's rate."""

MOST_THREADS = 8
"""As many as pin faster than any layer needs its memory; the others are left to what runs beside."""


class PinnedMemory:
    """`nbytes` from `address` on, in pieces of `piece_bytes`, the last of which may be shorter; pinned by `Pinning`."""

    def __init__(self, nbytes: int, piece_bytes: int) -> None:
        """Maps address space; nothing of it is present yet. `CapacityError` if the system refuses."""
        self.nbytes, self.piece_bytes = nbytes, piece_bytes
        try:
            self.bytes = mapped(nbytes)
        except (OSError, OverflowError) as error:
            raise refused(nbytes, f"the system has no room for it: {error}") from error
        self.address = int(self.bytes.ctypes.data)
        self.whole = False
        """Whether all of it is pinned: what is asked before every copy."""
        self.ended = False
        """Whether nothing more of it is to be pinned."""
        self.waiting = 0
        """How many wait for a piece of it."""
        self._state = threading.Condition()
        self._at_work = 0
        self._next = iter(range(len(self.pieces)))
        self._pinned: set[int] = set()
        self._error: BaseException | None = None

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Where every piece starts, and its bytes."""
        starts = range(0, self.nbytes, self.piece_bytes)
        return [(self.address + start, min(self.piece_bytes, self.nbytes - start)) for start in starts]

    @property
    def pinned(self) -> list[int]:
        """Where the pieces start that are pinned."""
        return [self.address + number * self.piece_bytes for number in sorted(self._pinned)]

    def wait(self, number: int | None = None) -> None:
        """Wait until a piece is pinned, or all of them; raises why it never will be."""
        needed = len(self.pieces) if number is None else 1
        with self._state:
            self.waiting += 1
            try:
                self._state.wait_for(
                    lambda: self._error or (len(self._pinned) == needed if number is None else number in self._pinned)
                )
            finally:
                self.waiting -= 1
            if self._error is not None and (number is None or number not in self._pinned):
                raise self._error

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
            self.ended = True
            self._error = self._error or error
            self._state.notify_all()

    def end(self) -> None:
        """Pin nothing more; returns when no thread is at it."""
        with self._state:
            self.ended = True
            self._state.wait_for(lambda: not self._at_work)


class Pinning(PinningTime):
    """Pinned memory by its address. Memory comes and goes in one thread; any may ask where it lies."""

    def __init__(
        self,
        cuda: Cuda,
        piece_bytes: int = PIECE_BYTES,
        threads: int | None = None,
        touch: Callable[[int, int], None] = make_present,
        free_bytes: Callable[[], int] = lambda: int(psutil.virtual_memory().available),
    ) -> None:
        """`touch` (address, bytes) makes pages present; `free_bytes` is what the system can spare."""
        super().__init__()
        self._cuda, self.piece_bytes = cuda, aligned(piece_bytes, ALIGNMENT_BYTES)
        self._threads = min(MOST_THREADS, len(os.sched_getaffinity(0))) if threads is None else threads
        self._touch, self._free_bytes = touch, free_bytes
        self._registering = threading.Lock()
        self._by_address: tuple[tuple[int, ...], tuple[PinnedMemory, ...]] = ((), ())

    def allocate(self, nbytes: int) -> PinnedMemory:
        """Memory of which the first piece is pinned, and the rest will be.

        If the system refuses that, or an interrupt ends it, nothing is; then `CapacityError`, or whatever was raised.
        That holds for all of the memory if it is more than is free.
        """
        memory = PinnedMemory(max(ALIGNMENT_BYTES, aligned(nbytes, ALIGNMENT_BYTES)), self.piece_bytes)
        scarce = memory.nbytes > self._free_bytes()
        try:
            if memory.nbytes <= self.piece_bytes:
                self._pin_pieces(memory)
            else:
                for _ in range(min(self._threads, len(memory.pieces))):
                    threading.Thread(target=self._work, args=(memory,), name="flexref pinning", daemon=True).start()
            memory.wait(None if scarce else 0)
        except BaseException:
            self._give_up(memory)
            raise
        self._know([*self._by_address[1], memory])
        return memory

    def release(self, memory: PinnedMemory) -> None:
        """Give memory back, which nothing uses any more."""
        self._know([other for other in self._by_address[1] if other is not memory])
        self._give_up(memory)

    def find(self, address: int) -> PinnedMemory | None:
        """The memory that an address lies in; None if it is none of these."""
        starts, memories = self._by_address
        place = bisect_right(starts, address) - 1
        if place < 0 or address >= starts[place] + memories[place].nbytes:
            return None
        return memories[place]

    def left(self, address: int) -> int | None:
        """Bytes from an address on that lie in one registration, once there is one; None if none will be there."""
        memory = self.find(address)
        if memory is None:
            return None
        number, inside = divmod(address - memory.address, memory.piece_bytes)
        if not memory.whole:
            self._wait(memory, number)
        return memory.piece_bytes - inside

    def settle(self) -> None:
        """See `PinningTime.settle`."""
        for memory in self._by_address[1]:
            self._wait(memory, None)

    def _wait(self, memory: PinnedMemory, number: int | None) -> None:
        begin_s = time.perf_counter()
        memory.wait(number)
        self.seconds += time.perf_counter() - begin_s

    def _work(self, memory: PinnedMemory) -> None:
        """What a thread does until all of the memory is pinned."""
        with memory.at_work():
            try:
                if not memory.ended:
                    self._cuda.join_thread()
                    self._pin_pieces(memory)
            except BaseException as error:  # it belongs to whoever waits for a piece
                memory.fail(error)

    def _pin_pieces(self, memory: PinnedMemory) -> None:
        """Pin what no other thread has taken; `CapacityError` if the system refuses."""
        pieces = memory.pieces
        while (number := memory.take()) is not None:
            address, nbytes = pieces[number]
            try:
                self._touch(address, nbytes)
                with self._registering:
                    if memory.ended:
                        return
                    self._register(memory, number)
            except OSError as error:
                raise refused(memory.nbytes, f"the system has no room for it: {error}") from error
            except CapacityError as error:  # it tells of a piece
                raise CapacityError(error.tier, error.what, memory.nbytes, 0, {}, error.hint) from error

    def _register(self, memory: PinnedMemory, number: int) -> None:
        """Register a piece, and let others come to CUDA before the next: as long, unless somebody waits for it."""
        begin_s = time.perf_counter()
        self._cuda.pin(*memory.pieces[number])
        memory.note(number)
        if not memory.waiting:
            time.sleep(time.perf_counter() - begin_s)

    def _give_up(self, memory: PinnedMemory) -> None:
        memory.end()
        for address in memory.pinned:
            self._cuda.unpin(address)

    def _know(self, memories: Sequence[PinnedMemory]) -> None:
        """Let `find` know these and no others."""
        by_address = sorted(memories, key=lambda memory: memory.address)
        self._by_address = tuple(memory.address for memory in by_address), tuple(by_address)
