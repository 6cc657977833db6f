"""Some threads that share the parts of one operator; it knows no operator."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import numpy.typing as npt
from flexref_numpy.products import blas_threads

WORTH_A_THREAD = 1 << 18
"""Multiplications that take longer than handing them to a thread does."""


def address_of(x: npt.NDArray[Any]) -> int:
    """Where an array's first number lies."""
    address: int = x.__array_interface__["data"][0]
    return address


def wanted_threads() -> int:
    """As many as numpy's BLAS uses, as OMP_NUM_THREADS and the like or `threadpoolctl` say, on the processors that this
    process may use."""
    return max(1, min(blas_threads(), len(os.sched_getaffinity(0))))


class Threads:
    """At most `count` threads at once, of which the caller's is one. Several callers may share them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count - 1, "flexref numba") if count > 1 else None
        self._own = threading.local()

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def scratch(self, nbytes: int) -> int:
        """The address of so many bytes, on a cache line of their own, for the calling thread until it asks again."""
        held: npt.NDArray[Any] | None = getattr(self._own, "held", None)
        if held is None or held.nbytes < nbytes + 64:
            held = self._own.held = np.empty(nbytes + 64, np.uint8)
            self._own.address = -(-held.ctypes.data // 64) * 64
        return int(self._own.address)

    def run(self, parts: Sequence[tuple[int, ...]], call: Callable[..., Any]) -> list[Any]:
        """What `call` gives for each part, in order: for the first one on this thread, for others beside it."""
        if self._pool is None or len(parts) == 1:
            return [call(*part) for part in parts]
        futures: list[Future[Any]] = [self._pool.submit(call, *part) for part in parts[1:]]
        try:
            first = call(*parts[0])
        finally:
            wait(futures)  # whatever ends this, no other part may still write into the caller's memory
        return [first, *(future.result() for future in futures)]


def ranges(count: int, parts: int) -> list[tuple[int, int]]:
    """`count` things as at most `parts` (first, last) of nearly one length."""
    parts = max(1, min(parts, count))
    return [(count * part // parts, count * (part + 1) // parts) for part in range(parts)]
