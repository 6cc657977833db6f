"""The bounds themselves: correct float32 code of any order stays inside them; half precision and NaN do not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.spec import ACTIVATIONS
from flexref.check import reference
from flexref.check.tolerances import (
    FLOAT16,
    FLOAT32,
    FLOAT64,
    Arithmetic,
    activation_bound,
    arithmetic,
    assert_within,
    attention_bound,
    converted,
    exact,
    gamma,
    layer_norm_bound,
    linear_bound,
)
from flexref.testing.strategies import Values, arrays, numbers, seeds

torch = pytest.importorskip("torch", reason="the oracle needs PyTorch: pip install '.[oracle]'")
functional = torch.nn.functional

SINGLE = arithmetic("float32")
DOUBLE = Arithmetic(FLOAT64, FLOAT64)
ORDINARY = ("normal", "offset", "tiny", "constant")

TORCH_ACTIVATIONS = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def wide(values: Values) -> Values:
    return values.astype(np.float64)


@given(st.integers(1, 1000))
def test_gamma_bounds_a_product_of_roundings(terms: int) -> None:
    worst = (1 + FLOAT32.unit) ** terms - 1
    assert worst <= gamma(terms, FLOAT32) <= 1.01 * terms * FLOAT32.unit


def test_gamma_of_too_many_terms_is_no_number_to_trust() -> None:
    assert gamma(2048, FLOAT16) == float("inf")


@given(st.data())
def test_sums_in_any_order_stay_inside_the_bound(data: st.DataObject) -> None:
    inputs = data.draw(st.integers(1, 200))
    x, w = (data.draw(arrays((3, inputs), kinds=ORDINARY)) for _ in range(2))
    order = np.random.default_rng(data.draw(seeds)).permutation(inputs)
    found = np.zeros((3, 3), np.float32)
    for place in order:  # one by one: the worst order there is
        found += x[:, place, None] * w[:, place]
    bound = linear_bound(exact(x), exact(w), np.zeros((3, 3)), 0, SINGLE)
    assert_within(found, wide(x) @ wide(w).T, bound, "a sum in random order")
    assert_within(x @ w.T, wide(x) @ wide(w).T, bound, "numpy's sum")


@given(seeds, st.integers(8, 200))
def test_sums_in_half_precision_do_not(seed: int, inputs: int) -> None:
    x, w = (numbers((3, inputs), "float32", "normal", seed + part) for part in range(2))
    half = (x.astype(np.float16) @ w.astype(np.float16).T).astype(np.float32)
    bound = linear_bound(exact(x), exact(w), np.zeros((3, 3)), 0, SINGLE)
    with pytest.raises(AssertionError, match="a sum in half precision"):
        assert_within(half, wide(x) @ wide(w).T, bound, "a sum in half precision")


@given(st.data())
def test_pytorchs_layer_norm_is_inside_the_bound(data: st.DataObject) -> None:
    x = data.draw(arrays((4, data.draw(st.integers(1, 100)))))
    w, b = (data.draw(arrays(x.shape[1:], kinds=("normal",))) for _ in range(2))
    found = functional.layer_norm(torch.from_numpy(x), x.shape[1:], torch.from_numpy(w), torch.from_numpy(b))
    expected = reference.layer_norm(wide(x), wide(w), wide(b), 1e-5)
    bound = layer_norm_bound(wide(x), wide(w), wide(b), 1e-5, SINGLE)
    assert_within(found.numpy(), expected, bound, "layer_norm of PyTorch")


@given(st.data(), st.sampled_from(ACTIVATIONS))
def test_pytorchs_activations_are_inside_the_bound(data: st.DataObject, activation: str) -> None:
    x = data.draw(arrays((5, 9), kinds=("normal", "mixed", "tiny")))
    expected = reference.activate(wide(x), activation)
    found = TORCH_ACTIVATIONS[activation](torch.from_numpy(x)).numpy()
    assert_within(found, expected, activation_bound(wide(x), expected, activation, SINGLE), f"{activation} of PyTorch")


@given(st.data())
def test_pytorchs_attention_is_inside_the_bound(data: st.DataObject) -> None:
    tokens, heads, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 20))
    q, k, v = (data.draw(arrays((tokens, heads, width), kinds=("normal", "tiny", "constant"))) for _ in range(3))
    by_head = (torch.from_numpy(part).transpose(0, 1) for part in (q, k, v))
    found = functional.scaled_dot_product_attention(*by_head, is_causal=True, scale=0.5).transpose(0, 1).numpy()
    expected = reference.attend(wide(q), wide(k), wide(v), 0, 0.5)
    assert_within(found, expected, attention_bound(exact(q), exact(k), exact(v), 0, 0.5, SINGLE), "PyTorch's attention")


@given(seeds, st.sampled_from(ACTIVATIONS))
def test_the_reference_is_pytorchs_function_in_float64(seed: int, activation: str) -> None:
    """With the bounds of float64 arithmetic: so formulas are compared, not roundings."""
    x = numbers((4, 8), "float64", "normal", seed) * 3
    held = torch.from_numpy(x).requires_grad_()
    y = TORCH_ACTIVATIONS[activation](held)
    y.sum().backward()
    expected = reference.activate(x, activation)
    bound = activation_bound(x, expected, activation, DOUBLE)
    assert_within(y.detach().numpy(), expected, bound, activation)
    assert held.grad is not None
    assert_within(held.grad.numpy(), reference.slope(x, activation), 1e3 * FLOAT64.unit * (1 + x**2), "its slope")
    w, b = x[0], x[1]
    found = functional.layer_norm(torch.from_numpy(x), (8,), torch.from_numpy(w), torch.from_numpy(b), 1e-5).numpy()
    assert_within(found, reference.layer_norm(x, w, b, 1e-5), layer_norm_bound(x, w, b, 1e-5, DOUBLE), "layer_norm")


@pytest.mark.parametrize(("dtype", "share"), [("float32", 2e-5), ("float16", 1e-2)])
def test_bounds_are_narrow_enough_to_say_something(dtype: str, share: float) -> None:
    """Of operands as a small model has them: shares of the result's own size."""
    how = arithmetic(dtype)
    x, w = (wide(numbers((16, 64), "float32", "normal", seed)) for seed in (1, 2))
    product = linear_bound(exact(x), exact(w), np.zeros((16, 16)), 0, how)
    assert product.max() < share * np.abs(x @ w.T).max()
    ones, zeros = np.ones(64), np.zeros(64)
    assert layer_norm_bound(x, ones, zeros, 1e-5, how).max() < share * 3
    for activation in ACTIVATIONS:
        y = reference.activate(x, activation)
        assert activation_bound(x, y, activation, how).max() < share * np.abs(y).max()
    q, k, v = (exact(wide(numbers((16, 4, 16), "float32", "normal", seed))) for seed in (3, 4, 5))
    assert attention_bound(q, k, v, 0, 0.25, how).max() < share * np.abs(v.values).max()


@pytest.mark.parametrize(("values", "off"), [([1.0, 2.5], 0.5), ([np.nan, 2.0], np.nan), ([1.0, np.inf], np.inf)])
def test_what_is_outside_is_named_with_its_place_and_its_distance(values: list[float], off: float) -> None:
    with pytest.raises(
        AssertionError, match=rf"linear: element \(\d,\) of \(2,\) \(inputs \(7, 9\)\).*off by {off:.3g}"
    ):
        assert_within(np.array(values), np.array([1.0, 2.0]), np.array([0.25, 0.25]), "linear", (7, 9))


def test_what_is_inside_passes_and_other_shapes_do_not() -> None:
    assert_within(np.array([1.0, 2.25], np.float32), np.array([1.0, 2.0]), np.array([0.0, 0.25]), "linear")
    with pytest.raises(AssertionError, match=r"linear: shape \(1,\), needed \(2,\)"):
        assert_within(np.array([1.0]), np.array([1.0, 2.0]), np.array([0.0, 0.0]), "linear")


def test_a_bound_that_is_infinite_says_nothing() -> None:
    with pytest.raises(ValueError, match="says nothing"):
        assert_within(np.array([1.0]), np.array([2.0]), np.array([np.inf]), "linear")


@given(arrays((3, 4), kinds=("normal", "tiny")))
def test_operands_too_wide_for_the_stored_type_may_be_rounded_to_it(values: Values) -> None:
    half = arithmetic("float16")
    operand = converted(values, half)
    assert (np.abs(values.astype(np.float16).astype(np.float64) - values) <= operand.error).all()
    assert not converted(values.astype(np.float16), half).error.any()
