"""Bounded memory for the inside of the reference port's operators, and how they cut their work to fit it."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]

TILE_ROWS = 64
"""Tiles of a matrix are whole multiples of it, which the blocks of a product divide."""


class Scratch:
    """Memory for the inside of operators, in two halves: operands and products."""

    def __init__(self, nbytes: int) -> None:
        self._floats = np.empty(nbytes // 4, np.float32)

    @property
    def half(self) -> int:
        """Floats in a half."""
        return self._floats.size // 2

    def operand(self, *shape: int) -> Numbers:
        """The first half as a float32 array."""
        return self._shaped(0, shape)

    def product(self, *shape: int) -> Numbers:
        """The second half as a float32 array."""
        return self._shaped(self.half, shape)

    def _shaped(self, start: int, shape: tuple[int, ...]) -> Numbers:
        size = math.prod(shape)
        if size > self.half:
            # One row of a very wide matrix: the caller cannot make its tile any smaller.
            raise ValueError(f"an operator's tile {shape} exceeds its scratch of {self.half} floats")
        return self._floats[start : start + size].reshape(shape)


def tiles(length: int, room: int) -> Iterator[tuple[int, int]]:
    """Cut `length` rows into (first, last) tiles of at most `room`, in multiples of TILE_ROWS where possible."""
    step = max(1, room // TILE_ROWS * TILE_ROWS or room)
    for first in range(0, length, step):
        yield first, min(length, first + step)
