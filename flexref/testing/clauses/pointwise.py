"""Clauses on layer norms and activations; a clause is `clause(backend, data)`."""

import numpy as np
from hypothesis import strategies as st

from flexref.architecture.spec import ACTIVATIONS, LAYER_NORM_EPSILON
from flexref.backend.protocol import Backend
from flexref.check import laws
from flexref.check.tolerances import PRECISIONS, Values, assert_within
from flexref.testing.bench import Bench, assert_same_bits, assert_shape
from flexref.testing.strategies import arrays, numbers, seeds

tokens = st.integers(1, 9)
widths = st.sampled_from((1, 2, 7, 16, 33, 64, 130))
margins = st.sampled_from((0, 0, 3, 8))

WIDE = 16_387
"""A row that no block of threads holds in its registers, and that ends within a run of 8."""

HUGE = {"float32": 1e15, "float16": 3e4}
"""Rows of this size have squares that still fit the accumulator."""

EDGES = (0.0, 1e-40, 1e-3, 4.9, 5.6, 9.0, 30.0, 88.8, 104.0)
"""Where elementary functions change their formula, or underflow, or would overflow; of either sign."""


def norms_and_activations_have_their_shapes(backend: Backend, data: st.DataObject) -> None:
    """`layer_norm` gives (T, E), new, in `out` or in `x`; `activate` returns its x, for every name of `ACTIVATIONS`."""
    with Bench(backend) as bench:
        if data.draw(st.booleans()):
            bench.workspace()
        shape = (data.draw(tokens), data.draw(widths))
        x = bench.array(np.ones(shape, bench.dtype))
        w = bench.array(np.ones(shape[1], bench.dtype)) if data.draw(st.booleans()) else None
        assert_shape(backend.layer_norm(x, w, w, LAYER_NORM_EPSILON), shape, "layer_norm")
        assert_shape(backend.layer_norm(x, w, w, LAYER_NORM_EPSILON, x), shape, "layer_norm in place")
        for activation in ACTIVATIONS:
            assert_shape(backend.activate(x, activation), shape, activation)


def _norm_shape(data: st.DataObject) -> tuple[int, int]:
    """(T, E) of a norm: some narrow rows, or one that is wide."""
    return (1, WIDE) if data.draw(st.sampled_from((False, False, True))) else (data.draw(tokens), data.draw(widths))


def _rows(data: st.DataObject, shape: tuple[int, int], dtype: str) -> Values:
    """Rows to be normalized: also far from 0, huge, and all equal."""
    x = data.draw(arrays(shape, dtype))
    if data.draw(st.booleans()):
        x = numbers(shape, dtype, "normal", data.draw(seeds)) * np.array(HUGE[dtype] / 8, dtype)
    return x


def layer_norm_is_the_norm(backend: Backend, data: st.DataObject) -> None:
    """(x - mean) / sqrt(var + epsilon) * w + b within the bound of a stable formula, also for rows far from zero.

    With or without w and b, of either dense type; new, into a slice of a wider array, or in place.
    """
    with Bench(backend) as bench:
        shape = _norm_shape(data)
        x = _rows(data, shape, bench.dtype)
        w, b, device_w, device_b = None, None, None, None
        if data.draw(st.booleans()):
            dtype = data.draw(st.sampled_from(("float32", "float16")))
            w, b = (numbers((shape[1],), dtype, "normal", data.draw(seeds)) for _ in range(2))
            device_w, device_b = bench.array(w), bench.array(b)
        epsilon = data.draw(st.sampled_from((LAYER_NORM_EPSILON, 1e-3)))
        expected, bound = laws.layer_norm(x, w, b, epsilon, bench.arithmetic)
        source = bench.guarded(x, data.draw(margins), data.draw(margins))
        found = bench.read(backend.layer_norm(source.array, device_w, device_b, epsilon))
        assert_within(found, expected, bound, "layer_norm", shape)
        assert found.dtype == bench.dtype, f"layer_norm gives {found.dtype}, needed {bench.dtype}"
        assert_same_bits(bench.read(source.array), x, "the input of layer_norm")
        aside = bench.results(shape, data.draw(margins), data.draw(margins))
        for place in (aside, source):
            backend.layer_norm(source.array, device_w, device_b, epsilon, place.array)
            assert_same_bits(bench.read(place.array), found, "layer_norm into out")
            place.assert_untouched_around("layer_norm")


def a_row_of_a_norm_is_its_own(backend: Backend, data: st.DataObject) -> None:
    """`layer_norm` and `activate` give a row the same bits alone and in any company."""
    backend.keep_rows_apart(True)
    with Bench(backend) as bench:
        shape = (data.draw(tokens), data.draw(widths))
        x = _rows(data, shape, bench.dtype)
        company = data.draw(st.lists(st.integers(0, shape[0] - 1), min_size=1, max_size=20))
        activation = data.draw(st.sampled_from(ACTIVATIONS))
        norms = bench.read(backend.layer_norm(bench.array(x), None, None, LAYER_NORM_EPSILON))
        active = bench.read(backend.activate(bench.array(x), activation))
        for rows in (company, company[:1]):
            what = f"of rows {rows} of {shape[0]}"
            found = bench.read(backend.layer_norm(bench.array(x[rows]), None, None, LAYER_NORM_EPSILON))
            assert_same_bits(found, norms[rows], f"layer_norm {what}")
            assert_same_bits(bench.read(backend.activate(bench.array(x[rows]), activation)), active[rows], activation)


def activations_are_their_functions(backend: Backend, data: st.DataObject) -> None:
    """Every activation within its bound, in place, on a slice of a wider array, for ordinary and extreme values."""
    with Bench(backend) as bench:
        shape = (data.draw(tokens), data.draw(widths))
        x = data.draw(arrays(shape, bench.dtype, ("normal", "mixed")))
        edges = np.array((*EDGES, PRECISIONS[bench.dtype].largest / 2))
        chosen = np.random.default_rng(data.draw(seeds)).choice(np.concatenate((edges, -edges)), shape)
        x = np.where(data.draw(arrays(shape, kinds=("normal",))) > 1, chosen, x).astype(bench.dtype)
        edges_around = data.draw(margins), data.draw(margins)
        for activation in ACTIVATIONS:
            place = bench.guarded(x, *edges_around)
            backend.activate(place.array, activation)
            expected, bound = laws.activate(x, activation, bench.arithmetic)
            assert_within(bench.read(place.array), expected, bound, activation, shape)
            place.assert_untouched_around(activation)
            again = bench.read(backend.activate(bench.array(x), activation))
            assert_same_bits(again, bench.read(place.array), f"{activation} again")
