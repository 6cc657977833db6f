"""Products of the reference port: the same bits on any number of threads, and for few rows as for many."""

from typing import Any

import flexref_numpy.products
import numpy as np
import pytest
from flexref_numpy import NumpyBackend
from flexref_numpy.products import OTHERS, TILE_TOKENS, Products, Tiled, block_outputs
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


@given(
    st.integers(1, 3),
    st.sampled_from((4, 8, 15, 16, 100)),
    st.integers(1, 200),
    st.sampled_from((1, 16, 31, 64, 257, 1024, 3072)),
    seeds,
)
def test_tall_tiles_have_the_bits_of_others(count: int, tokens: int, outputs: int, inputs: int, seed: int) -> None:
    products = Products(1)
    height = products.height(tokens, outputs, inputs)
    assert height in (*OTHERS, TILE_TOKENS)
    x = numbers((count * height, inputs), "float32", "normal", seed)
    w = numbers((outputs, inputs), "float32", "normal", seed + 1)
    found, needed = (np.empty((len(x), outputs), np.float32) for _ in range(2))
    products.multiply(x, w, found, height)
    products.multiply(x, w, needed)
    assert np.array_equal(found, needed)


def test_tiles_of_other_bits_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rounding(Tiled):
        """A library whose products of another height have other bits."""

        def __init__(self, x: Any, out: Any, height: int) -> None:
            super().__init__(x, out, height)
            self.out, self.factor = out, np.float32(1 if height == TILE_TOKENS else 1 + 2.0**-20)

        def multiply(self, w: Any, pool: Any) -> None:
            super().multiply(w, pool)
            self.out *= self.factor

    monkeypatch.setattr(flexref_numpy.products, "Tiled", Rounding)
    products = Products(1)
    assert {products.height(tokens, 128, 64) for tokens in range(1, 40)} == {TILE_TOKENS}


@given(st.integers(1, 24), st.integers(1, 300), st.sampled_from((16, 256, 700)), st.booleans(), seeds)
def test_a_row_has_the_same_bits_among_few_and_many(
    tokens: int, outputs: int, inputs: int, add: bool, seed: int
) -> None:
    backend = NumpyBackend()
    x = numbers((tokens, inputs), "float32", "normal", seed)
    w = numbers((outputs, inputs), "float32", "normal", seed + 1)
    base = numbers((tokens, outputs), "float32", "normal", seed + 2)
    together = backend.linear(x, w, None, out=base.copy(), add=add)
    for first, last in ((0, 1), (0, 2), (tokens // 2, tokens), (tokens - 1, tokens)):
        some = backend.linear(x[first:last], w, None, out=base[first:last].copy(), add=add)
        assert np.array_equal(some, together[first:last])
    backend.close()


@given(st.integers(1, 1 << 20), st.sampled_from((TILE_TOKENS, *OTHERS)))
def test_blocks_divide_the_tiles_of_a_matrix(inputs: int, height: int) -> None:
    block = block_outputs(inputs, height)
    assert block >= 2
    assert TILE_ROWS % block == 0
