"""What the host's memory gives its cores at best, for attention that runs there; it knows no device and no disk."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from flexref.backend.pinning_time import pinning_time
from flexref.backend.protocol import Backend

HOST_BYTES = 256 << 20
"""Read at a time, then timed: more than the caches of processors hold."""

REPEATS = 8
"""The best of so many counts: whatever else runs makes one slower, nothing makes one faster than the memory is."""


def host_memory_rate(backend: Backend) -> float:
    """The most bytes per second at which the threads that this process may run read host memory of the port at once.

    They do nothing with it but add it up. It takes about a tenth of a second, and gives its memory back.
    """
    threads = len(os.sched_getaffinity(0))
    host = backend.allocate("host", HOST_BYTES)
    try:
        pinning_time(backend).settle()  # nothing that is timed runs beside it
        values = backend.host_memory(host).view(np.int64)
        values[:] = np.resize(np.random.default_rng(0).integers(0, 1 << 40, 1 << 17), values.size)
        parts = np.array_split(values, threads)
        with ThreadPoolExecutor(threads) as pool:
            return max(_read(pool, parts) for _ in range(REPEATS))
    finally:
        backend.release(host)


def _read(pool: ThreadPoolExecutor, parts: Sequence[npt.NDArray[np.int64]]) -> float:
    begin = time.perf_counter()
    list(pool.map(np.add.reduce, parts))
    return HOST_BYTES / max(time.perf_counter() - begin, 1e-9)
