"""Products of the reference port: the same bits on any number of threads, and for few rows as for many."""

import numpy as np
import pytest
from flexref_numpy.products import TILE_TOKENS, Products, block_outputs
from flexref_numpy.scratch import TILE_ROWS
from hypothesis import given
from hypothesis import strategies as st

from flexref.testing.strategies import numbers, seeds


@given(st.integers(1, 9), st.integers(1, 700), st.sampled_from((1, 16, 64, 257, 1024)), seeds)
def test_threads_change_no_bit(tiles: int, outputs: int, inputs: int, seed: int) -> None:
    x = numbers((tiles * TILE_TOKENS, inputs), "float32", "normal", seed)
    w = numbers((outputs, inputs), "float32", "normal", seed + 1)
    found = []
    for threads in (1, 3):
        products, out = Products(threads), np.empty((len(x), outputs), np.float32)
        products.multiply(x, w, out)
        products.close()
        found.append(out)
    assert np.array_equal(*found)


def test_a_failure_on_a_thread_is_raised() -> None:
    products = Products(2)
    x, w = np.ones((64, 1024), np.float32), np.ones((1024, 1024), np.float32)
    out = np.empty((64, 1024), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        products.multiply(x, w, out)
    products.close()


@given(st.integers(1, 2), st.integers(1, 200), st.sampled_from((1, 16, 31, 64, 257, 3072)), seeds)
def test_few_rows_have_the_bits_that_they_have_in_a_whole_tile(few: int, outputs: int, inputs: int, seed: int) -> None:
    products = Products(1)
    height = products.height(few, outputs, inputs)
    assert few <= height <= TILE_TOKENS
    x = numbers((TILE_TOKENS, inputs), "float32", "normal", seed)
    w = numbers((outputs, inputs), "float32", "normal", seed + 1)
    whole, part = np.empty((TILE_TOKENS, outputs), np.float32), np.empty((height, outputs), np.float32)
    products.multiply(x, w, whole)
    products.multiply(x[:height], w, part, height)
    assert np.array_equal(part, whole[:height])


@given(st.integers(1, 1 << 20))
def test_blocks_divide_the_tiles_of_a_matrix(inputs: int) -> None:
    block = block_outputs(inputs)
    assert block >= 2
    assert TILE_ROWS % block == 0
