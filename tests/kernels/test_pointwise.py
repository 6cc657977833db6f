"""The CuPy port's rows, norms and activations on an emulated device: what the contract's clauses leave out.

The clauses' arrays are small and their values few; here rows are as wide as they may be, and every half is a value.
"""

from collections.abc import Iterator

import numpy as np
import pytest
from emulated_cuda import EmulatedCuda, compiler_is_here
from flexref_cupy import CupyBackend
from flexref_cupy.operators import pointwise
from flexref_cupy.operators.pointwise import NORM_HELD, NORM_MOST_THREADS, RUN
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.architecture.spec import ACTIVATIONS, LAYER_NORM_EPSILON
from flexref.check import reference
from flexref.check.tolerances import Values, activation_bound, assert_within, layer_norm_bound
from flexref.testing.bench import Bench, assert_same_bits
from flexref.testing.strategies import numbers, seeds

pytestmark = pytest.mark.skipif(not compiler_is_here(), reason="no C++ compiler to run the kernels of cupy on a CPU")

DTYPES = ("float16", "float32")

WIDEST_HELD = NORM_HELD * NORM_MOST_THREADS * RUN
"""The widest row that a norm reads only once."""

EVERY_HALF = np.arange(1 << 16, dtype=np.uint16).view(np.float16)

aligned_or_not = st.sampled_from((0, 3, 8))


@pytest.fixture(scope="module")
def port() -> Iterator[CupyBackend]:
    made = CupyBackend(cuda=EmulatedCuda())
    yield made
    made.close()


@given(
    seed=seeds,
    width=st.sampled_from((8, 16, 24, 2048, 2056, 4104)),
    types=st.sampled_from((("float16", "float16"), ("float32", "float16"), ("float32", "float32"))),
    margins=st.tuples(aligned_or_not, aligned_or_not),
)
def test_wide_rows_are_gathered_whole_however_they_are_aligned(
    port: CupyBackend, seed: int, width: int, types: tuple[str, str], margins: tuple[int, int]
) -> None:
    draw = np.random.default_rng(seed)
    values, ids = numbers((5, width), types[0], "mixed", seed), draw.integers(-2, 7, 6).astype(np.int32)
    with Bench(port) as bench:
        table = bench.guarded(values, margins[0], 8).array
        before = numbers((6, width), types[1], "normal", seed + 1)
        out = bench.guarded(before, margins[1], 8)
        port.gather(table, port.upload(ids), 0, out.array)
        expected = np.where(((ids >= 0) & (ids < 5))[:, None], values[ids.clip(0, 4)].astype(types[1]), before)
        assert_same_bits(bench.read(out.array), expected, "gather")
        out.assert_untouched_around("gather")


@given(seed=seeds, width=st.sampled_from((8, 24, 2056, 4104)), dtype=st.sampled_from(DTYPES), margin=aligned_or_not)
def test_wide_rows_are_added_with_one_rounding_however_they_are_aligned(
    port: CupyBackend, seed: int, width: int, dtype: str, margin: int
) -> None:
    ids = np.random.default_rng(seed).integers(0, 5, 6).astype(np.int32)
    values, table = numbers((6, width), "float16", "normal", seed), numbers((5, width), dtype, "normal", seed + 1)
    expected = (values.astype(np.float32) + table[ids].astype(np.float32)).astype(np.float16)
    with Bench(port) as bench:
        x = bench.guarded(values, margin, 8)
        port.add_rows(x.array, bench.guarded(table, 8, margin).array, port.upload(ids))
        assert_same_bits(bench.read(x.array), expected, "add_rows")
        x.assert_untouched_around("add_rows")


@pytest.mark.parametrize("wrong", [-1, 5, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("width", [7, 16])
def test_a_row_that_a_table_does_not_have_becomes_nan_where_it_was_asked_for(
    port: CupyBackend, wrong: int, width: int
) -> None:
    values, table = (numbers((rows, width), "float16", "normal", rows) for rows in (3, 5))
    with Bench(port) as bench:
        x = bench.array(values)
        port.add_rows(x, bench.array(table), port.upload(np.array([4, wrong, 0], np.int32)))
        found = bench.read(x)
    assert np.isnan(found[1]).all()
    expected = (values.astype(np.float32) + table[[4, 0, 0]].astype(np.float32)).astype(np.float16)
    assert_same_bits(found[::2], expected[::2], "the other rows")


def test_rows_beyond_the_bound_of_a_grid_are_treated_like_others(
    port: CupyBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pointwise, "MOST_ROWS", 2)
    values, table = (numbers((rows, 16), "float16", "normal", rows) for rows in (7, 5))
    ids = np.arange(7, dtype=np.int32) % 5
    added = (values.astype(np.float32) + table[ids].astype(np.float32)).astype(np.float16)
    with Bench(port) as bench:
        place, x = bench.results((7, 16)).array, bench.guarded(values, 8, 8).array
        port.gather(bench.array(table), port.upload(ids), 0, place)
        assert_same_bits(bench.read(place), table[ids], "gather")
        port.add_rows(x, bench.array(table), port.upload(ids))
        port.activate(x, "relu")
        assert_same_bits(bench.read(x), np.maximum(added, 0), "add_rows and activate")


def test_no_tokens_are_no_work(port: CupyBackend) -> None:
    with Bench(port) as bench:
        x, table = (bench.array(np.ones((4, 8), np.float16)) for _ in range(2))
        ids = port.upload(np.zeros(4, np.int32))[:0]
        port.gather(table, ids, 0, x[:0])
        port.add_rows(x[:0], table, ids)
        port.layer_norm(x[:0], None, None, LAYER_NORM_EPSILON, x[:0])
        port.activate(x[:0], "gelu")
        assert_same_bits(bench.read(x), np.ones((4, 8), np.float16), "what was not to be touched")


def norm_of(bench: Bench, values: Values, affine: tuple[Values, Values], margin: int = 0) -> Values:
    """The norm of a slice of a wider array, with weights and biases of either type."""
    x, out = bench.guarded(values, margin, 8), bench.results(values.shape, 8, margin)
    w, b = (bench.guarded(part, margin, 0).array for part in affine)
    found = bench.read(bench.backend.layer_norm(x.array, w, b, LAYER_NORM_EPSILON, out.array))
    out.assert_untouched_around("layer_norm")
    assert_same_bits(bench.read(x.array), values, "the input of layer_norm")
    bench.backend.layer_norm(x.array, w, b, LAYER_NORM_EPSILON, x.array)
    assert_same_bits(bench.read(x.array), found, "layer_norm in place")
    return found


@settings(max_examples=10)
@given(
    seed=seeds,
    width=st.sampled_from((250, 512, 513, 1024, 4096, 4100, WIDEST_HELD - 1, WIDEST_HELD, WIDEST_HELD + 1, 24576)),
    types=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    kind=st.sampled_from(("normal", "offset", "constant")),
)
def test_norms_of_wide_rows_are_exact_enough_alone_and_with_others_and_however_they_are_aligned(
    port: CupyBackend, seed: int, width: int, types: tuple[str, str], kind: str
) -> None:
    values = numbers((3, width), "float16", kind, seed)
    affine = tuple(numbers((width,), dtype, "normal", seed + 1 + place) for place, dtype in enumerate(types))
    with Bench(port) as bench:
        found = norm_of(bench, values, (affine[0], affine[1]))
        for margin in (3, 8):
            assert_same_bits(norm_of(bench, values, (affine[0], affine[1]), margin), found, f"margins of {margin}")
        alone = norm_of(bench, values[1:2], (affine[0], affine[1]))
        assert_same_bits(alone, found[1:2], "a row alone")
        wide, w, b = (part.astype(np.float64) for part in (values, *affine))
        bound = layer_norm_bound(wide, w, b, LAYER_NORM_EPSILON, bench.arithmetic)
        assert_within(found, reference.layer_norm(wide, w, b, LAYER_NORM_EPSILON), bound, "layer_norm")


@pytest.mark.parametrize("given_part", ["weight", "bias"])
def test_a_norm_may_have_a_weight_or_a_bias_alone(port: CupyBackend, given_part: str) -> None:
    values, part = numbers((2, 40), "float16", "normal", 1), numbers((40,), "float16", "normal", 2)
    with Bench(port) as bench:
        held, missing = (bench.array(numbers) for numbers in (part, np.full(40, given_part == "bias", np.float16)))
        pairs = ((held, None), (held, missing)) if given_part == "weight" else ((None, held), (missing, held))
        short, full = (bench.read(port.layer_norm(bench.array(values), *pair, 1e-5)) for pair in pairs)
        assert_same_bits(short, full, f"layer_norm with a {given_part} alone")


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("width", [16, 600])
def test_a_number_that_is_not_finite_spoils_its_row_of_a_norm_and_no_other(
    port: CupyBackend, poison: float, width: int
) -> None:
    values = numbers((3, width), "float16", "normal", 3)
    values[1, width // 2] = poison
    with Bench(port) as bench:
        found = bench.read(port.layer_norm(bench.array(values), None, None, LAYER_NORM_EPSILON))
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[::2]).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_every_half_are_their_functions_however_they_are_aligned(
    port: CupyBackend, activation: str
) -> None:
    finite = EVERY_HALF[np.isfinite(EVERY_HALF)].reshape(8, -1)
    wide = finite.astype(np.float64)
    expected = reference.activate(wide, activation)
    with Bench(port) as bench:
        found = bench.read(port.activate(bench.array(finite), activation))
        bound = activation_bound(wide, expected, activation, bench.arithmetic)
        assert_within(found, expected, bound, activation)
        for margin in (3, 8):
            place = bench.guarded(finite, margin, 8)
            assert_same_bits(bench.read(port.activate(place.array, activation)), found, f"margins of {margin}")
            place.assert_untouched_around(activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_survives_every_activation_and_infinity_is_never_made_finite_silently(
    port: CupyBackend, activation: str
) -> None:
    values = np.full((2, 8), np.nan, np.float16)
    values[1] = np.inf
    with Bench(port) as bench:
        found = bench.read(port.activate(bench.array(values), activation))
    assert np.isnan(found[0]).all()
    limit = 1 if activation in ("tanh", "sigmoid") else np.inf
    assert (found[1] == limit).all()


def test_an_unknown_activation_is_refused(port: CupyBackend) -> None:
    with Bench(port) as bench, pytest.raises(ValueError, match="swish"):
        port.activate(bench.array(np.ones((1, 8), np.float16)), "swish")
