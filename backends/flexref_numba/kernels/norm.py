"""Layer norm of rows at addresses, as a function of numba's; it knows no array and no thread.

A row's sums have the order of `tiles`: sixteen lanes, their tree, then what is left. The variance is that of the
centred values, which cancels nothing; they lie in the result meanwhile, so that memory is passed over once.
"""

from collections.abc import Callable
from typing import Any

from numba.core import types
from numba.extending import intrinsic

from flexref_numba.kernels.vectors import ADDRESS, FLOAT, LANES, VECTOR, Builder, Value


def _append_norm(b: Builder, args: Any) -> None:
    x, inputs, w, shift, epsilon, out = args
    whole = b.over(inputs, LANES)
    count = b.llvm.sitofp(inputs, FLOAT)
    read = {LANES: b.read_floats, 1: lambda address: b.read(address, FLOAT, 4)}

    def each(step: Callable[[Value, int], None], lanes: int) -> None:
        """`step` for the byte at which each sixteen numbers begin, or each of those that are left."""
        edges = (ADDRESS(0), whole) if lanes == LANES else (b.times(whole, LANES), inputs)
        with b.loop(*edges) as place:
            step(b.times(place, 4 * lanes), lanes)

    def total(term: Callable[[Value, int, Value], Value]) -> Value:
        """The sum of terms, each of which `term` adds to what there is."""
        sums = b.variable(VECTOR, b.zeros())
        each(lambda at, lanes: b.set(sums, term(at, lanes, b.get(sums))), LANES)
        left = b.variable(FLOAT, b.sums([b.get(sums)])[0])
        each(lambda at, lanes: b.set(left, term(at, lanes, b.get(left))), 1)
        return b.get(left)

    def of_all(value: Value, lanes: int) -> Value:
        return b.splat(value) if lanes == LANES else value

    mean = b.llvm.fdiv(total(lambda at, lanes, held: b.llvm.fadd(held, read[lanes](b.add(x, at)))), count)

    def square(at: Value, lanes: int, held: Value) -> Value:
        centred = b.llvm.fsub(read[lanes](b.add(x, at)), of_all(mean, lanes))
        b.write(b.add(out, at), centred, 4)
        return b.fma(centred, centred, held)

    variance = b.llvm.fdiv(total(square), count)
    deviation = b.call("sqrt", b.llvm.fadd(variance, epsilon))

    def finish(factors: Value | None, offsets: Value | None) -> None:
        def step(at: Value, lanes: int) -> None:
            found = b.llvm.fdiv(read[lanes](b.add(out, at)), of_all(deviation, lanes))
            if factors is not None:
                found = b.llvm.fmul(found, read[lanes](b.add(factors, at)))
            if offsets is not None:
                found = b.llvm.fadd(found, read[lanes](b.add(offsets, at)))
            b.write(b.add(out, at), found, 4)

        each(step, LANES)
        each(step, 1)

    has_factors, has_offsets = (b.llvm.icmp_signed("!=", address, ADDRESS(0)) for address in (w, shift))
    with b.llvm.if_else(has_factors) as (scaled, plain):
        with scaled, b.llvm.if_else(has_offsets) as (shifted, unshifted):
            with shifted:
                finish(w, shift)
            with unshifted:
                finish(w, None)
        with plain, b.llvm.if_else(has_offsets) as (shifted, unshifted):
            with shifted:
                finish(None, shift)
            with unshifted:
                finish(None, None)


@intrinsic
def normed(_: Any, x: Any, inputs: Any, w: Any, shift: Any, epsilon: Any, out: Any) -> Any:
    """(x - mean) / sqrt(variance + epsilon) * w + shift of a row of float32, which may be `out`; w, shift 0: none."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _append_norm(Builder(builder), args)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(integer, integer, integer, integer, types.float32, integer), build


def make_norm() -> Callable[..., Any]:
    """The layer norm of rows `first` to `last` of x (T, E) in `out` (T, E)."""

    def norm(x, x_pitch, inputs, w, shift, epsilon: float, first, last, out, out_pitch) -> None:
        for row in range(first, last):
            normed(x + row * x_pitch, inputs, w, shift, epsilon, out + row * out_pitch)

    return norm
