"""Writing records of K and V, as functions of numba's; they know no pass, only where each token's record lies."""

from collections.abc import Callable
from typing import Any

from numba.core import types
from numba.extending import intrinsic

from flexref_numba.kernels.numbers import inner, moved, peek, poke, poke_byte, rint, whole
from flexref_numba.kernels.softmax import constant
from flexref_numba.kernels.tiles import scalar
from flexref_numba.kernels.vectors import ADDRESS, BYTES, FLOAT, HALF, LANES, VECTOR, WORD, WORDS, Builder


def make_append_numbers(given: str, kept: str) -> Callable[..., Any]:
    """K and V (T, E) of type `given` into records of type `kept`, for tokens `first` to `last`."""
    move, integer = moved(given, kept), peek("int64")

    def append(first, last, targets, value_offset, k, k_pitch, v, v_pitch, width) -> None:
        for token in range(first, last):
            target = integer(targets + 8 * token)
            move(k + token * k_pitch, width, target)
            move(v + token * v_pitch, width, target + value_offset)

    return append


LARGEST = 65504.0
"""The greatest float16."""


def vector_codes(given: str) -> Any:
    """A function of numba's: (x, size, codes, pair): `group_codes` for a group of which each half is whole vectors."""

    @intrinsic
    def coded(_: Any, x: Any, size: Any, codes: Any, pair: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return _append_codes(Builder(builder), given, args)

        return types.int64(*[types.int64] * 4), build

    return coded


def _append_codes(b: Builder, given: str, args: Any) -> Any:
    x, size, codes, pair = args
    nbytes, read = (2, b.read_halves) if given == "float16" else (4, b.read_floats)
    low, high, flaws = b.variable(VECTOR, read(x)), b.variable(VECTOR, read(x)), b.variable(WORDS, whole(0))
    with b.loop(ADDRESS(0), b.over(size, LANES)) as step:
        value = read(b.add(x, b.times(step, nbytes * LANES)))
        flaw = b.llvm.fcmp_unordered(">", b.call("fabs", value), constant(LARGEST))  # so is what is no number
        b.set(flaws, b.llvm.or_(b.get(flaws), b.llvm.zext(flaw, WORDS)))
        b.set(low, b.lesser(b.get(low), value))
        b.set(high, b.greater(b.get(high), value))
    (flawed,) = b.folded([b.get(flaws)], b.llvm.or_)
    (least,) = b.folded([b.get(low)], b.lesser)
    (most,) = b.folded([b.get(high)], b.greater)
    none = FLOAT(0.0)
    b.write(b.add(pair, 2), b.llvm.fptrunc(b.llvm.fadd(least, none), HALF), 2)
    zero = b.llvm.fadd(scalar(b, b.add(pair, 2), "float16"), none)
    b.write(b.add(pair, 2), b.llvm.fptrunc(zero, HALF), 2)
    span = b.greater(b.llvm.fsub(most, zero), none)
    b.write(pair, b.llvm.fptrunc(b.llvm.fdiv(span, FLOAT(15.0)), HALF), 2)
    scale = scalar(b, pair, "float16")
    too_far = b.llvm.fcmp_unordered(">", span, FLOAT(LARGEST))
    failed = b.llvm.or_(too_far, b.llvm.icmp_signed("!=", flawed, WORD(0)))
    codes_stand = b.llvm.and_(b.llvm.not_(failed), b.llvm.fcmp_ordered(">", scale, none))
    divisor = b.splat(b.llvm.select(codes_stand, scale, FLOAT(1.0)))
    origin, half = b.splat(zero), b.over(size, 2)

    def level(place: Any) -> Any:
        """Codes of sixteen values as int32: a difference that is no number has the code 0 too."""
        steps = b.llvm.fdiv(b.llvm.fsub(read(b.add(x, b.times(place, nbytes))), origin), divisor)
        held = b.lesser(constant(15.0), b.greater(b.call("rint", steps), b.zeros()))
        return b.llvm.fptosi(held, WORDS)

    with b.loop(ADDRESS(0), b.over(half, LANES)) as step:
        place = b.times(step, LANES)
        both = b.llvm.or_(level(place), b.llvm.shl(level(b.add(half, place)), whole(4)))
        b.write(b.add(codes, place), b.llvm.trunc(b.llvm.select(codes_stand, both, whole(0)), BYTES), 1)
    return b.llvm.zext(failed, ADDRESS)


def make_append_codes(given: str) -> Callable[..., Any]:
    """K and V (T, E) of type `given` into records of 4-bit codes for tokens `first` to `last`, as in `storage.quant`.

    Gives how many groups hold what cannot be quantized; what is written for them says nothing.
    """
    read, integer = peek(given), peek("int64")
    halves, half = poke("float16"), peek("float16")
    given_bytes, f32 = 2 if given == "float16" else 4, types.float32

    in_vectors = vector_codes(given)

    @inner
    def group_codes(x, size, codes, pair) -> int:
        low = high = read(x)
        sound = True
        for place in range(size):
            value = read(x + given_bytes * place)
            sound &= abs(value) <= f32(LARGEST)  # not so of what is no number either
            low, high = min(low, value), max(high, value)
        halves(pair + 2, low + f32(0))
        zero = half(pair + 2) + f32(0)  # which zero is the least of 0 and -0 says nothing
        halves(pair + 2, zero)
        span = max(high - zero, f32(0)) + f32(0)  # of 0 and -0 either may be found the greater one
        halves(pair, span / f32(15))
        scale = half(pair)
        sound &= span <= f32(LARGEST)
        middle = (size + 1) // 2
        for place in range(middle):
            low_code = high_code = 0
            if scale > 0 and sound:
                level = rint((read(x + given_bytes * place) - zero) / scale)
                low_code = int(min(max(level, f32(0)), f32(15)))
                if place + middle < size:
                    level = rint((read(x + given_bytes * (place + middle)) - zero) / scale)
                    high_code = int(min(max(level, f32(0)), f32(15)))
            poke_byte(codes + place, low_code | high_code << 4)
        return 0 if sound else 1

    def append(first, last, targets, value_offset, k, k_pitch, v, v_pitch, heads, width, group, pairs_offset) -> int:
        failed = 0
        for token in range(first, last):
            for which in range(2):
                record = integer(targets + 8 * token) + which * value_offset
                x = k + token * k_pitch if which == 0 else v + token * v_pitch
                codes, pair = record, record + pairs_offset
                for head in range(heads):
                    for start in range(0, width, group):
                        size = min(group, width - start)
                        at = x + given_bytes * (head * width + start)
                        if size % (2 * LANES) == 0:
                            failed += in_vectors(at, size, codes, pair)
                        else:
                            failed += group_codes(at, size, codes, pair)
                        codes += (size + 1) // 2
                        pair += 4
        return failed

    return append
