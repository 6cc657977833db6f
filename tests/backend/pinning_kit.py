"""A stand-in for CUDA that refuses what CUDA refuses, and pinned memory beside it; it knows no device."""

import ctypes
import threading
import time
from typing import Any

from flexref_cupy.pinning import Pinning

from flexref.errors import CapacityError

PAGE = 4096
PIECE = 2 * PAGE

REFUSED = CapacityError("host", "pinned memory", PIECE, 0, {}, "pinned memory was refused (by a test)")


class Registrations:
    """The calls of `Cuda` that pin and copy; `failures` by the number of the call that pins."""

    def __init__(self, failures: dict[int, BaseException] | None = None) -> None:
        self.failures, self.calls, self.lock = failures or {}, 0, threading.Lock()
        self.pinned: dict[int, int] = {}
        self.joined: set[int] = {threading.get_ident()}

    def join_thread(self) -> None:
        self.joined.add(threading.get_ident())

    def pin(self, address: int, nbytes: int) -> None:
        with self.lock:
            assert threading.get_ident() in self.joined, "a thread pins that was never told of the device"
            failure, self.calls = self.failures.get(self.calls), self.calls + 1
            if failure is not None:
                raise failure
            others = self.pinned.items()
            assert not any(at < address + nbytes and address < at + size for at, size in others), "pinned twice"
            self.pinned[address] = nbytes

    def unpin(self, address: int) -> None:
        with self.lock:
            del self.pinned[address]

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self.copy_rows((target, nbytes), (source, nbytes), nbytes, 1, stream)

    def copy_rows(self, target: tuple[int, int], source: tuple[int, int], nbytes: int, rows: int, stream: int) -> None:
        for start, stride in (target, source):
            end = start + (rows - 1) * stride + nbytes
            touched = [(at, at + size) for at, size in self.pinned.items() if at < end and start < at + size]
            assert not touched or (touched[0][0] <= start and end <= touched[0][1]), "not within one registration"
        for row in range(rows):
            ctypes.memmove(target[0] + row * target[1], source[0] + row * source[1], nbytes)


def pinning_on(
    cuda: Registrations, threads: int = 3, touch: Any = None, free_bytes: int = 1 << 40, **more: Any
) -> Pinning:
    if touch is not None:
        more["touch"] = touch
    return Pinning(cuda, PIECE, threads, spare_bytes=lambda: free_bytes, **more)  # type: ignore[arg-type]


def no_thread_is_left() -> bool:
    """Whether none pins: one that is done may take a moment to end."""
    deadline = time.monotonic() + 1
    while any(thread.name == "flexref pinning" for thread in threading.enumerate()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


class Held:
    """Makes pages present as far as it is let, in the order of their pieces."""

    def __init__(self) -> None:
        self.let, self.touched = threading.Semaphore(0), list[int]()

    def __call__(self, address: int, nbytes: int) -> None:
        self.let.acquire()
        self.touched.append(address)
