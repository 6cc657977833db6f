"""Uniform numbers that depend on seed, row and step alone; it knows no state, no neighbours and no device."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
"""Philox4x32-10: Salmon, Moraes, Dror and Shaw, Parallel random numbers: as easy as 1, 2, 3, SC 2011, section 4.3."""

_LOW = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)

Words = npt.NDArray[np.uint64]
Numbers = Sequence[int] | npt.NDArray[np.integer]


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Philox4x32-10: four counter words (B,) and two key words, all below 2**32, to four random words (B,)."""
    first, second, third, fourth = counter
    left_key, right_key = key
    for _ in range(ROUNDS):
        left, right = first * np.uint64(MULTIPLIERS[0]), third * np.uint64(MULTIPLIERS[1])
        first, second, third, fourth = (
            (right >> _WORD) ^ second ^ np.uint64(left_key),
            right & _LOW,
            (left >> _WORD) ^ fourth ^ np.uint64(right_key),
            left & _LOW,
        )
        left_key, right_key = (left_key + KEY_STEPS[0]) % (1 << 32), (right_key + KEY_STEPS[1]) % (1 << 32)
    return first, second, third, fourth


def uniforms(seed: int, rows: Numbers, steps: int | Numbers) -> npt.NDArray[np.float64]:
    """One number in [0, 1) for each row number in `rows` (B,) at its step (one for all, or (B,)), as (B,).

    Multiples of 2**-53. Under one seed, different (row, step) give different words of the generator: it is a bijection
    of its counter. `seed`, rows and steps are integers from 0 to 2**64 - 1.
    """
    row_numbers = np.asarray(rows, np.uint64).reshape(-1)
    step_numbers = np.broadcast_to(np.asarray(steps, np.uint64), row_numbers.shape)
    counter = (row_numbers & _LOW, row_numbers >> _WORD, step_numbers & _LOW, step_numbers >> _WORD)
    high, low, _, _ = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    # 27 and 26 bits: as many as a float64 in [0.5, 1) tells apart.
    return ((high >> np.uint64(5)) * 2.0**26 + (low >> np.uint64(6))) * 2.0**-53


def uniform(seed: int, row: int, step: int) -> float:
    """The number of one row at one step; see `uniforms`."""
    return float(uniforms(seed, [row], step)[0])
