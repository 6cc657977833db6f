"""Memory of the port: pieces of the device and of pinned host memory, and typed views of them; it computes nothing."""

import math
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.units import ALIGNMENT_BYTES, DTYPE_BYTES
from flexref_cupy.cuda import Cuda

TOUCH_BYTES = 256 << 20
"""Threads make pages of host memory present in pieces of this size: pinning alone would do it on one core."""

TOUCH_THREADS = 16


class Buffer:
    """`nbytes` of one tier from `address` on; `memory` are the bytes themselves, on the host."""

    __slots__ = ("address", "memory", "nbytes", "tier")

    def __init__(self, tier: str, address: int, nbytes: int, memory: npt.NDArray[np.uint8] | None = None) -> None:
        self.tier, self.address, self.nbytes, self.memory = tier, address, nbytes, memory


class Tensor:
    """A typed view: rows along the last axis, `pitch` elements from the start of one to the next.

    `owner` is whoever must live as long as the view, if the memory is nobody else's.
    """

    __slots__ = ("address", "dtype", "owner", "pitch", "shape")

    def __init__(self, address: int, shape: tuple[int, ...], dtype: str, pitch: int, owner: object = None) -> None:
        self.address, self.shape, self.dtype, self.pitch, self.owner = address, shape, dtype, pitch, owner

    def __getitem__(self, key: Any) -> "Tensor":
        """A view: slices of the leading and of the last axis."""
        first, *others = key if isinstance(key, tuple) else (key,)
        shape, address, item = list(self.shape), self.address, DTYPE_BYTES[self.dtype]
        keys = {0: first, len(shape) - 1: others[-1]} if others else {0: first}
        if len(others) > 1 and any(other != slice(None) for other in others[:-1]):
            raise IndexError(f"only the leading and the last axis can be sliced, found {key!r}")
        for axis, part in keys.items():
            start, stop, step = part.indices(shape[axis])
            if step != 1:
                raise IndexError(f"slices have step 1, found {part!r}")
            last = axis == len(shape) - 1
            address += start * item * (1 if last else math.prod(shape[1:-1]) * self.pitch)
            shape[axis] = max(0, stop - start)
        return Tensor(address, tuple(shape), self.dtype, self.pitch, self.owner)

    @property
    def rows(self) -> int:
        """Rows along the last axis."""
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.shape[-1] * DTYPE_BYTES[self.dtype]

    @property
    def pitch_bytes(self) -> int:
        """Bytes from the start of one row to the next."""
        return self.pitch * DTYPE_BYTES[self.dtype]

    @property
    def contiguous(self) -> bool:
        """Whether its rows lie one after the other."""
        return self.pitch == self.shape[-1] or self.rows == 1


class Fresh:
    """Memory of the device that goes with the last view of it."""

    __slots__ = ("_cuda", "address")

    def __init__(self, cuda: Cuda, nbytes: int) -> None:
        self._cuda, self.address = cuda, cuda.allocate(max(1, nbytes))

    def __del__(self) -> None:
        self._cuda.free(self.address)


def view(buffer: Buffer, offset: int, shape: tuple[int, ...], dtype: str) -> Tensor:
    """The bytes of `buffer` from `offset` on as an array; `IndexError` beyond its ends."""
    end = offset + math.prod(shape) * DTYPE_BYTES[dtype]
    if offset < 0 or end > buffer.nbytes:
        raise IndexError(f"bytes {offset} to {end} of a buffer of {buffer.nbytes}")
    return Tensor(buffer.address + offset, tuple(shape), dtype, shape[-1])


def device_buffer(cuda: Cuda, nbytes: int) -> Buffer:
    """`nbytes` of the device."""
    return Buffer("device", cuda.allocate(max(1, nbytes)), nbytes)


def host_buffer(cuda: Cuda, nbytes: int) -> Buffer:
    """`nbytes` of pinned host memory.

    Pages are made present by many threads and pinned after that: `cudaHostAlloc` does both on one core, at half the
    speed. Transparent huge pages leave a 512th of the pages to pin.
    """
    size = max(ALIGNMENT_BYTES, -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)
    pages = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    memory = np.frombuffer(pages, np.uint8)
    pieces = range(0, size, TOUCH_BYTES)
    threads = min(TOUCH_THREADS, os.cpu_count() or 1, len(pieces))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda start: memory[start : start + TOUCH_BYTES : ALIGNMENT_BYTES].fill(0), pieces))
    address = int(memory.ctypes.data)
    cuda.pin(address, size)
    return Buffer("host", address, nbytes, memory[:nbytes])


def release(cuda: Cuda, buffer: Buffer) -> None:
    """Give a buffer back."""
    if buffer.tier == "device":
        cuda.free(buffer.address)
    else:
        cuda.unpin(buffer.address)
        buffer.memory = None
