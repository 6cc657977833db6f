"""Memory of a measurement on a port: random operands, counted, and given back however it ends; it times nothing."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.backend.protocol import Backend, Buffer, Lane, LaneStep, Matrix, QuantizedMatrix, Ticket
from flexref.errors import CapacityError
from flexref.storage.quant import group_count, packed_width
from flexref.storage.schema import BITS
from flexref.units import ALIGNMENT_BYTES, DTYPE_BYTES, aligned

Values = npt.NDArray[Any]

GROUP_SIZE = 64
"""Of quantized matrices and caches: what a converter writes and a policy takes unless it is told otherwise."""

TABLE_DTYPE = "float16"
"""The type of tables, norms and biases beside weights that are stored as halves or in groups."""

TILE_ELEMENTS = (1 << 20) - 3
"""Random numbers are made once and repeated; a prime, so that no two rows of a matrix are alike."""

WEIGHT_DEVIATION, SCALE_DEVIATION = 0.02, 0.003
"""Standard deviations of matrices, and of the scales of their groups: as in a model."""


class Memory:
    """Buffers of one measurement; a context manager that waits for what is under way before it gives them back."""

    def __init__(self, backend: Backend, most_bytes: Mapping[str, int]) -> None:
        """`most_bytes` per tier are what it may take."""
        self.backend = backend
        self._left = dict(most_bytes)
        self._buffers: list[Buffer] = []
        self._tickets: list[Ticket] = []
        self._random = np.random.default_rng(0)

    def __enter__(self) -> "Memory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for ticket in self._tickets:
            with suppress(Exception):  # whoever submitted it has waited for it and met its failure
                ticket.wait()
        self.backend.mark().wait()
        for buffer in self._buffers:
            self.backend.release(buffer)
        self._buffers.clear()

    def room_bytes(self, tier: str = "device") -> int:
        """What is left of a tier."""
        return self._left[tier]

    def submit(self, lane: Lane, steps: Sequence[LaneStep], after: Sequence[Ticket] = ()) -> Ticket:
        """Put steps that use this memory on a lane."""
        ticket = self.backend.submit(lane, steps, after)
        self._tickets.append(ticket)
        return ticket

    def buffer(self, tier: str, nbytes: int) -> Buffer:
        """`nbytes` of a tier; `CapacityError` if a profile may not take so many."""
        if nbytes > self._left[tier]:
            raise CapacityError(tier, "a profile", nbytes, self._left[tier], {}, "a quarter of what is free is used")
        buffer = self.backend.allocate(tier, nbytes)
        self._buffers.append(buffer)
        self._left[tier] -= nbytes
        return buffer

    def array(self, shape: tuple[int, ...], dtype: str, scale: float = 1.0, tier: str = "device") -> Any:
        """Normal random numbers with the standard deviation `scale`; random bytes for uint8."""
        (made,) = self.arrays(1, shape, dtype, scale, tier)
        return made

    def arrays(
        self, count: int, shape: tuple[int, ...], dtype: str, scale: float = 1.0, tier: str = "device"
    ) -> list[Any]:
        """`count` arrays of random numbers in one buffer, each aligned."""
        item = DTYPE_BYTES[dtype]
        stride = aligned(max(1, int(np.prod(shape, dtype=np.int64)) * item), ALIGNMENT_BYTES)
        buffer = self.buffer(tier, count * stride)
        self._fill(buffer, tier, dtype, scale)
        return [self.backend.view(buffer, place * stride, shape, dtype) for place in range(count)]

    def ids(self, most: int, count: int) -> Any:
        """(count,) random row numbers below `most`, int32, on the device."""
        values = self._random.integers(0, most, count).astype(np.int32)
        place = self.backend.view(self.buffer("device", aligned(values.nbytes, ALIGNMENT_BYTES)), 0, (count,), "int32")
        return self.backend.upload(values, out=place)

    def matrices(self, stored: str, width: int, most: int) -> list[Matrix]:
        """Square matrices as they are stored, at most `most` of them, and as many as half of the room holds."""
        nbytes = matrix_bytes(stored, width)
        count = max(1, min(most, self.room_bytes() // 2 // nbytes))
        bits = BITS.get(stored)
        if bits is None:
            return self.arrays(count, (width, width), stored, WEIGHT_DEVIATION)
        groups = (width, group_count(width, GROUP_SIZE))
        codes = self.arrays(count, (width, packed_width(width, GROUP_SIZE, bits)), "uint8")
        scales = self.arrays(count, groups, TABLE_DTYPE, SCALE_DEVIATION)
        zeros = self.arrays(count, groups, TABLE_DTYPE, WEIGHT_DEVIATION)
        return [QuantizedMatrix(*parts, width, GROUP_SIZE, bits) for parts in zip(codes, scales, zeros, strict=True)]

    def _fill(self, buffer: Buffer, tier: str, dtype: str, scale: float) -> None:
        tile, count = random_tile(dtype, scale), buffer.nbytes // DTYPE_BYTES[dtype]
        put: Callable[[int, Values], object]
        if tier == "host":
            memory = self.backend.host_memory(buffer)[: count * tile.itemsize].view(dtype)
            put = lambda first, values: np.copyto(memory[first : first + values.size], values)  # noqa: E731
        else:
            flat: Any = self.backend.view(buffer, 0, (count,), dtype)
            put = lambda first, values: self.backend.upload(values, out=flat[first : first + values.size])  # noqa: E731
        for first in range(0, count, tile.size):
            put(first, tile[: min(tile.size, count - first)])


def spread(memory: npt.NDArray[np.uint8], done: int) -> None:
    """Copy the first `done` bytes of host memory all over it, in place."""
    while done < memory.nbytes:
        size = min(done, memory.nbytes - done)
        memory[done : done + size] = memory[:size]
        done += size


def fill_bytes(memory: npt.NDArray[np.uint8]) -> None:
    """Random bytes all over host memory."""
    some = min(memory.nbytes, TILE_ELEMENTS)
    memory[:some] = random_tile("uint8", 1.0)[:some]
    spread(memory, some)


@lru_cache(maxsize=16)
def random_tile(dtype: str, scale: float) -> Values:
    """Normal random numbers of a type with the standard deviation `scale`, or random bytes."""
    draw = np.random.default_rng(0)
    if dtype == "uint8":
        return draw.integers(0, 256, TILE_ELEMENTS, np.uint8)
    return (np.float32(scale) * draw.standard_normal(TILE_ELEMENTS, np.float32)).astype(dtype)


def matrix_bytes(stored: str, width: int) -> int:
    """Bytes of a square matrix as `Memory.matrices` lays it out."""
    bits = BITS.get(stored)
    if bits is None:
        return aligned(width * width * DTYPE_BYTES[stored], ALIGNMENT_BYTES)
    pairs = aligned(width * group_count(width, GROUP_SIZE) * DTYPE_BYTES[TABLE_DTYPE], ALIGNMENT_BYTES)
    return aligned(width * packed_width(width, GROUP_SIZE, bits), ALIGNMENT_BYTES) + 2 * pairs
