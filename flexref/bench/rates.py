"""What a device does at best, measured through a port's own protocol: copies and products; it reads no disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from flexref.backend.protocol import Backend, Buffer, Lane, Move, Span, Ticket
from flexref.json_types.values import Number
from flexref.units import DTYPE_BYTES

Bytes = npt.NDArray[np.uint8]

COPY_BYTES = (16 << 20, 64 << 20, 256 << 20)
"""Copies grow until one is long enough to be timed well."""

PRODUCT_WIDTHS = (256, 512, 1024, 2048, 4096)
"""So do square products; those of 4096 reach the full rate of any device that the project knows."""

LONG_ENOUGH_S = 0.02
"""A copy or product that takes so long is not made longer: no part of the measurement lasts seconds."""

REPEATS = 4
"""The best of so many counts: whatever else runs makes one slower, nothing makes one faster than the machine is."""

PRODUCTS_AT_ONCE = 8
"""Products between two marks, so that what it costs to call one does not count."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes per second of the links, of device memory (read and written), FLOPs per second of products.

    `from_disk` is that of the weight file, the other two are those of a spill file (see `disk_rates`), `host_memory` is
    for attention on the host (see `host_rate`); None until a job has used them.
    """

    to_device_bytes_per_s: Annotated[float, Number(0), "Of copies from the host."]
    from_device_bytes_per_s: Annotated[float, Number(0), "Of copies to the host."]
    device_memory_bytes_per_s: Annotated[float, Number(0), "Of the device's memory, read and written."]
    product_flops_per_s: Annotated[float, Number(0), "Of matrix products."]
    from_disk_bytes_per_s: Annotated[float | None, Number(0), "Of the weight file; null: not read while it ran."] = None
    from_spill_bytes_per_s: Annotated[float | None, Number(0), "From a spill file; null: there was none."] = None
    to_spill_bytes_per_s: Annotated[float | None, Number(0), "To a spill file; null: there was none."] = None
    host_memory_bytes_per_s: Annotated[
        float | None, Number(0), "Of the host's memory, read by its cores; null: no attention ran on the host."
    ] = None


def measure(backend: Backend) -> Rates:
    """The rates of the port's device now; takes about a second, and 768 MiB at most, all given back."""
    inward = outward = within = 0.0
    for nbytes in COPY_BYTES:
        seconds = _copy_seconds(backend, nbytes)
        inward, outward = max(inward, nbytes / seconds[0]), max(outward, nbytes / seconds[1])
        within = max(within, 2 * nbytes / seconds[2])
        if max(seconds) > LONG_ENOUGH_S:
            break
    products = 0.0
    for width in PRODUCT_WIDTHS:
        took = _product_seconds(backend, width)
        products = max(products, 2 * width**3 / took)
        if took > LONG_ENOUGH_S:
            break
    return Rates(inward, outward, within, products)


def _copy_seconds(backend: Backend, nbytes: int) -> list[float]:
    """Seconds for `nbytes` from host to device, back, and from device to device: the best of a few each."""
    host, first, second = (backend.allocate(tier, nbytes) for tier in ("host", "device", "device"))
    try:
        backend.host_memory(host)[:] = np.resize(_random_bytes(), nbytes)
        ways = ((Lane.WEIGHTS_IN, host, first), (Lane.CACHE_OUT, first, host), (Lane.CACHE_IN, first, second))
        return [min(_move(backend, lane, source, target) for _ in range(REPEATS)) for lane, source, target in ways]
    finally:
        for buffer in (host, first, second):
            backend.release(buffer)


def _move(backend: Backend, lane: Lane, source: Buffer, target: Buffer) -> float:
    nbytes = source.nbytes
    ticket = backend.submit(lane, [Move("measuring", Span(source, 0, nbytes), Span(target, 0, nbytes))], ())
    ticket.wait()
    ((start, end),) = ticket.times()
    return max(end - start, 1e-9)


def _product_seconds(backend: Backend, width: int) -> float:
    """Seconds for one product of (width, width) matrices of random numbers in the compute type: the best of a few."""
    dtype = backend.caps.compute_dtype
    size = width * width * DTYPE_BYTES[dtype]
    memory = backend.allocate("device", 3 * size)
    try:
        x, w, out = (backend.view(memory, part * size, (width, width), dtype) for part in range(3))
        for matrix in (x, w):
            backend.upload(random_matrix(width, dtype), out=matrix)
        best = _products(backend, (x, w, out), 1)
        count = PRODUCTS_AT_ONCE if best < LONG_ENOUGH_S else 1
        return min(best, *(_products(backend, (x, w, out), count) for _ in range(REPEATS)))
    finally:
        backend.release(memory)


def _products(backend: Backend, matrices: Sequence[Any], count: int) -> float:
    x, w, out = matrices
    begin = backend.mark()
    for _ in range(count):
        backend.linear(x, w, None, out=out)
    return max(seconds_between(begin, backend.mark()), 1e-9) / count


def seconds_between(begin: Ticket, end: Ticket) -> float:
    """Seconds from one mark to a later one, which is waited for."""
    end.wait()
    return end.times()[0][0] - begin.times()[0][0]


def _random_bytes() -> Bytes:
    return np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8)


def random_matrix(width: int, dtype: str) -> npt.NDArray[Any]:
    """Normal numbers that make a product's about 1: zeros, or numbers that overflow, take another time."""
    values = np.random.default_rng(0).standard_normal((width, width), np.float32)
    return (values / np.float32(width**0.5)).astype(dtype)
