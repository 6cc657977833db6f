"""Uniform numbers that depend on seed, row and step alone; it knows no state, no neighbours and no device."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
"""Philox4x32-10: Salmon, Moraes, Dror and Shaw, Parallel random numbers: as easy as 1, 2, 3, SC 2011, section 4.3."""

FEW_ROWS = 4
"""For so many rows plain integers are faster than arrays, which take as long for one row as for many."""

_LOW = 0xFFFFFFFF
_WORD = 32

Word = TypeVar("Word", int, npt.NDArray[np.uint64])
Numbers = Sequence[int] | npt.NDArray[np.integer]


def philox(counter: tuple[Word, Word, Word, Word], key: tuple[int, int]) -> tuple[Word, Word, Word, Word]:
    """Philox4x32-10: four counter words and two key words, all below 2**32, to four random words: integers or (B,)."""
    words: tuple[Any, Any, Any, Any] = counter
    first, second, third, fourth = words
    left_key, right_key = key
    for _ in range(ROUNDS):
        left, right = first * MULTIPLIERS[0], third * MULTIPLIERS[1]
        first, second, third, fourth = (
            (right >> _WORD) ^ second ^ left_key,
            right & _LOW,
            (left >> _WORD) ^ fourth ^ right_key,
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
    if len(row_numbers) <= FEW_ROWS:
        pairs = zip(row_numbers.tolist(), step_numbers.tolist(), strict=True)
        return np.array([uniform(seed, row, step) for row, step in pairs], np.float64)
    numbers: npt.NDArray[np.float64] = _numbers(seed, row_numbers, step_numbers)
    return numbers


def uniform(seed: int, row: int, step: int) -> float:
    """The number of one row at one step; see `uniforms`."""
    return float(_numbers(seed, row, step))


def _numbers(seed: int, row: Any, step: Any) -> Any:
    counter = (row & _LOW, row >> _WORD, step & _LOW, step >> _WORD)
    high, low, _, _ = philox(counter, (seed & _LOW, seed >> _WORD))
    # 27 and 26 bits: as many as a float64 in [0.5, 1) tells apart.
    return ((high >> 5) * 2.0**26 + (low >> 6)) * 2.0**-53
