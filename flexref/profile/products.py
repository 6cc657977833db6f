"""Times a port's matrix products and expansions, for every form of stored matrix and many sizes; it knows no layer."""

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
"""Bounds how many matrices take turns, where they are so small that very many exceed a cache."""

HEAT_AGAIN = 4
"""A device that was warm a moment ago is heated for a quarter of the time."""

LEAST_POINTS = 4
"""A curve over tokens has at least 4 points, however long they take: three costs of different growth are in it, to read
a matrix, to expand it and to multiply."""

LEAST_WIDTHS = 2
"""A surface has at least 2 widths if memory allows: from one width nothing follows for another."""


def stored_forms(compute_dtype: str) -> tuple[str, ...]:
    """The forms of matrices whose products are timed: the compute type, float16, and 4-bit groups."""
    return tuple(dict.fromkeys((compute_dtype, TABLE_DTYPE, "int4")))


def product_surfaces(meter: Meter) -> dict[str, Surface]:
    """Measure the seconds of a product, for every stored form, over the matrix's elements and the tokens."""
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
    """The curve over tokens for square matrices of `width`.

    None if `may_skip` and one token alone takes more than half of `product_longest_s`.
    """
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
    """Time all points, the longest first, once per sweep, in several sweeps.

    A disturbance then spoils one repeat of some points, and not all repeats of one. The device is heated before each
    sweep, and the longest products follow: they draw the most power, as in a prefill.
    """
    longest = timed[0].point.calls[0]
    for sweep in range(max(each.repeats for each in timed)):
        meter.heat(longest, meter.sizes.heat_s if not sweep else meter.sizes.heat_s / HEAT_AGAIN)
        for each in timed:
            if len(each.values) < each.repeats:
                meter.window(each)


def _ladder(meter: Meter, stored: str) -> list[int]:
    """The numbers of tokens that are timed. For 4-bit matrices, also the last with which a port multiplies codes
    directly, and the next."""
    fused = meter.backend.caps.fused_rows
    extra = (fused, fused + 1) if stored == "int4" and fused else ()
    return sorted({*meter.sizes.tokens, *extra})


def _calls(meter: Meter, matrices: list[Matrix], bias: Any, x: Any, out: Any) -> list[Call]:
    """A call of `linear` for every matrix."""
    return [partial(meter.backend.linear, x, matrix, bias, out=out) for matrix in matrices]


def expansion_curves(meter: Meter) -> dict[str, Curve]:
    """Measure the seconds of `expand` over a matrix's elements, for every stored form but the compute type itself."""
    dtype = backend_dtype(meter.backend)
    return {
        stored: meter.curve(f"expansions of {stored} matrices", _expansions(meter, stored, dtype))
        for stored in (*stored_forms(dtype), EXPANDED_FIRST)
        if stored != dtype
    }


def _expansions(meter: Meter, stored: str, dtype: str) -> Generator[Point, None, None]:
    """Points of `expand`; their size is the matrix's elements."""
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
