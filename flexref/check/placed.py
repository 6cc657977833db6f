"""Wraps a port so that every array can be read, on the device or the host; it knows no operator.

`PlacedBackend` passes on memory and lanes. Arrays that it returns are wrapped in `Placed`, and are unwrapped again
before the port is given them.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.backend.capabilities import Description
from flexref.backend.host_operators import called_in_order
from flexref.backend.protocol import Array, Backend, Buffer, Lane, LaneStep, Prefix, QuantizedMatrix, Ticket
from flexref.backend.recording import DirectCalls
from flexref.backend.records import RecordLayout
from flexref.check.tolerances import Values
from flexref.units import DTYPE_BYTES


class Placed:
    """A port's array; and, where it lies in host memory, a numpy view of the same bytes."""

    __slots__ = ("array", "host")

    def __init__(self, array: Array, host: Values | None = None) -> None:
        self.array, self.host = array, host

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return tuple(self.array.shape)

    def __getitem__(self, key: Any) -> "Placed":
        """A view of both."""
        return Placed(self.array[key], None if self.host is None else self.host[key])


@dataclass(frozen=True, slots=True)
class PlacedRows:
    """A port's handle from `Backend.cache_rows`, and the arguments that it was made from."""

    handle: Any
    records: Sequence[Placed]
    layout: RecordLayout
    prefixes: Sequence[tuple[Placed, int] | None]

    @property
    def shared(self) -> tuple[int, ...]:
        """Tokens of every row whose records lie in its prefix, not in its own array."""
        return tuple(0 if prefix is None else prefix[1] for prefix in self.prefixes)

    def arrays(self, row: int, tokens: int) -> Iterator[Placed]:
        """The records of a row's first tokens, in one array or two."""
        prefix, own = self.prefixes[row], tokens
        if prefix is not None:
            yield prefix[0][: prefix[1] * self.layout.record_bytes]
            own -= prefix[1]
        yield self.records[row][: own * self.layout.record_bytes]


@dataclass(frozen=True, slots=True)
class PlacedSegments:
    """A port's handle from `Backend.segments`, and the arguments that it was made from."""

    handle: Any
    past: tuple[int, ...]
    new: tuple[int, ...]

    @property
    def total(self) -> tuple[int, ...]:
        """Tokens of every row, past and new."""
        return tuple(past + new for past, new in zip(self.past, self.new, strict=True))

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """(number of the row's first token among all new ones, past tokens, new tokens) of every row."""
        first = 0
        for past, new in zip(self.past, self.new, strict=True):
            yield first, past, new
            first += new


def bare(x: Any) -> Any:
    """`x` as the port made it: the array inside a `Placed`, a matrix of such arrays; anything else as it is."""
    if isinstance(x, QuantizedMatrix):
        return QuantizedMatrix(bare(x.codes), bare(x.scale), bare(x.zero), x.width, x.group_size, x.bits)
    return x.array if isinstance(x, Placed) else x


class PlacedBackend(DirectCalls):
    """Memory and lanes of `port`, with arrays wrapped in `Placed`; operators are added by `CheckedBackend`."""

    def __init__(self, port: Backend) -> None:
        self._port = port
        self.name, self.caps = port.name, replace(port.caps, recorded_bytes=0)  # each call is checked by itself
        self._tiers: dict[int, tuple[str, Buffer]] = {}
        self._awaited: list[Ticket] = []

    def _read(self, x: Any) -> Values:
        """A copy of an array in device or host memory, once all operators and copies that it depends on are done."""
        if x.host is None:
            return np.array(self._port.download(x.array))
        self._port.mark().wait()
        for ticket in self._awaited:
            ticket.wait()
        self._awaited.clear()
        return np.array(x.host)

    def describe(self) -> Description:
        """See `Backend.describe`."""
        return self._port.describe()

    def keep_rows_apart(self, on: bool) -> None:
        """See `Backend.keep_rows_apart`."""
        self._port.keep_rows_apart(on)

    def free_bytes(self, tier: str) -> int:
        """See `Backend.free_bytes`; the memory that checks take on the host is not subtracted."""
        return self._port.free_bytes(tier)

    def allocate(self, tier: str, nbytes: int) -> Buffer:
        """See `Backend.allocate`."""
        buffer = self._port.allocate(tier, nbytes)
        self._tiers[id(buffer)] = tier, buffer
        return buffer

    def release(self, buffer: Buffer) -> None:
        """See `Backend.release`."""
        del self._tiers[id(buffer)]
        self._port.release(buffer)

    def view(self, buffer: Buffer, offset: int, shape: tuple[int, ...], dtype: str) -> Placed:
        """See `Backend.view`."""
        array = self._port.view(buffer, offset, shape, dtype)
        if self._tiers[id(buffer)][0] == "device" or not self.caps.computes:
            return Placed(array)
        size = int(np.prod(shape, dtype=np.int64)) * DTYPE_BYTES[dtype]
        return Placed(array, self._port.host_memory(buffer)[offset : offset + size].view(dtype).reshape(shape))

    def host_memory(self, buffer: Buffer) -> npt.NDArray[np.uint8]:
        """See `Backend.host_memory`."""
        return self._port.host_memory(buffer)

    def upload(self, values: npt.NDArray[Any], out: Any = None) -> Placed:
        """See `Backend.upload`."""
        array = self._port.upload(values, bare(out))
        return Placed(array) if out is None else out

    def download(self, x: Any) -> npt.NDArray[Any]:
        """See `Backend.download`."""
        return self._port.download(bare(x))

    def assign(self, target: Any, source: Any) -> None:
        """See `Backend.assign`."""
        self._port.assign(bare(target), bare(source))

    def workspace(self, buffer: Buffer | None) -> None:
        """See `Backend.workspace`."""
        self._port.workspace(buffer)

    def frame(self) -> AbstractContextManager[None]:
        """See `Backend.frame`."""
        return self._port.frame()

    def workspace_peak_bytes(self) -> int:
        """See `Backend.workspace_peak_bytes`."""
        return self._port.workspace_peak_bytes()

    def empty(self, shape: tuple[int, ...], dtype: str) -> Placed:
        """See `Backend.empty`."""
        return Placed(self._port.empty(shape, dtype))

    def submit(self, lane: Lane, steps: Sequence[LaneStep], after: Sequence[Ticket]) -> Ticket:
        """See `Backend.submit`; operators on a lane are called in order with the others, so that each is looked at."""
        return self._port.submit(lane, called_in_order(steps, after), after)

    def mark(self) -> Ticket:
        """See `Backend.mark`."""
        return self._port.mark()

    def wait(self, ticket: Ticket) -> None:
        """See `Backend.wait`."""
        self._port.wait(ticket)
        self._awaited = [*(other for other in self._awaited if not other.done()), ticket]

    def close(self) -> None:
        """See `Backend.close`."""
        self._port.close()

    def cache_rows(
        self, records: Sequence[Any], layout: RecordLayout, prefixes: Sequence[Prefix | None] | None = None
    ) -> PlacedRows:
        """See `Backend.cache_rows`."""
        own = [bare(part) for part in records]
        if prefixes is None:
            return PlacedRows(self._port.cache_rows(own, layout), tuple(records), layout, (None,) * len(records))
        named: list[Any] = [prefix and (bare(prefix[0]), prefix[1]) for prefix in prefixes]
        placed: tuple[Any, ...] = tuple(prefixes)
        return PlacedRows(self._port.cache_rows(own, layout, named), tuple(records), layout, placed)

    def segments(self, past: Sequence[int], new: Sequence[int]) -> PlacedSegments:
        """See `Backend.segments`."""
        return PlacedSegments(self._port.segments(past, new), tuple(past), tuple(new))


def read_placed(backend: PlacedBackend, x: Placed) -> Values:
    """A copy of an array of this backend, wherever it lies."""
    return backend._read(x)
