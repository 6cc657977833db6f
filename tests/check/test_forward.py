"""The model in float64 and its bound: the engine stays inside it in every variant, and another model does not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.spec import ACTIVATIONS, LAYER_NORM_EPSILON, ModelSpec
from flexref.check.forward import Tape, model_logits_bound
from flexref.check.models import stored_tensors, write_model
from flexref.check.tolerances import FLOAT32, assert_within
from flexref.engine.request import Request
from flexref.loading import load
from flexref.testing import strategies as own

SPEC = ModelSpec("tiny", 61, 40, 32, 32, 2, 2, 96)
TOKENS = [5, 6, 7, 44, 9, 10, 3, 60]


def engine_logits(path: Path, prompt: list[int], steps: int) -> tuple[Any, list[int]]:
    """Logits (steps, V) from which the engine chose, and the tokens that it generated."""
    found: list[Any] = []

    def keep(rows: Any, taken: Any, logits: Any) -> None:
        found.append(logits[0].copy())

    with load(path, scratch_bytes=1 << 16) as engine:
        (output,) = engine.generate([prompt], Request(steps, ignore_eos=True), on_logits=keep).outputs
    return np.stack(found), output.token_ids


@given(st.data())
def test_the_engine_is_inside_the_bound_in_every_variant(tmp_path_factory: Any, data: st.DataObject) -> None:
    """Each step's logits, which decodes after a prefill gave, against one pass over the whole row at once."""
    spec = data.draw(own.specs(layers=2))
    path = tmp_path_factory.mktemp("models") / "model.h5"
    scheme, dtype = data.draw(st.sampled_from(("none", "int4"))), data.draw(st.sampled_from(("float16", "float32")))
    write_model(path, spec, scheme=scheme, dtype=dtype, seed=data.draw(st.integers(0, 9)))
    prompt = data.draw(own.token_rows(spec.vocabulary, rows=1, longest=8))[0]
    found, generated = engine_logits(path, prompt, 5)
    logits, bound = model_logits_bound(spec, stored_tensors(path), [*prompt, *generated[:-1]])
    assert_within(found, logits[len(prompt) - 1 :], bound[len(prompt) - 1 :], f"logits of {spec}")


CHANGES = {
    **{activation: {"activation": activation} for activation in ACTIVATIONS if activation != "relu"},
    "post-norm": {"pre_norm": False, "final_norm": False},
    "no final norm": {"final_norm": False},
    "more heads": {"heads": 4},
    "one layer": {"layers": 1},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_model_is_outside_the_bound(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "model.h5"
    write_model(path, SPEC)
    found, generated = engine_logits(path, TOKENS, 4)
    tokens = [*TOKENS, *generated[:-1]]
    logits, bound = model_logits_bound(replace(SPEC, **change), stored_tensors(path), tokens)
    with pytest.raises(AssertionError, match="logits of another model"):
        assert_within(found, logits[len(TOKENS) - 1 :], bound[len(TOKENS) - 1 :], "logits of another model")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_even_a_small_change_of_one_weight_is_outside_the_bound(tmp_path: Path, activation: str) -> None:
    spec, path = replace(SPEC, activation=activation), tmp_path / "model.h5"
    write_model(path, spec)
    found, generated = engine_logits(path, TOKENS, 4)
    tensors = stored_tensors(path)
    tensors["layers/000/ffn_up/weight"][0] += 0.2
    logits, bound = model_logits_bound(spec, tensors, [*TOKENS, *generated[:-1]])
    with pytest.raises(AssertionError, match="logits of another model"):
        assert_within(found, logits[len(TOKENS) - 1 :], bound[len(TOKENS) - 1 :], "logits of another model")


def test_the_bound_is_small_beside_the_spread_of_logits(tmp_path: Path) -> None:
    write_model(tmp_path / "model.h5", SPEC)
    logits, bound = model_logits_bound(SPEC, stored_tensors(tmp_path / "model.h5"), TOKENS)
    assert bound.max() < 0.02 * logits.std()


def test_tables_may_be_in_any_number_of_tiles(tmp_path: Path) -> None:
    write_model(tmp_path / "model.h5", SPEC)
    tensors = stored_tensors(tmp_path / "model.h5")
    whole = np.concatenate([tensors.pop(name) for name in sorted(tensors) if name.startswith("tokens/")])
    cut = {f"tokens/{tile:04d}": whole[first : first + 7] for tile, first in enumerate(range(0, len(whole), 7))}
    expected = model_logits_bound(SPEC, {**tensors, "tokens/0000": whole}, TOKENS)
    assert all(
        np.array_equal(*pair)
        for pair in zip(expected, model_logits_bound(SPEC, {**tensors, **cut}, TOKENS), strict=True)
    )


OPERATORS = {
    "linear": lambda tape, x: tape.linear(x, own.numbers((5, 6), "float64", "normal", 1), np.ones(5)),
    "total": lambda tape, x: tape.total(x, x),
    "layer_norm": lambda tape, x: tape.layer_norm(x, np.arange(1.0, 7), np.ones(6), LAYER_NORM_EPSILON),
    "attend": lambda tape, x: tape.attend(x, 2),
    **{name: lambda tape, x, name=name: tape.activate(x, name) for name in ACTIVATIONS},
}


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
@given(own.seeds)
def test_errors_are_carried_on_by_the_derivative(operator: Any, seed: int) -> None:
    """The bound that an error of one operand alone gives is what a central difference gives."""
    values = own.numbers((3, 6), "float64", "normal", seed)
    error = own.numbers((3, 6), "float64", "normal", seed + 1)
    step = 1e-6
    tape = Tape()
    y = operator(tape, tape.add(values, np.zeros_like(values)))
    moved = [_values(operator, values + sign * step * error) for sign in (1, -1)]
    result = tape.sites[y].value
    seeds = np.zeros((result.size, *result.shape))
    seeds.reshape(result.size, result.size)[...] = np.eye(result.size)
    (slopes,) = (sum(parts) for parts in [tape.sites[y].pull(seeds)])
    carried = (slopes * error).reshape(result.size, -1).sum(-1).reshape(result.shape)
    # A central difference is off by its own step squared, times third derivatives, and by rounding over the step.
    assert np.abs(carried - (moved[0] - moved[1]) / (2 * step)).max() < 1e-6 * (1 + np.abs(carried).max())


def _values(operator: Any, values: Any) -> Any:
    tape = Tape()
    return tape.sites[operator(tape, tape.add(values, np.zeros_like(values)))].value


def test_a_relu_at_its_kink_may_be_on_either_side() -> None:
    tape = Tape()
    x = tape.add(np.array([[-1e-9, -0.5, 2e-9, 1.0]]), np.full((1, 4), 1e-8))
    local = tape.sites[tape.activate(x, "relu")].local
    # Derivatives and the bounds that they carry are float32.
    assert np.abs(local - [[9e-9, 0, 8e-9, 0]]).max() <= 2 * FLOAT32.unit * 1e-8
