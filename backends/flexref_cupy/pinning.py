"""Host memory that CUDA's copies run from beside the host: made present and registered, in pieces, by many threads.

To pin memory is to make its pages present and to register it. Whoever asks for memory has its address at once, and
threads pin it, from its start to its end, beside what the caller does next; a copy waits for the pieces that it touches
(`memory.Copying`). CUDA takes no copy that touches two registrations, so copies are cut where pieces meet.
"""

import os
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial

import psutil

from flexref.backend.host_pages import make_present
from flexref.backend.pinning_time import PinningTime
from flexref.backend.protocol import Ticket
from flexref.errors import CapacityError
from flexref.units import ALIGNMENT_BYTES, aligned
from flexref_cupy.driver.cuda import Cuda, refused
from flexref_cupy.pinned_memory import PinnedMemory, Turns

PIECE_BYTES = 64 << 20
"""One registration: a copy of so many bytes runs at the link's rate."""

HOST_RESERVE = 0.06
"""The share of free host memory that is left to the system: pinned pages can never be moved or swapped."""

MOST_THREADS = 8
"""As many as pin faster than any layer needs its memory; the others are left to what runs beside."""


ASKED_AGAIN_S = 0.002
"""Whoever waits looks so often whether the device still has work."""


def spare_bytes() -> int:
    """Host memory that is not present yet, and that the system can do without."""
    return int(psutil.virtual_memory().available * (1 - HOST_RESERVE))


class Pinning(PinningTime):
    """Pinned memory by its address. Memory comes and goes in one thread; any may ask where it lies."""

    def __init__(
        self,
        cuda: Cuda,
        piece_bytes: int = PIECE_BYTES,
        threads: int | None = None,
        touch: Callable[[int, int], None] = make_present,
        spare_bytes: Callable[[], int] = spare_bytes,
        under_way: Callable[[], Sequence[Ticket]] = tuple,
    ) -> None:
        """`touch` (address, bytes) makes pages present; `spare_bytes` is what the system can spare; `under_way` are
        tickets of all that the device has been given to do.
        """
        super().__init__()
        self._cuda, self.piece_bytes = cuda, aligned(piece_bytes, ALIGNMENT_BYTES)
        self._threads = min(MOST_THREADS, len(os.sched_getaffinity(0))) if threads is None else threads
        self._touch, self._spare_bytes, self._under_way = touch, spare_bytes, under_way
        self._turns = Turns()
        self._by_address: tuple[tuple[int, ...], tuple[PinnedMemory, ...]] = ((), ())
        self._leaving = list[PinnedMemory]()
        """What is being given back: its pages must stay as long as CUDA knows them."""
        self._beside = threading.local()

    @property
    def refused(self) -> bool:
        """See `PinningTime.refused`."""
        return any(memory.refused for memory in self._by_address[1])

    def free_bytes(self) -> int:
        """Host memory to be had: what was given out and is still to come is not, though the system can spare it yet."""
        return max(0, self._spare_bytes() - sum(memory.awaited_bytes for memory in self._by_address[1]))

    def allocate(self, nbytes: int) -> PinnedMemory:
        """Memory of which the first piece is pinned, and the rest will be.

        If the system refuses that, or an interrupt ends it, nothing is; then `CapacityError`, or whatever was raised.
        That holds for all of the memory if it is more than is free.
        """
        for left in tuple(self._leaving):  # an interrupt broke that off
            self.release(left)
        free_bytes = self.free_bytes()
        whole = max(ALIGNMENT_BYTES, aligned(nbytes, ALIGNMENT_BYTES))
        memory = PinnedMemory(whole, self.piece_bytes, self._turns)
        try:
            for _ in range(min(self._threads, len(memory.pieces))):
                threading.Thread(target=self._work, args=(memory,), name="flexref pinning", daemon=True).start()
            memory.wait(None if whole > free_bytes else 0)
            self._know([*self._by_address[1], memory])
        except BaseException:
            self.release(memory)
            raise
        return memory

    def release(self, memory: PinnedMemory) -> None:
        """Give memory back, which nothing uses any more; if that is broken off the next allocation goes on with it."""
        if memory not in self._leaving:
            self._leaving.append(memory)
        self._know([other for other in self._by_address[1] if other is not memory])
        memory.give_back(self._cuda.unpin)
        self._leaving.remove(memory)

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

    def close(self) -> None:
        """Pin nothing more; what was given out can still be given back."""
        for memory in self._by_address[1]:
            memory.end()

    def beside(self) -> None:
        """The calling thread works beside the port's callers: what it waits for is no time of theirs."""
        self._beside.it_is = True

    def _wait(self, memory: PinnedMemory, number: int | None) -> None:
        """Wait for a piece, or for all; what counts is the time in which the device has nothing to do."""
        if hasattr(self._beside, "it_is"):
            memory.wait(number)
            return
        tickets, idle_s = self._under_way(), None
        try:
            while True:
                if idle_s is None and all(ticket.done() for ticket in tickets):
                    idle_s = time.perf_counter()
                if memory.wait(number, ASKED_AGAIN_S if idle_s is None else None):
                    return
        finally:
            if idle_s is not None:
                self.seconds += time.perf_counter() - idle_s

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
        while (number := memory.take()) is not None:
            try:
                self._touch(*memory.pieces[number])
                self._turns.register(memory, partial(self._register, memory, number))
            except OSError as error:
                raise refused(memory.nbytes, f"the system has no room for it: {error}") from error
            except CapacityError as error:  # it tells of a piece
                raise CapacityError(error.tier, error.what, memory.nbytes, 0, {}, error.hint) from error

    def _register(self, memory: PinnedMemory, number: int) -> None:
        self._cuda.pin(*memory.pieces[number])
        memory.note(number)

    def _know(self, memories: Sequence[PinnedMemory]) -> None:
        """Let `find` know these and no others."""
        by_address = sorted(memories, key=lambda memory: memory.address)
        self._by_address = tuple(memory.address for memory in by_address), tuple(by_address)
