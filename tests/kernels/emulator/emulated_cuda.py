"""`flexref_cupy.driver.cuda.Cuda` without a device: kernels run on the CPU, one thread at a time; it knows no operator.

An author of a kernel calls it so, with a C++ compiler installed and `tests/kernels` on the path:

    device = Device(EmulatedCuda(capability=(8, 0)))                # flexref_cupy.device
    x = Fresh(device.cuda, 2 * 3 * 64)                              # flexref_cupy.memory
    x = Tensor(x.address, (3, 64), "float16", 64, owner=x)
    device.upload(np.ones((3, 64), np.float16), x)
    kernel = device.kernels.get("activate", "activate", T="half")   # or a function of the port that starts it
    kernel((3, 1, 1), 128, x.address, 64)                           # grid, threads of a block, arguments
    print(device.download(x))

A mistake raises `EmulationError` with kernel, block, thread and line: memory accessed outside an allocation or at a
wrong alignment, a barrier or collective that not all threads reach, shared memory accessed by two threads with no
barrier between, or before `await_batches`. Fresh memory, shared memory too, is full of 0xff: NaN in every type.
`CupyBackend(cuda=EmulatedCuda())` is the whole port; `EmulatedCuda(late=True)` shows what waits for nobody.
"""

import ctypes
import struct
import threading
import zlib
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from emulated_build import EmulationError, Launch, Module, build, compiler_is_here, runtime
from emulated_graphs import Graphs
from emulated_pages import Pages
from emulated_streams import Streams, Work
from flexref_cupy.driver.kernel_source import Source

from flexref.errors import CapacityError

__all__ = ["EmulatedCuda", "EmulationError", "compiler_is_here"]

STATIC_SHARED_BYTES = 48 << 10
"""Shared memory that a kernel may use without having asked for more."""

MOST_SHARED_BYTES = {(7, 5): 64 << 10, (8, 0): 163 << 10, (8, 6): 99 << 10, (8, 9): 99 << 10, (9, 0): 227 << 10}
"""Shared memory that a block of an architecture may have (CUDA C++ Programming Guide, technical specifications)."""

MOST_THREADS = 1024
MOST_BLOCKS = (2**31 - 1, 65535, 65535)

STAGED_BYTES = 1 << 16
"""Up to so many bytes of pageable memory have left it when an asynchronous copy to the device returns."""

COPIES_BESIDE = (8, 0)
"""Since then a device copies to shared memory beside computing."""

SUM_LENGTHS = (8, 16, 32, 64)
"""cuBLAS adds up a product's inputs in another order for other shapes and layouts, and so does the emulated one."""

IN_ORDER, STEP = (9, 0), 16
"""Since then cublasLt multiplies so many inputs at a time, from the first to the last, as its tensor cores do."""

MESSAGE_BYTES = 1024

LOCK = threading.RLock()
"""There is one runtime in a process: it serves one call at a time, whatever thread or instance it comes from."""


@dataclass(frozen=True)
class Function:
    """A kernel of a module."""

    module: Module
    name: str


class EmulatedCuda:
    """Has the methods and attributes of `Cuda`, and their meaning; see there."""

    def __init__(
        self,
        capability: tuple[int, int] = (7, 5),
        multiprocessors: int = 4,
        memory_bytes: int = 16 << 30,
        late: bool = False,
        ahead: bool = False,
    ) -> None:
        """`late`: the work of streams is done only when somebody waits for it, else at once. `ahead`: see
        `Cuda.compiles_ahead`.
        """
        self.compiles_ahead = ahead
        self.capability, self.multiprocessors, self.number = capability, multiprocessors, 0
        self.name = f"emulated sm_{capability[0]}{capability[1]}"
        self.launches: Counter[tuple[str, str]] = Counter()
        self._shared_bytes: dict[tuple[Path, str], int] = {}
        """Dynamic shared memory that kernels of programs may use."""
        self._memory_bytes = memory_bytes
        self._pages: dict[int, Pages] = {}
        self._pinned: dict[int, int] = {}
        self._pinned_starts: list[int] = []
        self.pageable: Counter[int] = Counter()
        """Bytes of host memory that was not pinned, by the stream that copied them."""
        self._streams = Streams(late, LOCK)
        self.compute_stream = self.stream()
        self.capturing = self.muted = False
        self._graphs = Graphs()
        runtime()

    def devices(self) -> tuple[str, ...]:
        """See `Cuda.devices`."""
        return (f"{self.name}, {self._memory_bytes} bytes",)

    def versions(self) -> dict[str, str]:
        """See `Cuda.versions`; there is no library."""
        return {}

    # Memory

    def memory(self) -> tuple[int, int]:
        """See `Cuda.memory`."""
        with LOCK:
            return self._memory_bytes - sum(pages.nbytes for pages in self._pages.values()), self._memory_bytes

    def allocate(self, nbytes: int) -> int:
        """See `Cuda.allocate`; full of 0xff."""
        self._graphs.refuse("memory is allocated")
        with LOCK:
            free, _ = self.memory()
            if nbytes > free:
                raise CapacityError("device", "CUDA", nbytes, free, {}, "the emulated device is full")
            pages = Pages(nbytes)
            self._pages[pages.address] = pages
            runtime().emulated_region(pages.address, nbytes)
            return pages.address

    def free(self, address: int) -> None:
        """See `Cuda.free`; like CUDA's it waits for the device."""
        self._streams.when_idle(partial(self._free, address))

    def _free(self, address: int) -> None:
        runtime().emulated_no_region(address)
        self._pages.pop(address).free()

    def pin(self, address: int, nbytes: int) -> None:
        """See `Cuda.pin`."""
        with LOCK:
            if not nbytes or self._overlaps(address, nbytes):
                raise CapacityError("host", "pinned memory", nbytes, 0, {}, "it is pinned already, or empty")
            self._pinned[address] = nbytes
            insort(self._pinned_starts, address)

    def unpin(self, address: int) -> None:
        """See `Cuda.unpin`; it waits for the device."""
        self._streams.when_idle(partial(self._forget_pinned, address))

    def _forget_pinned(self, address: int) -> None:
        with LOCK:
            del self._pinned[address]
            del self._pinned_starts[bisect_left(self._pinned_starts, address)]

    def pinned(self) -> dict[int, int]:
        """Bytes of host memory that are pinned, by their address."""
        return dict(self._pinned)

    def _overlaps(self, address: int, nbytes: int) -> list[bool]:
        """Of every registration that so many bytes touch, whether they lie in it."""
        end = address + nbytes
        with LOCK:  # no two registrations overlap, so of those that start before it only the last can reach it
            starts = self._pinned_starts
            near = starts[max(0, bisect_left(starts, address) - 1) : bisect_left(starts, end)]
            pinned = [(first, first + self._pinned[first]) for first in near]
        return [first <= address and end <= last for first, last in pinned if address < last]

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """See `Cuda.copy`."""
        self.copy_rows((target, nbytes), (source, nbytes), nbytes, 1, stream)

    def copy_rows(self, target: tuple[int, int], source: tuple[int, int], nbytes: int, rows: int, stream: int) -> None:
        """See `Cuda.copy_rows`; `EmulationError` for bytes that lie in one allocation or registration in part."""
        to_pageable, from_pageable = (self._check_rows(*end, nbytes, rows) for end in (target, source))
        self.pageable[stream] += rows * nbytes * (to_pageable + from_pageable)
        places = [source[0] + row * source[1] for row in range(rows)]
        if from_pageable and rows * nbytes <= STAGED_BYTES:
            staged = [ctypes.string_at(place, nbytes) for place in places]
            self._graphs.refuse("the host's memory is copied", stream == self.compute_stream)
            self._streams.do(stream, partial(_copy, target, staged, nbytes))
        else:
            self._do(stream, partial(_copy, target, places, nbytes), (target[0], source[0]))
        if to_pageable:
            self.await_stream(stream)

    def _check_rows(self, start: int, stride: int, nbytes: int, rows: int) -> bool:
        """Whether rows lie in host memory that is not pinned."""
        size = (rows - 1) * stride + nbytes
        if rows < 1 or nbytes < 1 or (rows > 1 and stride < nbytes):
            raise EmulationError(f"copy of {rows} rows of {nbytes} bytes, one every {stride} bytes")
        with LOCK:
            owner = runtime().emulated_owner(start, size)
        if owner < 0:
            raise EmulationError(f"copy of {rows} rows of {nbytes} bytes beyond an allocation of the device")
        within = self._overlaps(start, size)
        if within and not all(within):
            raise EmulationError(f"copy of {rows} rows of {nbytes} bytes, of which one registration has only some")
        return owner == 0 and not within

    # Streams and events

    def stream(self) -> int:
        """See `Cuda.stream`."""
        return self._streams.new()

    def event(self) -> int:
        """See `Cuda.event`."""
        return self._streams.new()

    def destroy_stream(self, stream: int) -> None:
        """See `Cuda.destroy_stream`; it must have done its work."""
        self._streams.destroy(stream)

    def destroy_event(self, event: int) -> None:
        """See `Cuda.destroy_event`."""
        self._streams.destroy(event)

    def close(self) -> None:
        """See `Cuda.close`."""
        self.destroy_stream(self.compute_stream)

    def alive(self) -> set[int]:
        """Streams and events that nobody has destroyed."""
        return self._streams.alive

    def record(self, event: int, stream: int) -> None:
        """See `Cuda.record`."""
        self._graphs.refuse("an event is recorded", stream == self.compute_stream)
        self._streams.record(event, stream)

    def let_wait(self, stream: int, event: int) -> None:
        """See `Cuda.let_wait`."""
        self._graphs.refuse("an event is awaited", stream == self.compute_stream)
        self._streams.let_wait(stream, event)

    def happened(self, event: int) -> bool:
        """See `Cuda.happened`."""
        return self._streams.happened(event)

    def await_event(self, event: int) -> None:
        """See `Cuda.await_event`."""
        self._streams.await_event(event)

    def seconds_between(self, first: int, second: int) -> float:
        """See `Cuda.seconds_between`."""
        return self._streams.seconds_between(first, second)

    def await_stream(self, stream: int) -> None:
        """See `Cuda.await_stream`."""
        self._graphs.refuse("the stream is awaited", stream == self.compute_stream)
        self._streams.await_stream(stream)

    def join_thread(self) -> None:
        """See `Cuda.join_thread`."""

    # Kernels and products

    def compile(self, text: Source) -> Module:
        """See `Cuda.compile`; compiled once per user and text."""
        self._graphs.refuse("a kernel is compiled")
        return build(text, self.capability >= COPIES_BESIDE)

    def load(self, program: Module) -> Module:
        """See `Cuda.load`."""
        return program

    def function(self, module: Module, name: str, shared_bytes: int) -> Function:
        """See `Cuda.function`; `EmulationError` for more shared memory than the architecture has.

        As CUDA has it, a kernel is one thing however often it is asked for, and may use what was said last.
        """
        most, static = MOST_SHARED_BYTES[self.capability], module.static_shared_bytes
        if static > STATIC_SHARED_BYTES or shared_bytes + static > most:
            raise EmulationError(f"{name}: {static} + {shared_bytes} bytes of shared memory; {self.name} has {most}")
        if shared_bytes:
            self._shared_bytes[module.path, name] = shared_bytes
        return Function(module, name)

    def launch(
        self, function: Function, grid: tuple[int, int, int], block: int, shared_bytes: int, arguments: int
    ) -> None:
        """See `Cuda.launch`; blocks run in an order that differs between launches, and is the same in every process."""
        name = function.name
        if not 0 < block <= MOST_THREADS:
            raise EmulationError(f"{name}: a block of {block} threads")
        if not all(0 < side <= most for side, most in zip(grid, MOST_BLOCKS, strict=True)):
            raise EmulationError(f"{name}: a grid of {grid} blocks")
        allowed = max(
            self._shared_bytes.get((function.module.path, name), 0),
            STATIC_SHARED_BYTES - function.module.static_shared_bytes,
        )
        if shared_bytes > allowed:
            raise EmulationError(f"{name}: {shared_bytes} bytes of dynamic shared memory, allowed are {allowed}")
        buffer_is_next, buffer, size_is_next, size, end = struct.unpack("=5Q", ctypes.string_at(arguments, 40))
        assert (buffer_is_next, size_is_next, end) == (1, 2, 0)
        copied = ctypes.string_at(buffer, ctypes.c_ulonglong.from_address(size).value)
        run = partial(self._run, function, grid, block, shared_bytes, copied)
        self._do(self.compute_stream, run, struct.unpack(f"={len(copied) // 8}Q", copied[: len(copied) // 8 * 8]))

    def _run(
        self, function: Function, grid: tuple[int, int, int], block: int, shared_bytes: int, arguments: bytes
    ) -> None:
        module, name = function.module, function.name
        self.launches[module.operator, name] += 1
        message = ctypes.create_string_buffer(MESSAGE_BYTES)
        launch = Launch(
            entry=module.entry(name),
            arguments=ctypes.cast(ctypes.c_char_p(arguments), ctypes.c_void_p),
            grid=grid,
            block=block,
            shared_bytes=shared_bytes,
            seed=self.launches.total(),
            pieces=module.pieces,
            message=ctypes.cast(message, ctypes.c_char_p),
            message_bytes=MESSAGE_BYTES,
        )
        if runtime().emulated_launch(ctypes.byref(launch)):
            raise EmulationError(f"{name}: {message.value.decode()}{module.line(launch.message_place or 0)}")

    def products_in(self, address: int, nbytes: int) -> None:
        """See `Cuda.products_in`."""
        if runtime().emulated_owner(address, nbytes) != 1:
            raise EmulationError(f"{nbytes} bytes for products are not the device's")

    def multiply(
        self,
        shape: tuple[int, int, int],
        x: tuple[int, int],
        w: tuple[int, int],
        out: tuple[int, int, str],
        add: bool,
    ) -> None:
        """See `Cuda.multiply`; the order of the sums follows from shapes and layouts, as cuBLAS chooses it."""
        if self.muted:
            return
        layouts = [(address % 256, pitch) for address, pitch in (x, w, out[:2])]
        order = shape, layouts, out[2], add
        self._do(self.compute_stream, partial(_multiply, shape, x, w, out, add, order), (x[0], w[0], out[0]))

    def multiply_apart(
        self,
        shape: tuple[int, int, int],
        x: tuple[int, int],
        w: tuple[int, int],
        out: tuple[int, int, str],
        add: bool,
    ) -> None:
        """See `Cuda.multiply_apart`; the order of the sums is that of the tensor cores on devices from IN_ORDER on.

        On others it follows from the matrix and the layouts.
        """
        if self.muted:
            return
        if self.capability >= IN_ORDER:
            self._do(self.compute_stream, partial(_multiply_in_order, shape, x, w, out, add), (x[0], w[0], out[0]))
            return
        layouts = [(address % 256, pitch) for address, pitch in (x, w, out[:2])]
        order = shape[1:], layouts, out[2]
        self._do(self.compute_stream, partial(_multiply, shape, x, w, out, add, order), (x[0], w[0], out[0]))

    # Graphs

    def _do(self, stream: int, work: Work, addresses: Sequence[int]) -> None:
        """Let a stream do some work, or capture it; `addresses`: where it may find what it works on."""
        if self.capturing and stream == self.compute_stream:
            with LOCK:
                used = [pages for pages in self._pages.values() if any(map(pages.holds, addresses))]
            self._graphs.capture(work, used)
        else:
            self._streams.do(stream, work)

    def begin_capture(self) -> None:
        """See `Cuda.begin_capture`."""
        self._graphs.begin()
        self.capturing = True

    def end_capture(self) -> tuple[int, int]:
        """See `Cuda.end_capture`."""
        self.capturing = False
        return self._graphs.end(self._streams.new())

    def abandon_capture(self) -> None:
        """See `Cuda.abandon_capture`."""
        self.destroy_graph(self.end_capture()[0])

    def instantiate(self, graph: int) -> int:
        """See `Cuda.instantiate`; `CapacityError` if the device has not even a byte for every node."""
        needed, free = len(self._graphs.nodes(graph)), self.memory()[0]
        if free < needed:
            raise CapacityError("device", "a recording", needed, free, {}, "the emulated device is full")
        return self._graphs.copied(graph, self._streams.new())

    def launch_graph(self, executable: int) -> None:
        """See `Cuda.launch_graph`; `EmulationError` when it runs after memory that it works on was given back."""
        for node in self._graphs.nodes(executable):
            self._streams.do(self.compute_stream, node)

    def destroy_graph(self, graph: int) -> None:
        """See `Cuda.destroy_graph`."""
        self._graphs.remove(graph)
        self._streams.destroy(graph)

    def destroy_executable(self, executable: int) -> None:
        """See `Cuda.destroy_executable`."""
        self.destroy_graph(executable)


def _multiply(
    shape: tuple[int, int, int],
    x: tuple[int, int],
    w: tuple[int, int],
    out: tuple[int, int, str],
    add: bool,
    order: object,
) -> None:
    """The product, whose inputs are added up in one of several orders: that which `order` says."""
    tokens, outputs, inputs = shape
    left, right = (
        _matrix(x[0], (tokens, inputs), x[1], "float16"),
        _matrix(w[0], (outputs, inputs), w[1], "float16"),
    )
    target = _matrix(out[0], (tokens, outputs), out[1], out[2])
    length = SUM_LENGTHS[zlib.crc32(repr(order).encode()) % len(SUM_LENGTHS)]
    with np.errstate(over="ignore", invalid="ignore"):
        sums = target.astype(np.float32) if add else np.zeros((tokens, outputs), np.float32)
        for first in range(0, inputs, length):
            part = slice(first, first + length)
            # Products of halves are exact in float64, and so is their sum for all that a float32 can tell.
            sums += (left[:, part].astype(np.float64) @ right[:, part].astype(np.float64).T).astype(np.float32)
        target[...] = sums


def _multiply_in_order(
    shape: tuple[int, int, int], x: tuple[int, int], w: tuple[int, int], out: tuple[int, int, str], add: bool
) -> None:
    """The product; each step's sum is exact and added to the sum before it, and what `out` held to the rounded one."""
    tokens, outputs, inputs = shape
    left, right = (
        _matrix(x[0], (tokens, inputs), x[1], "float16").astype(np.float64),
        _matrix(w[0], (outputs, inputs), w[1], "float16").astype(np.float64),
    )
    target = _matrix(out[0], (tokens, outputs), out[1], out[2])
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.zeros((tokens, outputs), np.float32)
        for first in range(0, inputs, STEP):
            part = slice(first, first + STEP)
            sums = (sums + left[:, part] @ right[:, part].T).astype(np.float32)
        result = sums.astype(out[2])
        target[...] = result.astype(np.float32) + target if add else result


def _copy(target: tuple[int, int], rows: list[int] | list[bytes], nbytes: int) -> None:
    for number, row in enumerate(rows):
        ctypes.memmove(target[0] + number * target[1], row, nbytes)


def _matrix(address: int, shape: tuple[int, int], pitch: int, dtype: str) -> npt.NDArray[Any]:
    """A view of a matrix on the device; `EmulationError` unless it lies within one allocation."""
    item = np.dtype(dtype).itemsize
    nbytes = ((shape[0] - 1) * pitch + shape[1]) * item
    if min(shape) < 1 or pitch < shape[1] or address % item or runtime().emulated_owner(address, nbytes) != 1:
        raise EmulationError(f"a product with {shape} {dtype} of pitch {pitch} at {address:#x}")
    memory = np.frombuffer((ctypes.c_char * nbytes).from_address(address), dtype)
    return np.lib.stride_tricks.as_strided(memory, shape, (pitch * item, item))
