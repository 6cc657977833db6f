"""Times a port's matrix products and expansions, for every form of stored matrix and many sizes; it knows no layer."""

import math
from collections.abc import Callable, Generator, Sequence
from functools import partial
from itertools import cycle
from typing import Any

from flexref.backend.protocol import Matrix
from flexref.machine.curves import Curve, Surface
from flexref.profile.meter import Meter, backend_dtype
from flexref.profile.operands import TABLE_DTYPE, Memory, matrix_bytes
from flexref.profile.points import AGAIN_MOST, Call, Point, Timed
from flexref.storage.schema import BITS
from flexref.units import DTYPE_BYTES

COPIES_MOST = 512
"""Bounds how many matrices take turns, where they are so small that very many exceed a cache."""

HEAT_AGAIN = 4
"""A device that was warm a moment ago is heated for a quarter of the time."""

LEAST_POINTS = 4
"""A curve over tokens has at least 4 points, however long they take: three costs of different growth are in it, to read
a matrix, to expand it and to multiply."""

SWEEPS_SHARE = 0.5
"""Of the time for a curve, what is left for repeats after every point has been tried; of that, what is for warming."""

LEAST_WIDTHS = 2
"""A surface has at least 2 widths if memory allows: from one width nothing follows for another."""


def stored_forms(compute_dtype: str) -> tuple[str, ...]:
    """The forms of matrices whose products are timed: the compute type, float16, and groups of codes."""
    return tuple(dict.fromkeys((compute_dtype, TABLE_DTYPE, *BITS)))


def product_surfaces(meter: Meter) -> dict[str, Surface]:
    """Measure the seconds of a product, for every stored form, over the matrix's elements and the tokens."""
    surfaces = {}
    for stored in meter.pace.parts(stored_forms(backend_dtype(meter.backend))):
        curves: list[tuple[float, Curve]] = []
        begin = meter.pace.now_s
        for width in meter.pace.parts(meter.sizes.widths):
            spent_s = meter.pace.now_s - begin  # without what was compiled meanwhile
            if len(curves) >= LEAST_WIDTHS and spent_s > meter.sizes.products_s / 3:
                break
            if curves and not meter.affords(_estimate_s(meter, stored, width, curves[-1])):
                meter.record.cut(f"products with {stored} matrices", f"width {curves[-1][0] ** 0.5:.0f}")
                break
            with meter.memory() as memory:
                if curves and matrix_bytes(stored, width) > memory.room_bytes() // 2:
                    break
                curve = _curve(meter, memory, stored, width, may_skip=len(curves) >= LEAST_WIDTHS)
            if curve is None:
                break
            curves.append((float(width * width), curve))
        surfaces[stored] = Surface(tuple(curves))
    return surfaces


def _estimate_s(meter: Meter, stored: str, width: int, before: tuple[float, Curve]) -> float:
    """Seconds that the least of a curve takes, the width before it being known: filling a matrix, and some products."""
    elements, curve = before
    filling_s = matrix_bytes(stored, width) / meter.filled_per_s
    return filling_s + LEAST_POINTS * curve.points[0][1] * width * width / elements


def _curve(meter: Meter, memory: Memory, stored: str, width: int, may_skip: bool) -> Curve | None:
    """The curve over tokens for square matrices of `width`.

    None if `may_skip` and one token alone takes more than half of `product_longest_s`.
    """
    sizes, dtype = meter.sizes, backend_dtype(meter.backend)
    name = f"products with {stored} matrices of width {width}"
    meter.tell(name)
    copies = -(-meter.rotated_bytes // matrix_bytes(stored, width))
    matrices = memory.matrices(stored, width, min(copies, COPIES_MOST))
    bias = memory.array((width,), TABLE_DTYPE if stored in BITS else stored)
    most = memory.room_bytes() // 2 // (width * DTYPE_BYTES[dtype])
    ladder = [tokens for tokens in _ladder(meter, stored) if tokens < most or tokens == sizes.tokens[0]]
    x, out = (memory.array((ladder[-1], width), dtype) for _ in range(2))
    singles = _singles(
        meter,
        name,
        ladder,
        lambda tokens: _calls(meter, matrices[:1], bias, x[:tokens], out[:tokens])[0],
        sizes.product_longest_s / 2 if may_skip else math.inf,
    )
    if not singles:
        return None
    timed = []
    for tokens, single_s in reversed(singles.items()):
        point = Point(tokens, f"{tokens} tokens", _calls(meter, matrices, bias, x[:tokens], out[:tokens]))
        timed.append(meter.timed(point, single_s))
    _sweep(meter, timed)
    return Curve(tuple((float(each.point.size), meter.figure(name, each)) for each in reversed(timed)))


def _singles(
    meter: Meter, name: str, ladder: Sequence[int], call: Callable[[int], Call], first_most_s: float
) -> dict[int, float]:
    """Seconds of a single product by its tokens, as far up the ladder as it may take and as there is time for.

    Every one takes its turn in the sweeps after that: half of the time is left for them. There are none if the first
    takes more than `first_most_s`.
    """
    sizes, found = meter.sizes, dict[int, float]()
    sweeps_s = meter.pace.left_s * SWEEPS_SHARE
    for tokens in ladder:
        if found:
            before, seconds = next(reversed(found.items()))
            if seconds > sizes.product_longest_s and len(found) >= LEAST_POINTS:
                break
            if not meter.affords(2 * seconds * tokens / before + sweeps_s):
                meter.record.cut(name, f"{before} tokens")
                break
        found[tokens] = meter.settled(call(tokens))
        if found[ladder[0]] > first_most_s:
            return {}
    return found


def _sweep(meter: Meter, timed: Sequence[Timed]) -> None:
    """Time all points, the longest first, once per sweep, in several sweeps.

    A disturbance then spoils one repeat of some points, and not all repeats of one. The device is heated before each
    sweep, and the longest products follow: they draw the most power, as in a prefill.
    """
    longest, repeats = timed[0].point.calls[0], max(each.repeats for each in timed)
    for sweep in range(AGAIN_MOST * repeats):
        left = [each for each in timed if each.wants_more]
        if not left or not meter.has_time_for(left[0]):
            break
        heat_s = meter.sizes.heat_s if not sweep else meter.sizes.heat_s / HEAT_AGAIN
        meter.heat(longest, min(heat_s, meter.pace.left_s * SWEEPS_SHARE))
        for each in left:
            if meter.has_time_for(each):
                meter.window(each)


def _ladder(meter: Meter, stored: str) -> list[int]:
    """The numbers of tokens that are timed. For groups of codes, also the last with which a port multiplies these
    directly, and the next."""
    fused = meter.backend.caps.fused_rows
    extra = (fused, fused + 1) if stored in BITS and fused else ()
    return sorted({*meter.sizes.tokens, *extra})


def _calls(meter: Meter, matrices: list[Matrix], bias: Any, x: Any, out: Any) -> list[Call]:
    """A call of `linear` for every matrix."""
    return [partial(meter.backend.linear, x, matrix, bias, out=out) for matrix in matrices]


def expansion_curves(meter: Meter) -> dict[str, Curve]:
    """Measure the seconds of `expand` over a matrix's elements, for every stored form but the compute type itself."""
    dtype = backend_dtype(meter.backend)
    return {
        stored: meter.curve(
            f"expansions of {stored} matrices", _expansions(meter, stored, dtype), len(meter.sizes.elements)
        )
        for stored in meter.pace.parts([form for form in stored_forms(dtype) if form != dtype])
    }


def _expansions(meter: Meter, stored: str, dtype: str) -> Generator[Point, None, None]:
    """Points of `expand`; their size is the matrix's elements."""
    meter.tell(f"expansions of {stored} matrices")
    for elements in meter.sizes.elements:
        width = round(elements**0.5)
        with meter.memory() as memory:
            if width * width * DTYPE_BYTES[dtype] > memory.room_bytes() // 2 and elements > meter.sizes.elements[0]:
                return
            copies = min(COPIES_MOST, -(-meter.rotated_bytes // matrix_bytes(dtype, width)))
            matrices = memory.matrices(stored, width, copies)
            fitting = memory.room_bytes() // matrix_bytes(dtype, width)
            results = memory.arrays(min(len(matrices), fitting), (width, width), dtype)
            turns = zip(cycle(results), matrices)
            calls: list[Call] = [partial(meter.backend.expand, matrix, result) for result, matrix in turns]
            yield Point(float(width * width), f"{width} x {width}", calls)
