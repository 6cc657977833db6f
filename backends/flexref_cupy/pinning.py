"""Host memory that CUDA's copies run from beside the host: made present and registered, in pieces, by many threads.

To pin memory is to make its pages present and to register it. Both are done before anything is called that needs it:
beside copies and kernels at work a registration takes many times as long, and so do they. CUDA takes no copy that
touches two registrations, so copies are cut where pieces meet (`memory.Copying`).
"""

import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from flexref.backend.host_pages import make_present, mapped
from flexref.errors import CapacityError
from flexref.units import ALIGNMENT_BYTES, aligned
from flexref_cupy.driver.cuda import Cuda, refused

PIECE_BYTES = 64 << 20
"""One registration, by one thread: a copy of so many bytes runs at the link's rate."""

MOST_THREADS = 16
"""First touches of more cores at a time are no faster: the kernel's own work is the limit."""


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

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Where every piece starts, and its bytes."""
        starts = range(0, self.nbytes, self.piece_bytes)
        return [(self.address + start, min(self.piece_bytes, self.nbytes - start)) for start in starts]


class Pinning:
    """Pinned memory by its address. Memory comes and goes in one thread; any may ask where it lies."""

    def __init__(
        self,
        cuda: Cuda,
        piece_bytes: int = PIECE_BYTES,
        threads: int | None = None,
        touch: Callable[[int, int], None] = make_present,
    ) -> None:
        """`touch` (address, bytes) makes pages present."""
        self._cuda, self.piece_bytes = cuda, aligned(piece_bytes, ALIGNMENT_BYTES)
        self._threads = min(MOST_THREADS, len(os.sched_getaffinity(0))) if threads is None else threads
        self._touch = touch
        self._by_address: tuple[tuple[int, ...], tuple[PinnedMemory, ...]] = ((), ())

    def allocate(self, nbytes: int) -> PinnedMemory:
        """Memory, all of it pinned. If the system refuses, or an interrupt ends it, nothing is; then `CapacityError`,
        or whatever was raised.
        """
        memory = PinnedMemory(max(ALIGNMENT_BYTES, aligned(nbytes, ALIGNMENT_BYTES)), self.piece_bytes)
        pinned: list[int] = []
        try:
            if memory.nbytes <= self.piece_bytes:
                self._pin(memory.address, memory.nbytes, pinned)
            else:
                self._pin_all(memory.pieces, pinned)
            self._know([*self._by_address[1], memory])
        except BaseException as error:
            for address in pinned:
                self._cuda.unpin(address)
            if isinstance(error, OSError):
                raise refused(memory.nbytes, f"the system has no room for it: {error}") from error
            if isinstance(error, CapacityError):  # it tells of a piece
                raise CapacityError(error.tier, error.what, memory.nbytes, 0, {}, error.hint) from error
            raise
        return memory

    def release(self, memory: PinnedMemory) -> None:
        """Give memory back, which nothing uses any more."""
        self._know([other for other in self._by_address[1] if other is not memory])
        for address, _ in memory.pieces:
            self._cuda.unpin(address)

    def find(self, address: int) -> PinnedMemory | None:
        """The memory that an address lies in; None if it is none of these."""
        starts, memories = self._by_address
        place = bisect_right(starts, address) - 1
        if place < 0 or address >= starts[place] + memories[place].nbytes:
            return None
        return memories[place]

    def _pin(self, address: int, nbytes: int, pinned: list[int]) -> None:
        """Pin a piece and note it."""
        self._touch(address, nbytes)
        self._cuda.pin(address, nbytes)
        pinned.append(address)

    def _pin_all(self, pieces: Sequence[tuple[int, int]], pinned: list[int]) -> None:
        """Pin pieces and note them; when this has ended, however it did, nobody pins any more.

        An interrupt may come while the pool starts a thread, which it does not know then: so pieces at work are noted.
        """
        state, at_work, over = threading.Condition(), set[int](), list[bool]()

        def pin(address: int, nbytes: int) -> None:
            with state:
                if over:
                    return
                at_work.add(address)
            try:
                self._cuda.join_thread()
                self._pin(address, nbytes, pinned)
            finally:
                with state:
                    at_work.discard(address)
                    state.notify_all()

        pool = ThreadPoolExecutor(min(self._threads, len(pieces)), thread_name_prefix="flexref pinning")
        try:
            for future in [pool.submit(pin, *piece) for piece in pieces]:
                future.result()
        finally:
            with state:
                over.append(True)
                state.wait_for(lambda: not at_work)
            pool.shutdown(cancel_futures=True)

    def _know(self, memories: Sequence[PinnedMemory]) -> None:
        """Let `find` know these and no others."""
        by_address = sorted(memories, key=lambda memory: memory.address)
        self._by_address = tuple(memory.address for memory in by_address), tuple(by_address)
