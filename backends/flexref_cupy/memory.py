"""Memory of the port: pieces of the device and of pinned host memory, typed views, copies; it computes nothing."""

import math
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.backend.protocol import Move, Span
from flexref.units import DTYPE_BYTES
from flexref_cupy.driver.cuda import Cuda
from flexref_cupy.pinning import Pinning


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


@cache
def name_of(dtype: np.dtype[Any]) -> str:
    """What a type is called: numpy takes some microseconds to say so."""
    return str(dtype)


def view(buffer: Buffer, offset: int, shape: tuple[int, ...], dtype: str) -> Tensor:
    """The bytes of `buffer` from `offset` on as an array; `IndexError` beyond its ends."""
    end = offset + math.prod(shape) * DTYPE_BYTES[dtype]
    if offset < 0 or end > buffer.nbytes:
        raise IndexError(f"bytes {offset} to {end} of a buffer of {buffer.nbytes}")
    return Tensor(buffer.address + offset, tuple(shape), dtype, shape[-1])


def device_buffer(cuda: Cuda, nbytes: int) -> Buffer:
    """`nbytes` of the device."""
    return Buffer("device", cuda.allocate(max(1, nbytes)), nbytes)


def host_buffer(pinning: Pinning, nbytes: int) -> Buffer:
    """`nbytes` of pinned host memory."""
    memory = pinning.allocate(nbytes)
    return Buffer("host", memory.address, nbytes, memory.bytes[:nbytes])


def release_host(pinning: Pinning, buffer: Buffer) -> None:
    """Give a buffer of the host back."""
    memory = pinning.find(buffer.address)
    assert memory is not None
    buffer.memory = None
    pinning.release(memory)


class Copying:
    """Queues copies between addresses of the device and of the host.

    CUDA takes no copy that touches two registrations, so copies are cut where pieces meet; and a piece that is still to
    be pinned is waited for.
    """

    def __init__(self, cuda: Cuda, pinning: Pinning) -> None:
        self.cuda, self.pinning = cuda, pinning

    def beside(self) -> None:
        """The calling thread is a lane's: what its copies wait for is not counted as the caller's time."""
        self.pinning.beside()

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Copy bytes in any direction, in order with the stream."""
        done = 0
        while done < nbytes:
            size = min(self._left(target + done), self._left(source + done), nbytes - done)
            self.cuda.copy(target + done, source + done, size, stream)
            done += size

    def copy_rows(self, target: tuple[int, int], source: tuple[int, int], nbytes: int, rows: int, stream: int) -> None:
        """Copy `rows` pieces of `nbytes`; `target` and `source` are the first one's address and the stride in bytes."""
        row = 0
        while row < rows:
            ends = [(start + row * stride, stride) for start, stride in (target, source)]
            fit = min(rows - row, *(self._rows_left(start, stride, nbytes) for start, stride in ends))
            (there, target_stride), (here, source_stride) = ends
            if fit > 1:
                self.cuda.copy_rows((there, target_stride), (here, source_stride), nbytes, fit, stream)
            else:
                self.copy(there, here, nbytes, stream)
            row += max(1, fit)

    def move(self, move: Move, stream: int) -> None:
        """Queue one move; its pieces, if it has several, are one copy too, and each of its parts is one."""
        source, target = move.source, move.target
        there, here = address_of(target), address_of(source)
        if move.parts is not None:
            for from_source, from_target, nbytes in move.parts.each:
                self.copy(there + from_target, here + from_source, nbytes, stream)
        elif source.count == 1:
            self.copy(there, here, source.nbytes, stream)
        else:
            self.copy_rows((there, target.stride), (here, source.stride), source.nbytes, source.count, stream)

    def _left(self, address: int) -> int:
        """Bytes from an address on that lie in one registration, which is waited for; as many as there may be, if it
        is in none.
        """
        left = self.pinning.left(address)
        return 1 << 62 if left is None else left

    def _rows_left(self, start: int, stride: int, nbytes: int) -> int:
        """How many rows from the one at `start` on lie in one registration, each whole; 0 if not even the first."""
        left = self._left(start)
        return 0 if left < nbytes else (left - nbytes) // stride + 1


def address_of(span: Span) -> int:
    """Where a span starts; asking beyond the ends of its buffer is a bug and raises."""
    buffer = span.buffer
    assert isinstance(buffer, Buffer)
    if span.offset < 0 or span.end > buffer.nbytes:
        raise IndexError(f"bytes {span.offset} to {span.end} of a buffer of {buffer.nbytes}")
    return buffer.address + span.offset
