"""Times matrix products and expansions of a port by how the matrix is stored, over its size; it knows no layer."""

from collections.abc import Generator, Sequence
from functools import partial
from itertools import cycle
from typing import Any

from flexref.backend.protocol import Matrix
from flexref.machine.curves import Curve, Surface
from flexref.machine.durations import EXPANDED_FIRST
from flexref.profile.meter import Call, Meter, Point, Timed, backend_dtype
from flexref.profile.operands import TABLE_DTYPE, Memory, matrix_bytes
from flexref.units import DTYPE_BYTES

COPIES_MOST = 512
"""Bounds how many matrices are taken in turn: small ones, of which many fit into what is to exceed a cache."""

HEAT_AGAIN = 4
"""A device that was warm a moment ago is warm again after such a part of the time."""

LEAST_POINTS = 4
"""A curve over tokens has so many points, however long they take: a matrix is read, expanded and multiplied."""

LEAST_WIDTHS = 2
"""A surface has so many curves, if any port of time allows it: one width says nothing of another."""


def stored_forms(compute_dtype: str) -> tuple[str, ...]:
    """How matrices are stored whose products are timed: in the compute type, as halves, in 4-bit groups."""
    return tuple(dict.fromkeys((compute_dtype, TABLE_DTYPE, "int4")))


def product_surfaces(meter: Meter) -> dict[str, Surface]:
    """Seconds of a product by how its matrix is stored, over the matrix's elements and the tokens."""
    surfaces = {}
    for stored in stored_forms(backend_dtype(meter.backend)):
        curves: list[tuple[float, Curve]] = []
        begin = meter.clock()
        for width in meter.sizes.widths:
            spent_s = meter.clock() - begin
            if len(curves) >= LEAST_WIDTHS and spent_s > meter.sizes.products_s / 3:
                break
            with meter.memory() as memory:
                if curves and matrix_bytes(stored, width) > memory.room_bytes() // 2:
                    break
                meter.tell(f"products with {stored} matrices of width {width}")
                curve = _curve(meter, memory, stored, width, may_skip=len(curves) >= LEAST_WIDTHS)
            if curve is None:
                break
            curves.append((float(width * width), curve))
        surfaces[stored] = Surface(tuple(curves))
    return surfaces


def _curve(meter: Meter, memory: Memory, stored: str, width: int, may_skip: bool) -> Curve | None:
    """The curve over tokens; None if it may be skipped, and a single token takes too long already."""
    sizes, dtype = meter.sizes, backend_dtype(meter.backend)
    copies = -(-sizes.rotated_bytes // matrix_bytes(stored, width))
    matrices = memory.matrices(stored, width, min(copies, COPIES_MOST))
    bias = memory.array((width,), TABLE_DTYPE if stored == "int4" else stored)
    most = memory.room_bytes() // 2 // (width * DTYPE_BYTES[dtype])
    ladder = [tokens for tokens in _ladder(meter, stored) if tokens < most or tokens == sizes.tokens[0]]
    x, out = (memory.array((ladder[-1], width), dtype) for _ in range(2))
    singles: dict[int, float] = {}
    for tokens in ladder:
        (call,) = _calls(meter, matrices[:1], bias, x[:tokens], out[:tokens])
        singles[tokens] = meter.settled(call)
        if may_skip and len(singles) == 1 and singles[tokens] > sizes.product_longest_s / 2:
            return None
        if singles[tokens] > sizes.product_longest_s and len(singles) >= LEAST_POINTS:
            break
    name = f"products with {stored} matrices of width {width}"
    timed = []
    for tokens, single_s in reversed(singles.items()):
        point = Point(tokens, f"{tokens} tokens", _calls(meter, matrices, bias, x[:tokens], out[:tokens]))
        timed.append(meter.timed(point, single_s))
    _sweep(meter, timed)
    points = [(float(each.point.size), meter.median(name, each.point.label, each.values)) for each in timed]
    return Curve(tuple(reversed(points)))


def _sweep(meter: Meter, timed: Sequence[Timed]) -> None:
    """Time all points, the longest first, in several sweeps: what disturbs a moment disturbs one repeat of a few.

    What draws the most power is timed when the device is as warm as a prefill makes it.
    """
    longest = timed[0].point.calls[0]
    for sweep in range(max(each.repeats for each in timed)):
        meter.heat(longest, meter.sizes.heat_s if not sweep else meter.sizes.heat_s / HEAT_AGAIN)
        for each in timed:
            if len(each.values) < each.repeats:
                meter.window(each)


def _ladder(meter: Meter, stored: str) -> list[int]:
    """The numbers of tokens; for 4-bit matrices with the two between which a port changes its ways."""
    fused = meter.backend.caps.fused_rows
    extra = (fused, fused + 1) if stored == "int4" and fused else ()
    return sorted({*meter.sizes.tokens, *extra})


def _calls(meter: Meter, matrices: list[Matrix], bias: Any, x: Any, out: Any) -> list[Call]:
    return [partial(meter.backend.linear, x, matrix, bias, out=out) for matrix in matrices]


def expansion_curves(meter: Meter) -> dict[str, Curve]:
    """Seconds of `expand` by how a matrix is stored, over its elements; the compute type needs none."""
    dtype = backend_dtype(meter.backend)
    return {
        stored: meter.curve(f"expansions of {stored} matrices", _expansions(meter, stored, dtype))
        for stored in (*stored_forms(dtype), EXPANDED_FIRST)
        if stored != dtype
    }


def _expansions(meter: Meter, stored: str, dtype: str) -> Generator[Point, None, None]:
    meter.tell(f"expansions of {stored} matrices")
    for elements in meter.sizes.elements:
        width = round(elements**0.5)
        with meter.memory() as memory:
            if width * width * DTYPE_BYTES[dtype] > memory.room_bytes() // 2 and elements > meter.sizes.elements[0]:
                return
            copies = min(COPIES_MOST, -(-meter.sizes.rotated_bytes // matrix_bytes(dtype, width)))
            matrices = memory.matrices(stored, width, copies)
            fitting = memory.room_bytes() // matrix_bytes(dtype, width)
            results = memory.arrays(min(len(matrices), fitting), (width, width), dtype)
            turns = zip(cycle(results), matrices)
            calls: list[Call] = [partial(meter.backend.expand, matrix, result) for result, matrix in turns]
            yield Point(float(width * width), f"{width} x {width}", calls)
