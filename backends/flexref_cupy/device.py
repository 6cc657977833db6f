"""What the port's operators share: the device, its kernels, scratch memory, and small arrays that live on it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.backend.protocol import Ticket
from flexref.errors import CapacityError
from flexref_cupy.driver.cuda import Cuda
from flexref_cupy.driver.launching import Kernels
from flexref_cupy.memory import Buffer, Copying, Tensor, device_buffer
from flexref_cupy.pinning import Pinning

WEIGHTS_BYTES = 128 << 20
"""Holds a tile of expanded weights: two or more of the widest matrices' tiles make a product of full speed."""

PRODUCTS_BYTES = 32 << 20
"""What NVIDIA recommends for cuBLAS on the H100; 4 MiB would do on older devices."""

PARTIALS_BYTES = 32 << 20
"""Sums of parts of a row's keys, or of a product's inputs, before they are added up."""

COUNTERS_BYTES = 1 << 16
"""Counters, 4 bytes each, that are 0 between kernels: who uses one leaves it so."""

SMALL_BYTES = 4 << 20
"""Lengths, offsets and addresses of rows: some KiB per handle."""

SMALL_ALIGNMENT_BYTES = 256

STAGED_BYTES = 1 << 16
"""Copies from pageable memory up to so many bytes have left it when the call returns, longer ones may not have."""


@dataclass(frozen=True, slots=True)
class Scratch:
    """Addresses of the port's own memory on the device, and what each part holds."""

    weights: int
    products: int
    partials: int
    counters: int
    small: int

    @classmethod
    def at(cls, address: int) -> "Scratch":
        """The parts one after the other."""
        sizes = (WEIGHTS_BYTES, PRODUCTS_BYTES, PARTIALS_BYTES, COUNTERS_BYTES)
        starts = [address]
        for size in sizes:
            starts.append(starts[-1] + size)
        return cls(*starts)


SCRATCH_BYTES = WEIGHTS_BYTES + PRODUCTS_BYTES + PARTIALS_BYTES + COUNTERS_BYTES + SMALL_BYTES


class Device:
    """One device with its kernels and scratch."""

    def __init__(self, cuda: Cuda, copying: Copying | None = None) -> None:
        """`copying` knows the host's pinned memory, if there is any."""
        self.cuda, self.kernels = cuda, Kernels(cuda)
        self._copying = Copying(cuda, Pinning(cuda)) if copying is None else copying
        self._memory: Buffer = device_buffer(cuda, SCRATCH_BYTES)
        self.scratch = Scratch.at(self._memory.address)
        cuda.products_in(self.scratch.products, PRODUCTS_BYTES)
        self._small = SmallArrays(cuda, self.scratch.small, SMALL_BYTES)
        self._handles: list[Any] | None = None
        self.reading_stream = cuda.stream()
        """Values that the host waits for anyhow come on it, while operators that were called since run."""
        zeros = np.zeros(COUNTERS_BYTES, np.uint8)
        cuda.copy(self.scratch.counters, zeros.ctypes.data, zeros.nbytes, cuda.compute_stream)
        cuda.await_stream(cuda.compute_stream)

    @property
    def small_bytes(self) -> int:
        """What all small arrays may take."""
        return self._small.nbytes

    @property
    def stream(self) -> int:
        """The stream of operators."""
        return self.cuda.compute_stream

    def small(self, values: npt.NDArray[Any]) -> "SmallArray":
        """A small array on the device, in order with the operators; its place is free again when it is forgotten."""
        return self._small.put(values)

    def renew_small(self, array: "SmallArray", values: npt.NDArray[Any]) -> None:
        """Give a small array other values, no more of them, in order with the operators."""
        self._small.renew(array, values)

    def begin_recording(self) -> list[Any]:
        """Operators are recorded from now on; the list fills with the handles that they use (`recorded`)."""
        if self._handles is not None:
            raise RuntimeError("a recording while operators are recorded")
        self._handles = []
        return self._handles

    def end_recording(self) -> None:
        """Operators run again."""
        self._handles = None

    def recorded(self, *handles: Any) -> None:
        """An operator is called with these handles: what they have on the device stays where it is for a recording."""
        if self._handles is None:
            return
        for handle in handles:
            if handle not in self._handles:
                handle.recordings += 1
                self._handles.append(handle)

    def when_small_is_full(self, make_room: Callable[[], None]) -> None:
        """Call this before a small array is refused for want of a place: it may forget some that can come again."""
        self._small.make_room.append(make_room)

    def upload(self, values: npt.NDArray[Any], out: Tensor) -> None:
        """Copy host values (...) to a device array of their shape and type; they may change as soon as this returns."""
        check_runs(self.cuda, "an upload")
        source = np.ascontiguousarray(values)
        self._rows(out, (out.address, out.pitch_bytes), (source.ctypes.data, out.row_bytes))
        if source.nbytes > STAGED_BYTES:
            self.cuda.await_stream(self.stream)

    def download(self, x: Tensor) -> npt.NDArray[Any]:
        """The values of an array, when the operators so far are done."""
        check_runs(self.cuda, "a download")
        values = np.empty(x.shape, x.dtype)
        self._rows(x, (values.ctypes.data, x.row_bytes), (x.address, x.pitch_bytes))
        self.cuda.await_stream(self.stream)
        return values

    def download_after(self, ended: Ticket, x: Tensor) -> npt.NDArray[Any]:
        """The values of a contiguous array when `ended` is done, while operators that were called later run."""
        found = np.empty(x.shape, x.dtype)
        ended.wait()
        self.cuda.copy(found.ctypes.data, x.address, found.nbytes, self.reading_stream)
        self.cuda.await_stream(self.reading_stream)
        return found

    def assign(self, target: Tensor, source: Tensor) -> None:
        """target = source, on whichever tiers they lie."""
        if self.cuda.muted:
            return
        self._rows(target, (target.address, target.pitch_bytes), (source.address, source.pitch_bytes))

    def _rows(self, like: Tensor, target: tuple[int, int], source: tuple[int, int]) -> None:
        """Copy an array of the shape of `like`; `target` and `source` are addresses and strides of rows in bytes."""
        rows, nbytes = like.rows, like.row_bytes
        if not rows * nbytes:
            return
        if rows == 1 or target[1] == source[1] == nbytes:
            self._copying.copy(target[0], source[0], rows * nbytes, self.stream)
        else:
            self._copying.copy_rows(target, source, nbytes, rows, self.stream)

    def close(self) -> None:
        """Give the scratch back, when the operators are done; nothing is compiled any more."""
        self.kernels.close()
        self.cuda.await_stream(self.stream)
        self.cuda.destroy_stream(self.reading_stream)
        self.cuda.free(self._memory.address)


class SmallArray:
    """A small array on the device; its place is given back with it."""

    __slots__ = ("_free", "_offset", "address", "nbytes")

    def __init__(self, owner: "SmallArrays", offset: int, nbytes: int) -> None:
        """`nbytes`: what its place has."""
        self.address, self.nbytes = owner.address + offset, nbytes
        self._free, self._offset = owner.free, offset

    def __del__(self) -> None:
        self._free(self._offset, self.nbytes)


class SmallArrays:
    """First-fit places in a piece of device memory.

    A place may be taken again at once: its next content comes on the stream of operators, after all that read the last.
    """

    def __init__(self, cuda: Cuda, address: int, nbytes: int) -> None:
        self.address = address
        self.make_room: list[Callable[[], None]] = []
        """Called when all places are taken."""
        self._cuda, self.nbytes = cuda, nbytes
        self._gaps = {0: nbytes}

    def put(self, values: npt.NDArray[Any]) -> SmallArray:
        """Upload `values`; `CapacityError` if all places are taken by what nobody can do without."""
        nbytes = max(1, -(-values.nbytes // SMALL_ALIGNMENT_BYTES)) * SMALL_ALIGNMENT_BYTES
        offset = self._take(nbytes)
        if offset is None:
            for make_room in self.make_room:
                make_room()
            offset = self._take(nbytes)
        if offset is None:
            free = sum(self._gaps.values())
            held = {"lengths and places of rows": self.nbytes - free}
            hint = "take fewer groups per block, or fewer rows per group"
            raise CapacityError("device", "the port's place for small arrays", nbytes, free, held, hint)
        array = SmallArray(self, offset, nbytes)
        self.renew(array, values)
        return array

    def renew(self, array: SmallArray, values: npt.NDArray[Any]) -> None:
        """Upload `values` to the place of an array, in which they fit."""
        check_runs(self._cuda, "an upload")
        source = np.ascontiguousarray(values)
        if source.nbytes > array.nbytes:
            raise ValueError(f"{source.nbytes} bytes for a small array of {array.nbytes}")
        if source.nbytes:
            self._cuda.copy(array.address, source.ctypes.data, source.nbytes, self._cuda.compute_stream)
        if source.nbytes > STAGED_BYTES:
            self._cuda.await_stream(self._cuda.compute_stream)

    def free(self, offset: int, nbytes: int) -> None:
        """Give a place back, and join it with the gaps beside it."""
        self._gaps[offset] = nbytes
        joined: dict[int, int] = {}
        last = None
        for start in sorted(self._gaps):
            if last is not None and last + joined[last] == start:
                joined[last] += self._gaps[start]
            else:
                last = start
                joined[start] = self._gaps[start]
        self._gaps = joined

    def _take(self, nbytes: int) -> int | None:
        for offset, size in self._gaps.items():
            if size >= nbytes:
                del self._gaps[offset]
                if size > nbytes:
                    self._gaps[offset + nbytes] = size - nbytes
                return offset
        return None


def check_runs(cuda: Cuda, what: str) -> None:
    """`RuntimeError` while operators are recorded: a recording has no place for what is done once, or by the host."""
    if cuda.capturing:
        raise RuntimeError(f"{what} while operators are recorded")


def pieces(count: int, most: int) -> Iterator[tuple[int, int]]:
    """Cut `count` things into as few, evenly long (first, last) pieces of at most `most` as possible."""
    parts = max(1, -(-count // most))
    yield from pairwise(count * part // parts for part in range(parts + 1))
