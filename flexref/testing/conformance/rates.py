"""Times every operator of a port at a model's shapes, beside what the port's own memory and product allow; no verdict.

The limits are measured on the same port: bytes per second by a large copy on the device, operations per second by a
large product of the compute type. The least time of a call is the longer of its bytes and its operations at these
rates: the fewest bytes that it must read and write, each once. Repeats and medians are those of `flexref profile`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from flexref.architecture.spec import LAYER_NORM_EPSILON
from flexref.backend.records import RecordLayout
from flexref.backend.registry import create
from flexref.errors import CapacityError, described
from flexref.profile.meter import Meter, backend_dtype
from flexref.profile.operands import GROUP_SIZE, TABLE_DTYPE, Memory, matrix_bytes
from flexref.profile.points import Call, Point
from flexref.profile.sizes import Sizes
from flexref.testing.conformance.black_box import BlackBox
from flexref.testing.conformance.processes import Telling
from flexref.testing.conformance.results import OperatorRate, PortRates
from flexref.units import DTYPE_BYTES, LOGITS_BYTES, LOGITS_DTYPE, MIB

COPIED_BYTES = 256 * MIB
"""A copy of so many bytes shows what memory gives; more than any device's caches hold."""

WIDTH, HOST_WIDTH = 4096, 1024
"""E of the operators, and I and O of products: on a device, and on a port that computes on the host."""

PRODUCTS = (1, 16, 128)
"""Tokens of a product: decode of one row and of some, and a short prompt."""

ROWS, PAST, PROMPT = 16, 512, 256
"""Rows of decode and the tokens in their caches; tokens of a prompt of each of four rows."""

HEAD_WIDTH, VOCABULARY, TOKENS = 64, 32000, 512

BOUND_S = 120.0
"""Windows are left out when so much time has passed; every operator is called twice at least."""

MATRICES = 8
"""At most so many take turns, so that none is found in a cache."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """Calls that take turns, with the bytes and operations of one."""

    method: str
    label: str
    calls: list[Call]
    nbytes: float
    flops: float = 0.0
    blocking: bool = False


def measure_rates(box: BlackBox, tell: Telling, backend: str) -> PortRates | str:
    """Make the port and time its operators; or why that cannot be done, in a line."""
    port = create(backend)
    try:
        with Meter(port, replace(Sizes.full(), bound_s=BOUND_S)) as meter:
            return _rates(meter, box)
    except Exception as error:  # whatever a broken port raises
        return described(error)
    finally:
        port.close()


def _rates(meter: Meter, box: BlackBox) -> PortRates:
    width = WIDTH if meter.asynchronous else HOST_WIDTH
    memory_rate = _copy_rate(meter)
    flops_rate = _product_rate(meter, 2 * width if meter.asynchronous else width)
    rates = []
    for make in (_products, _expansions, _rows, _attention, _samples):
        with meter.memory() as memory:
            for shape in make(meter, memory, width):
                box.calls(shape.method)
                point = Point(shape.nbytes, f"{shape.method}, {shape.label}", shape.calls, shape.blocking)
                rates.append(_rate(shape, meter.operator(shape.method, point), memory_rate, flops_rate))
    return PortRates(memory_bytes_per_s=memory_rate, flops_per_s=flops_rate, operators=rates)


def _rate(shape: _Shape, seconds: float, memory_rate: float, flops_rate: float) -> OperatorRate:
    moving_s, computing_s = shape.nbytes / memory_rate, shape.flops / flops_rate
    return OperatorRate(
        method=shape.method,
        shape=shape.label,
        seconds=seconds,
        least_s=max(moving_s, computing_s),
        limit="memory" if moving_s >= computing_s else "compute",
        bytes=shape.nbytes,
        flops=shape.flops,
    )


def _copy_rate(meter: Meter) -> float:
    with meter.memory() as memory:
        nbytes = min(COPIED_BYTES, memory.room_bytes() // 4)
        source, target = memory.arrays(2, (nbytes,), "uint8")
        call = partial(meter.backend.assign, target, source)
        return 2 * nbytes / meter.operator("assign", Point(nbytes, "a large copy", [call]))


def _product_rate(meter: Meter, width: int) -> float:
    dtype = backend_dtype(meter.backend)
    with meter.memory() as memory:
        x, w, out = memory.arrays(3, (width, width), dtype, width**-0.5)
        call = partial(meter.backend.linear, x, w, None, out=out)
        return 2.0 * width**3 / meter.operator("linear", Point(width, "a large product", [call]))


def _products(meter: Meter, memory: Memory, width: int) -> Iterator[_Shape]:
    """Square products with weights in every form, for few tokens and for more."""
    dtype = backend_dtype(meter.backend)
    x, out = memory.arrays(2, (max(PRODUCTS), width), dtype)
    bias = memory.array((width,), TABLE_DTYPE)
    for stored in ("float16", "int8", "int4"):
        matrices = memory.matrices(stored, width, MATRICES)
        for tokens in PRODUCTS:
            some_x, some_out = x[:tokens], out[:tokens]
            calls: list[Call] = [partial(meter.backend.linear, some_x, w, bias, out=some_out) for w in matrices]
            nbytes = matrix_bytes(stored, width) + 2 * tokens * width * DTYPE_BYTES[dtype]
            label = f"{stored} {width} x {width}, {tokens} tokens"
            yield _Shape("linear", label, calls, nbytes, 2.0 * tokens * width * width)


def _expansions(meter: Meter, memory: Memory, width: int) -> Iterator[_Shape]:
    dtype = backend_dtype(meter.backend)
    out = memory.array((width, width), dtype)
    for stored in ("int8", "int4"):
        calls: list[Call] = [partial(meter.backend.expand, w, out) for w in memory.matrices(stored, width, MATRICES)]
        nbytes = matrix_bytes(stored, width) + width * width * DTYPE_BYTES[dtype]
        yield _Shape("expand", f"{stored} {width} x {width}", calls, nbytes, 2.0 * width * width)


def _rows(meter: Meter, memory: Memory, width: int) -> Iterator[_Shape]:
    """Norms, activations, sums and gathers of a prompt's rows; each finds what it reads where another wrote it."""
    backend, dtype = meter.backend, backend_dtype(meter.backend)
    x, out, table = memory.arrays(3, (TOKENS, width), dtype)
    gain, shift = memory.arrays(2, (width,), TABLE_DTYPE, 0.1)
    added, ids = memory.array((TOKENS, width), TABLE_DTYPE), memory.ids(TOKENS, TOKENS)
    row_bytes = TOKENS * width * DTYPE_BYTES[dtype]
    table_bytes = TOKENS * width * DTYPE_BYTES[TABLE_DTYPE]
    calls: dict[str, tuple[Callable[[], object], float]] = {
        "layer_norm": (partial(backend.layer_norm, x, gain, shift, LAYER_NORM_EPSILON, out), 2 * row_bytes),
        "activate": (partial(backend.activate, x, "relu"), 2 * row_bytes),
        "gather": (partial(backend.gather, table, ids, 0, out), 2 * row_bytes),
        "add_rows": (partial(backend.add_rows, x, added, ids), 2 * row_bytes + table_bytes),
    }
    for method, (call, nbytes) in calls.items():
        yield _Shape(method, f"{TOKENS} tokens of {width}", [call], nbytes)


def _attention(meter: Meter, memory: Memory, width: int) -> Iterator[_Shape]:
    """One new token of some rows over their caches, and whole prompts, over plain and 4-bit records."""
    backend, dtype = meter.backend, backend_dtype(meter.backend)
    layouts = [RecordLayout(width // HEAD_WIDTH, HEAD_WIDTH, dtype, scheme, GROUP_SIZE) for scheme in ("none", "int4")]
    tokens = max(ROWS, 4 * PROMPT)
    qkv, out = memory.array((tokens, 3 * width), dtype), memory.array((tokens, width), dtype)
    for layout in layouts:
        name = "4-bit records" if layout.quantized else "plain records"
        size = (PAST + 1) * layout.record_bytes
        if ROWS * size > memory.room_bytes():
            raise CapacityError("device", "caches of a measurement", ROWS * size, memory.room_bytes(), {})
        pool = memory.buffer("device", ROWS * size)
        records = [backend.view(pool, row * size, (size,), "uint8") for row in range(ROWS)]
        handle, four = backend.cache_rows(records, layout), backend.cache_rows(records[:4], layout)
        _fill(meter, records, layout, qkv)
        for rows, new, which, past in ((ROWS, 1, handle, PAST), (4, PROMPT, four, 0)):
            count = rows * new
            q, k, v = (qkv[:count, part * width : (part + 1) * width] for part in range(3))
            segments = backend.segments([past] * rows, [new] * rows)
            label = f"{name}, {rows} rows of {past} + {new} tokens"
            fresh = count * (2 * width * DTYPE_BYTES[dtype] + layout.record_bytes)
            yield _Shape("append", label, [partial(backend.append, which, segments, k, v)], fresh)
            read = rows * (past + new) * layout.record_bytes + 2 * count * width * DTYPE_BYTES[dtype]
            seen = rows * (past * new + new * (new + 1) / 2)
            attend = partial(backend.attend, which, segments, q, HEAD_WIDTH**-0.5, out[:count])
            yield _Shape("attend", label, [attend], read, 4.0 * width * seen)


def _fill(meter: Meter, records: list[Any], layout: RecordLayout, qkv: Any) -> None:
    """Valid records in every cache."""
    backend, width = meter.backend, layout.heads * layout.head_width
    for record in records:
        handle = backend.cache_rows([record], layout)
        for first in range(0, PAST + 1, PROMPT):
            count = min(PROMPT, PAST + 1 - first)
            k, v = qkv[:count, width : 2 * width], qkv[:count, 2 * width :]
            backend.append(handle, backend.segments([first], [count]), k, v)
    backend.mark().wait()


def _samples(meter: Meter, memory: Memory, width: int) -> Iterator[_Shape]:
    logits = memory.array((ROWS, VOCABULARY), LOGITS_DTYPE, 3.0)
    draws = np.random.default_rng(0).random(ROWS)
    for name, temperature, top_p in (("greedy", 0.0, 1.0), ("top-p", 1.0, 0.9)):
        call = partial(meter.backend.sample, logits, temperature, 0, top_p, draws)
        label = f"{name}, {ROWS} rows of {VOCABULARY}"
        yield _Shape("sample", label, [call], ROWS * VOCABULARY * LOGITS_BYTES, blocking=True)
