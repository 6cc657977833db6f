"""What a disk does at best for a job: its weight file's own ranges, and a spill file; it knows no device."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flexref.backend.pinning_time import pinning_time
from flexref.backend.protocol import Backend
from flexref.storage.weightfile import WeightFile
from flexref.tiers.disk import CHUNK_BYTES, READERS, WeightsOnDisk
from flexref.tiers.spill_file import AT_ONCE, SpillFile
from flexref.tiers.weights_plan import Run, WeightsPlan
from flexref.units import Tier

Bytes = npt.NDArray[np.uint8]
Piece = tuple[int, int]
"""Offset and bytes of one read."""

DISK_BYTES = 256 << 20
"""Read or written at a time, then timed."""

REPEATS = 4
"""The best of so many counts: whatever else runs makes one slower, nothing makes one faster than the disk is."""

IN_FLIGHT = (READERS, READERS // 2, READERS // 4)
"""Reads that are under way together: as many as a job has, and fewer, since a floor must hold for the best."""

SPILL_PIECES = (64 << 10, 1 << 20, 8 << 20)
"""Bytes of one call on a spill file: records of few rows, of many, and a layer's activations."""

MOST_S = 4.0
"""No measurement goes on for longer, but for what is under way then: a slow disk shows its rate in one repeat."""


def weight_extents(file: WeightFile, plan: WeightsPlan) -> list[Piece]:
    """The ranges of the weight file that a job reads in every pass, in its order; then the tables that it has there."""
    runs = [run for stage in plan.stages for run in stage.homes[Tier.DISK].runs]
    runs += [Run.of([tensor]) for tensor, home in plan.gathered if home is Tier.DISK]
    return [(run.file_offset, run.nbytes) for run in runs]


def weights_rate(backend: Backend, path: str, extents: Sequence[Piece]) -> float:
    """The most bytes per second at which these ranges of the weight file were read, in pieces as a job reads them.

    Pieces follow each other through all ranges without a pause, and nothing is checked. `extents`: at least one.
    """
    pieces = [
        (offset + start, min(CHUNK_BYTES, nbytes - start))
        for offset, nbytes in extents
        for start in range(0, nbytes, CHUNK_BYTES)
    ]
    host = backend.allocate("host", max(IN_FLIGHT) * CHUNK_BYTES)  # aligned, as direct reads need it
    best, began = 0.0, time.perf_counter()
    try:
        pinning_time(backend).settle()  # nothing that is timed runs beside it
        memory = backend.host_memory(host)
        with closing(WeightsOnDisk(path)) as file, ThreadPoolExecutor(max(IN_FLIGHT)) as pool:
            windows = _windows(pieces)
            for together in IN_FLIGHT * REPEATS:
                some = next(windows)

                def read(reader: int, some: list[Piece] = some, together: int = together) -> None:
                    for offset, nbytes in some[reader::together]:
                        file.read(offset, memory[reader * CHUNK_BYTES :][:nbytes])

                start = time.perf_counter()
                list(pool.map(read, range(together)))
                best = max(best, sum(nbytes for _, nbytes in some) / _since(start))
                if time.perf_counter() - began > MOST_S:
                    break
    finally:
        backend.release(host)
    return best


def spill_rates(backend: Backend, directory: str | Path) -> tuple[float, float]:
    """The most bytes per second (from, to) a spill file in `directory`, several pieces at a time, as in a job.

    They lie in host memory of the port: direct reads into one sort of memory may be twice as fast as into another.
    """
    largest = max(SPILL_PIECES)
    host = backend.allocate("host", AT_ONCE * largest)
    memory = backend.host_memory(host)
    memory[:] = np.resize(np.random.default_rng(0).integers(0, 256, largest, np.uint8), memory.nbytes)

    def rate(file: SpillFile, call: Callable[[int, Bytes], None]) -> float:
        best, began = 0.0, time.perf_counter()
        for size in SPILL_PIECES * REPEATS:
            pieces = [
                (offset, memory[number % AT_ONCE * largest :][: min(size, DISK_BYTES - offset)])
                for number, offset in enumerate(range(0, DISK_BYTES, size))
            ]
            start = time.perf_counter()
            file.together([partial(call, *piece) for piece in pieces], _nothing)
            best = max(best, DISK_BYTES / _since(start))
            if time.perf_counter() - began > MOST_S:
                break
        return best

    try:
        pinning_time(backend).settle()
        with closing(SpillFile(directory, DISK_BYTES)) as file:
            outward, inward = rate(file, file.write), rate(file, file.read)
    finally:
        backend.release(host)
    return inward, outward


def _nothing() -> None:
    """What is done after a piece."""


def _windows(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Pieces of `DISK_BYTES` at a time, or all of them if they are fewer, each window going on where the last ended."""
    again, least = cycle(pieces), min(DISK_BYTES, sum(nbytes for _, nbytes in pieces))
    while True:
        some: list[Piece] = []
        held = 0
        while held < least:
            some.append(next(again))
            held += some[-1][1]
        yield some


def _since(start: float) -> float:
    return max(time.perf_counter() - start, 1e-9)
