"""Writing records of K and V, as functions of numba's; they know no pass, only where each token's record lies."""

from collections.abc import Callable
from typing import Any

from numba.core import types

from flexref_numba.kernels.numbers import inner, peek, poke, poke_byte, rint


def make_append_numbers(given: str, kept: str) -> Callable[..., Any]:
    """K and V (T, E) of type `given` into records of type `kept`, for tokens `first` to `last`."""
    read, write, integer = peek(given), poke(kept), peek("int64")
    given_bytes, kept_bytes = (2 if kind == "float16" else 4 for kind in (given, kept))

    def append(first, last, targets, value_offset, k, k_pitch, v, v_pitch, width) -> None:
        for token in range(first, last):
            target = integer(targets + 8 * token)
            for place in range(width):
                write(target + kept_bytes * place, read(k + token * k_pitch + given_bytes * place))
            target += value_offset
            for place in range(width):
                write(target + kept_bytes * place, read(v + token * v_pitch + given_bytes * place))

    return append


LARGEST = 65504.0
"""The greatest float16."""


def make_append_codes(given: str) -> Callable[..., Any]:
    """K and V (T, E) of type `given` into records of 4-bit codes for tokens `first` to `last`, as in `storage.quant`.

    Gives how many groups hold what cannot be quantized; what is written for them says nothing.
    """
    read, integer = peek(given), peek("int64")
    halves, half = poke("float16"), peek("float16")
    given_bytes, f32 = 2 if given == "float16" else 4, types.float32

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
        span = max(high - zero, f32(0))
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
                        failed += group_codes(x + given_bytes * (head * width + start), size, codes, pair)
                        codes += (size + 1) // 2
                        pair += 4
        return failed

    return append
