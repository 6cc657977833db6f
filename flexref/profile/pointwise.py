"""Times all operators but products and attention, and the host's gathering of table rows; it knows no layer."""

from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import numpy as np

from flexref.architecture.spec import LAYER_NORM_EPSILON
from flexref.machine.curves import Curve
from flexref.profile.meter import Meter, backend_dtype
from flexref.profile.operands import TABLE_DTYPE, WEIGHT_DEVIATION, Memory, fill_bytes
from flexref.profile.points import Call, Point
from flexref.units import DTYPE_BYTES, LOGITS_DTYPE

TABLE_ROWS = 1024
"""Rows of a small table: reading some rows takes as long as from a large one."""

LOGITS_DEVIATION = 3.0
"""Standard deviation of the random logits, about that of a model's."""

MakeCall = Callable[["Operands"], Call]


class Operands:
    """The operands of one size: x and y (T, E), gain and shift (E,), tables of at least T rows, ids (T,)."""

    def __init__(self, memory: Memory, tokens: int, width: int) -> None:
        self.backend = memory.backend
        dtype = backend_dtype(memory.backend)
        self.x, self.y = (memory.array((tokens, width), dtype) for _ in range(2))
        self.gain, self.shift = (memory.array((width,), TABLE_DTYPE, WEIGHT_DEVIATION) for _ in range(2))
        rows = max(tokens, TABLE_ROWS)
        self.table = memory.array((rows, width), dtype)
        self.added = memory.array((rows, width), TABLE_DTYPE, WEIGHT_DEVIATION)
        self.ids = memory.ids(rows, tokens)


OPERANDS = 6
"""All operands of one size take at most about 6 times the bytes of a result."""

OPERATORS: dict[str, MakeCall] = {
    "layer_norm": lambda on: partial(on.backend.layer_norm, on.x, on.gain, on.shift, LAYER_NORM_EPSILON, on.y),
    "activate": lambda on: partial(on.backend.activate, on.x, "relu"),
    "gather": lambda on: partial(on.backend.gather, on.table, on.ids, 0, on.y),
    "add_rows": lambda on: partial(on.backend.add_rows, on.x, on.added, on.ids),
    "assign": lambda on: partial(on.backend.assign, on.y, on.x),
}
"""The calls that are timed, by operator. Every call writes its result to the same place."""


def operator_curves(meter: Meter) -> dict[str, Curve]:
    """Measure the seconds of every operator over the bytes of its result; those of `sample` over its logits' bytes."""
    turn = meter.pace.parts(("pointwise", "sample", "token rows"), (3, 1, 1))
    next(turn)
    curves = _pointwise(meter)
    next(turn)
    curves["sample"] = meter.curve("sample", _samples(meter), len(meter.sizes.sampled_rows))
    next(turn)
    curves["token rows"] = _gathers(meter)
    return curves


def _pointwise(meter: Meter) -> dict[str, Curve]:
    """Curves of the operators in `OPERATORS`, each up to the first call that takes longer than `longest_s`.

    Calls work on the same operands every time: in a job, too, an operator finds its operand in the cache, where the
    operator before has written it.
    """
    sizes = meter.sizes
    row_bytes = sizes.pointwise_width * DTYPE_BYTES[backend_dtype(meter.backend)]
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in OPERATORS}
    for tokens in meter.pace.parts(sizes.pointwise_tokens):
        nbytes = tokens * row_bytes
        if tokens > sizes.pointwise_tokens[0] and not meter.pace.left_s:
            meter.record.cut("pointwise operators", f"{points['layer_norm'][-1][0]:.0f} bytes")
            break
        meter.tell(f"operators, {tokens} tokens of width {sizes.pointwise_width}")
        with meter.memory() as memory:
            if tokens > sizes.pointwise_tokens[0] and OPERANDS * nbytes > memory.room_bytes():
                break
            on = Operands(memory, tokens, sizes.pointwise_width)
            for name, found in points.items():
                if not found or found[-1][1] <= sizes.longest_s:
                    point = Point(nbytes, f"{nbytes} bytes", [OPERATORS[name](on)])
                    found.append((nbytes, meter.operator(name, point)))
    return {name: Curve(tuple(found)) for name, found in points.items()}


def _samples(meter: Meter) -> Generator[Point, None, None]:
    """Points of greedy sampling. A call waits for its tokens, so calls are timed one by one."""
    meter.tell("operator sample")
    vocabulary = meter.sizes.vocabulary
    for rows in meter.sizes.sampled_rows:
        with meter.memory() as memory:
            logits = memory.array((rows, vocabulary), LOGITS_DTYPE, LOGITS_DEVIATION)
            call = partial(meter.backend.sample, logits, 0.0, 0, 1.0, np.zeros(rows))
            yield Point(rows * vocabulary * DTYPE_BYTES[LOGITS_DTYPE], f"{rows} rows", [call], blocking=True)


def _gathers(meter: Meter) -> Curve:
    """The seconds to gather random rows of a table on the host, as for a job's tokens, over the bytes of the rows."""
    meter.tell("token rows")
    sizes, draw = meter.sizes, np.random.default_rng(0)
    row_bytes = sizes.pointwise_width * DTYPE_BYTES[TABLE_DTYPE]
    points: list[tuple[float, float]] = []
    with meter.memory() as memory:
        rows = max(1, min(meter.rotated_bytes, memory.room_bytes("host") // 2) // row_bytes)
        table: Any = meter.backend.host_memory(_random_host(memory, rows * row_bytes)).reshape(rows, row_bytes)
        for tokens in sizes.pointwise_tokens:
            if tokens * row_bytes > memory.room_bytes("host"):
                break
            if points and not meter.pace.left_s:
                meter.record.cut("token rows", f"{points[-1][0]:.0f} bytes")
                break
            target = meter.backend.host_memory(memory.buffer("host", tokens * row_bytes)).reshape(tokens, row_bytes)
            places = np.arange(tokens)

            def gather(target: Any = target, places: Any = places, count: int = tokens) -> None:
                target[places] = table[draw.integers(0, rows, count)]

            points.append((float(target.nbytes), meter.host("token rows", f"{tokens} rows", gather, tokens)))
    return Curve(tuple(points))


def _random_host(memory: Memory, nbytes: int) -> Any:
    buffer = memory.buffer("host", nbytes)
    fill_bytes(memory.backend.host_memory(buffer))
    return buffer
