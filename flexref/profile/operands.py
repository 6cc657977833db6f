"""Takes memory for a measurement, fills it with random operands and gives it back at the end; it times nothing."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.backend.pinning_time import pinning_time
from flexref.backend.protocol import Backend, Buffer, Lane, LaneStep, Matrix, QuantizedMatrix, Ticket
from flexref.errors import CapacityError
from flexref.storage.quant import group_count, packed_width
from flexref.storage.schema import BITS
from flexref.units import ALIGNMENT_BYTES, DTYPE_BYTES, aligned

Values = npt.NDArray[Any]

GROUP_SIZE = 64
"""Group size of quantized matrices and caches: the default of `flexref convert` and of a policy."""

TABLE_DTYPE = "float16"
"""Type of tables, norms and biases in a model whose matrices are float16 or quantized."""

TILE_ELEMENTS = (1 << 20) - 3
"""Random numbers are made once and repeated. Their number is a prime, so that no two rows of a matrix are equal."""

WEIGHT_DEVIATION, SCALE_DEVIATION = 0.02, 0.003
"""Standard deviations of matrices and of the scales of groups, about those of a model."""


class Memory:
    """The buffers of one measurement. As a context manager it waits for all copies, then releases the buffers."""

    def __init__(self, backend: Backend, most_bytes: Mapping[str, int]) -> None:
        """`most_bytes`: how much it may take of every tier."""
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
            with suppress(Exception):  # its failure was raised where it was waited for first
                ticket.wait()
        self.backend.mark().wait()
        for buffer in self._buffers:
            self.backend.release(buffer)
        self._buffers.clear()

    def room_bytes(self, tier: str = "device") -> int:
        """How many bytes it may still take of a tier."""
        return self._left[tier]

    def submit(self, lane: Lane, steps: Sequence[LaneStep], after: Sequence[Ticket] = ()) -> Ticket:
        """Submit steps that use this memory to a lane; at the end it waits for them."""
        ticket = self.backend.submit(lane, steps, after)
        self._tickets.append(ticket)
        return ticket

    def buffer(self, tier: str, nbytes: int) -> Buffer:
        """A buffer of `nbytes` of a tier. Raises `CapacityError` if that is more than is left."""
        if nbytes > self._left[tier]:
            raise CapacityError(tier, "a profile", nbytes, self._left[tier], {}, "a quarter of what is free is used")
        buffer = self.backend.allocate(tier, nbytes)
        self._buffers.append(buffer)
        self._left[tier] -= nbytes
        pinning_time(self.backend).settle()  # nothing that is timed runs beside it
        return buffer

    def array(self, shape: tuple[int, ...], dtype: str, scale: float = 1.0, tier: str = "device") -> Any:
        """An array of normal random numbers with the standard deviation `scale`; of random bytes for uint8."""
        (made,) = self.arrays(1, shape, dtype, scale, tier)
        return made

    def arrays(
        self, count: int, shape: tuple[int, ...], dtype: str, scale: float = 1.0, tier: str = "device"
    ) -> list[Any]:
        """`count` such arrays in one buffer, each aligned."""
        item = DTYPE_BYTES[dtype]
        stride = aligned(max(1, int(np.prod(shape, dtype=np.int64)) * item), ALIGNMENT_BYTES)
        buffer = self.buffer(tier, count * stride)
        self._fill(buffer, tier, dtype, scale)
        return [self.backend.view(buffer, place * stride, shape, dtype) for place in range(count)]

    def ids(self, most: int, count: int) -> Any:
        """Random row numbers below `most`: (count,) int32 on the device."""
        values = self._random.integers(0, most, count).astype(np.int32)
        place = self.backend.view(self.buffer("device", aligned(values.nbytes, ALIGNMENT_BYTES)), 0, (count,), "int32")
        return self.backend.upload(values, out=place)

    def matrices(self, stored: str, width: int, most: int) -> list[Matrix]:
        """At most `most` square matrices in the form `stored`; fewer, but at least one, if half of the room is less."""
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
    """Fill host memory with copies of its first `done` bytes, in place."""
    while done < memory.nbytes:
        size = min(done, memory.nbytes - done)
        memory[done : done + size] = memory[:size]
        done += size


def fill_bytes(memory: npt.NDArray[np.uint8]) -> None:
    """Fill host memory with random bytes."""
    some = min(memory.nbytes, TILE_ELEMENTS)
    memory[:some] = random_tile("uint8", 1.0)[:some]
    spread(memory, some)


@lru_cache(maxsize=16)
def random_tile(dtype: str, scale: float) -> Values:
    """`TILE_ELEMENTS` normal random numbers with the standard deviation `scale`; random bytes for uint8."""
    draw = np.random.default_rng(0)
    if dtype == "uint8":
        return draw.integers(0, 256, TILE_ELEMENTS, np.uint8)
    return (np.float32(scale) * draw.standard_normal(TILE_ELEMENTS, np.float32)).astype(dtype)


def matrix_bytes(stored: str, width: int) -> int:
    """Bytes that `Memory.matrices` takes for one square matrix."""
    bits = BITS.get(stored)
    if bits is None:
        return aligned(width * width * DTYPE_BYTES[stored], ALIGNMENT_BYTES)
    pairs = aligned(width * group_count(width, GROUP_SIZE) * DTYPE_BYTES[TABLE_DTYPE], ALIGNMENT_BYTES)
    return aligned(width * packed_width(width, GROUP_SIZE, bits), ALIGNMENT_BYTES) + 2 * pairs
