"""A device that is not there: the port runs on it to find out which kernels a job will start; nothing is computed."""

import ctypes
from collections.abc import Callable
from contextlib import closing
from time import perf_counter
from typing import Any

from flexref.backend.compiling import CompileTime
from flexref.backend.protocol import Backend
from flexref.units import ALIGNMENT_BYTES, aligned
from flexref_cupy.driver.cuda import Cuda
from flexref_cupy.driver.kernel_source import Source
from flexref_cupy.driver.launching import Kernels

FIRST_ADDRESS = 1 << 60
"""Beyond all that a process or a device has: memory that must never be touched."""


class ImaginaryCuda:
    """Takes the place of `Cuda`. `texts`: what was to be compiled, in that order.

    Memory is handed out and has no bytes; what is downloaded is 0. Every call of `Cuda` that is not here does nothing
    and gives 0.
    """

    def __init__(self, like: Any) -> None:
        """A device of the architecture and size of `like`."""
        self.capability, self.multiprocessors, self.number = like.capability, like.multiprocessors, like.number
        self.name, self.compute_stream, self.compiles_ahead = like.name, 0, False
        self.capturing = self.muted = False
        self.texts: list[Source] = []
        self._next = FIRST_ADDRESS

    def allocate(self, nbytes: int) -> int:
        """See `Cuda.allocate`."""
        address = self._next
        self._next += aligned(max(1, nbytes), ALIGNMENT_BYTES)
        return address

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """See `Cuda.copy`; the host gets zeros."""
        self.copy_rows((target, nbytes), (source, nbytes), nbytes, 1, stream)

    def copy_rows(self, target: tuple[int, int], source: tuple[int, int], nbytes: int, rows: int, stream: int) -> None:
        """See `Cuda.copy_rows`."""
        if target[0] < FIRST_ADDRESS:
            for row in range(rows):
                ctypes.memset(target[0] + row * target[1], 0, nbytes)

    def compile(self, text: Source) -> Source:
        """See `Cuda.compile`."""
        self.texts.append(text)
        return text

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not callable(getattr(Cuda, name, None)):
            raise AttributeError(f"an imaginary device has no {name}")
        return _nothing


def _nothing(*_: object, **__: object) -> int:
    return 0


class Compiling(CompileTime):
    """The port's time of compiling, and what it does so that there is none."""

    def __init__(self, kernels: Kernels, ahead: bool, like: Callable[[ImaginaryCuda], Backend]) -> None:
        """`ahead`: whether kernels may be compiled that are perhaps never started. `like`: makes the port anew."""
        super().__init__()
        self._kernels, self._ahead, self._like = kernels, ahead, like
        kernels.compiling = self

    def rehearse(self, play: Callable[[Backend], None]) -> None:
        """See `CompileTime.rehearse`."""
        if not self._ahead:
            return
        start, imaginary = perf_counter(), ImaginaryCuda(self._kernels.cuda)
        with closing(self._like(imaginary)) as port:
            play(port)
        self._kernels.prepare(imaginary.texts)
        self.seconds += perf_counter() - start

    def settle(self) -> None:
        """See `CompileTime.settle`."""
        start = perf_counter()
        self._kernels.settle()
        self.seconds += perf_counter() - start
