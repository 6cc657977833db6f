"""Host memory that is pinned in the background, piece by piece, in the order in which it is needed; it copies nothing.

To pin memory is to make its pages present, which takes most of the time, and to register it with CUDA. Threads do both
for one piece after another while whoever asked for the memory goes on: the host may read and write any of it at once,
since neither changes what a page holds, and a copy waits for the pieces that it touches (`need`), which come next then.
CUDA takes no copy that touches two registrations, so copies are cut where pieces meet (`memory.Copying`).
"""

import os
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence

from flexref.backend.arriving import ArrivalTime
from flexref.backend.host_pages import make_present, mapped
from flexref.errors import CapacityError
from flexref.units import ALIGNMENT_BYTES, aligned
from flexref_cupy.cuda import Cuda, refused

PIECE_BYTES = 64 << 20
"""One registration: a copy of so many bytes runs at the link's rate, and a piece comes in a fraction of a second."""

AT_ONCE_SHARE = 4
"""Memory of up to this fraction of a piece is pinned by whoever asks for it: a thread would take no less time."""

MOST_THREADS = 16
"""First touches of more cores at a time are no faster: the kernel's own work is the limit."""

SPARE_CORES = 2
"""Cores that are left to whoever calls operators, and to lanes, where the machine has more."""

COMING, AT_WORK, PINNED = range(3)
"""What a piece may be: waiting in the queue, in a thread's hands, pinned."""


class PinnedMemory:
    """`nbytes` from `address` on, in pieces of `piece_bytes`, the last of which may be shorter; made by `Pinning`."""

    def __init__(self, nbytes: int, piece_bytes: int) -> None:
        """Maps address space; nothing of it is present yet. `CapacityError` if the system refuses."""
        self.nbytes, self.piece_bytes = nbytes, piece_bytes
        try:
            self.bytes = mapped(nbytes)
        except (OSError, OverflowError) as error:
            raise refused(nbytes, f"the system has no room for it: {error}") from error
        self.address = int(self.bytes.ctypes.data)
        self.pieces = bytearray(-(-nbytes // piece_bytes))
        """`COMING`, `AT_WORK` or `PINNED`, for every piece."""
        self.left = len(self.pieces)
        """How many are not pinned yet."""
        self.error: CapacityError | None = None
        """Why no more of it comes."""

    def extent(self, piece: int) -> tuple[int, int]:
        """Where a piece starts, and its bytes."""
        start = piece * self.piece_bytes
        return self.address + start, min(self.piece_bytes, self.nbytes - start)

    def touched(self, address: int, nbytes: int) -> range:
        """The pieces that so many bytes from `address` on touch."""
        start = address - self.address
        return range(start // self.piece_bytes, (start + nbytes - 1) // self.piece_bytes + 1)

    def is_pinned(self, pieces: Sequence[int]) -> bool:
        """Whether all of these are."""
        return not self.left or all(self.pieces[piece] == PINNED for piece in pieces)


class Pinning:
    """Pins memory in threads of its own, which end when nothing is left to do. Any thread may call it.

    `held_up`: how long the engine's own thread waited for what waited for pieces.
    """

    def __init__(
        self,
        cuda: Cuda,
        piece_bytes: int = PIECE_BYTES,
        threads: int | None = None,
        touch: Callable[[int, int], None] | None = None,
    ) -> None:
        """`touch` (address, bytes) takes the place of the system's call that makes pages present."""
        self._cuda, self.piece_bytes = cuda, aligned(piece_bytes, ALIGNMENT_BYTES)
        self._most_threads = pinning_threads() if threads is None else threads
        self._touch = touch or make_present
        self._state = threading.Condition()
        self._queue: deque[tuple[PinnedMemory, int]] = deque()
        self._threads: list[threading.Thread] = []
        self._running = 0
        self._by_address: tuple[tuple[int, ...], tuple[PinnedMemory, ...]] = ((), ())
        self.coming = False
        """Whether any memory has pieces that are not pinned yet."""
        self.held_up = ArrivalTime()

    def allocate(self, nbytes: int) -> PinnedMemory:
        """Memory that is pinned from now on, or, if it is small, already. `CapacityError` if the system refuses now."""
        memory = PinnedMemory(max(ALIGNMENT_BYTES, aligned(nbytes, ALIGNMENT_BYTES)), self.piece_bytes)
        if memory.nbytes <= self.piece_bytes // AT_ONCE_SHARE:
            self._pin(memory, 0)
            memory.pieces[0], memory.left = PINNED, 0
            self._register(memory)
            return memory
        with self._state:
            self._register(memory)
            self._queue.extend((memory, piece) for piece in range(len(memory.pieces)))
            try:
                self._start_threads()
            except BaseException:
                if not self._running:
                    self._forget(memory)
                    raise
        return memory

    def release(self, memory: PinnedMemory) -> None:
        """Give memory back, also while it comes: what a thread has in its hands is waited for, no more is begun."""
        with self._state:
            self._forget(memory)
            memory.error = memory.error or refused(memory.nbytes, "it was given back")
            self._state.notify_all()
            self._state.wait_for(lambda: AT_WORK not in memory.pieces)
        for piece, state in enumerate(memory.pieces):
            if state == PINNED:
                self._cuda.unpin(memory.extent(piece)[0])
        memory.pieces, memory.left = bytearray(len(memory.pieces)), len(memory.pieces)

    def close(self) -> None:
        """Begin no more, and wait until no thread is left; memory can still be given back."""
        with self._state:
            for memory, _ in self._queue:
                memory.error = memory.error or refused(memory.nbytes, "the port was closed")
            self._queue.clear()
            self._state.notify_all()
            threads = tuple(self._threads)
        for thread in threads:
            thread.join()

    def find(self, address: int) -> PinnedMemory | None:
        """The memory that an address lies in; None if it is none of these."""
        starts, memories = self._by_address
        place = bisect_right(starts, address) - 1
        if place < 0 or address >= starts[place] + memories[place].nbytes:
            return None
        return memories[place]

    def is_pinned(self, address: int, nbytes: int) -> bool:
        """Whether a copy of these bytes waits for nothing; so it is with memory of the device."""
        memory = self.find(address) if self.coming else None
        return memory is None or not memory.left or memory.is_pinned(memory.touched(address, nbytes))

    def need(self, address: int, nbytes: int) -> None:
        """Block until these bytes are pinned, which come next; raises what they were refused for."""
        memory = self.find(address) if self.coming else None
        if memory is None or not memory.left:
            return
        pieces = memory.touched(address, nbytes)
        with self._state:
            if not memory.is_pinned(pieces):
                self._queue.extendleft((memory, piece) for piece in reversed(pieces) if memory.pieces[piece] == COMING)
                self.held_up.begin()
                try:
                    self._state.wait_for(lambda: memory.error is not None or memory.is_pinned(pieces))
                finally:
                    self.held_up.end()
            if not memory.is_pinned(pieces):
                assert memory.error is not None
                raise memory.error

    def need_now(self, address: int, nbytes: int) -> None:
        """See `need`; for the engine's own thread, whose waiting counts."""
        if self.coming:
            with self.held_up.watched():
                self.need(address, nbytes)

    def _register(self, memory: PinnedMemory) -> None:
        """Let `find` know it."""
        with self._state:
            self._set_memories([*self._by_address[1], memory])

    def _forget(self, memory: PinnedMemory) -> None:
        """Let nobody find it, nor begin a piece of it; the lock is held."""
        self._set_memories([other for other in self._by_address[1] if other is not memory])
        self._queue = deque(entry for entry in self._queue if entry[0] is not memory)

    def _set_memories(self, memories: Sequence[PinnedMemory]) -> None:
        by_address = sorted(memories, key=lambda memory: memory.address)
        self._by_address = tuple(memory.address for memory in by_address), tuple(by_address)
        self._look_for_more()

    def _look_for_more(self) -> None:
        self.coming = any(memory.left for memory in self._by_address[1])

    def _start_threads(self) -> None:
        """As many as there is work for; the lock is held."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        for _ in range(min(self._most_threads - self._running, len(self._queue))):
            thread = threading.Thread(target=self._run, name="flexref pinning", daemon=True)
            thread.start()
            self._threads.append(thread)
            self._running += 1

    def _run(self) -> None:
        """Pin the next piece, until there is none."""
        joined = False
        while True:
            with self._state:
                found = self._next()
                if found is None:
                    self._running -= 1
                    return
            memory, piece = found
            error: CapacityError | None = None
            try:
                if not joined:
                    self._cuda.join_thread()
                    joined = True
                self._pin(memory, piece)
            except CapacityError as found_error:
                error = found_error
            except BaseException as other:  # it belongs to whoever needs the memory
                error = refused(memory.nbytes, f"it could not be pinned ({type(other).__name__}: {other})")
                error.__cause__ = other
            self._finish(memory, piece, error)
            del memory, found  # a thread that waits for work holds no memory

    def _next(self) -> tuple[PinnedMemory, int] | None:
        """The next piece that nobody has begun, which the caller has now; the lock is held."""
        while self._queue:
            memory, piece = self._queue.popleft()
            if memory.pieces[piece] == COMING and memory.error is None:
                memory.pieces[piece] = AT_WORK
                return memory, piece
        return None

    def _finish(self, memory: PinnedMemory, piece: int, error: CapacityError | None) -> None:
        with self._state:
            if error is None:
                memory.pieces[piece] = PINNED
                memory.left -= 1
                if not memory.left:
                    self._look_for_more()
            else:
                memory.pieces[piece] = COMING
                memory.error = memory.error or error
            self._state.notify_all()

    def _pin(self, memory: PinnedMemory, piece: int) -> None:
        """Make a piece present, and register it; `CapacityError` tells of the whole memory."""
        address, nbytes = memory.extent(piece)
        try:
            self._touch(address, nbytes)
            self._cuda.pin(address, nbytes)
        except OSError as error:
            raise refused(memory.nbytes, f"the system has no room for it: {error}") from error
        except CapacityError as error:
            whole = CapacityError(error.tier, error.what, memory.nbytes, error.free_bytes, error.holders, error.hint)
            raise whole from error


def pinning_threads() -> int:
    """How many threads pin at a time."""
    cores = len(os.sched_getaffinity(0))
    return min(MOST_THREADS, max(1, cores - SPARE_CORES))
