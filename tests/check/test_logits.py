"""Reference logits and their probable bounds: the engine stays inside them in every variant, another model does not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flexref.check.logits
from flexref.architecture.spec import ACTIVATIONS, ModelSpec
from flexref.check.forward import model_logits_bound
from flexref.check.greedy import exact_logits
from flexref.check.logits import (
    COMPUTE_DTYPES,
    Job,
    bound_parts,
    exact_parts,
    hidden_states,
    positions_at_once,
    stage_count,
)
from flexref.check.models import stored_tensors, write_model
from flexref.check.noisy import COPIES, NoisyTape, probable_arithmetic
from flexref.check.tolerances import FLOAT32, gamma
from flexref.engine.scoring import ScoredRow
from flexref.errors import FlexrefError
from flexref.loading import load
from flexref.policy import Policy
from flexref.storage.weightfile import StoredTensor, open_weight_file, read_tensor
from flexref.testing import strategies as own

SPEC = ModelSpec("tiny", 61, 40, 32, 32, 2, 2, 96)
ROWS = [[5, 6, 7, 44, 9, 10, 3, 60], [7], [1, 2, 3, 4]]


def reference(path: Path, rows: list[list[int]], dtype: str, firsts: list[int] | None = None) -> list[Any]:
    """(logits, bound) of every row."""
    file, how = open_weight_file(path), probable_arithmetic(dtype)
    job = Job(file, rows, [0] * len(rows) if firsts is None else firsts)
    states = [row for block in job.blocks() for row in hidden_states(job, block, how, lambda _: None)]
    return list(zip(exact_parts(file, states), bound_parts(file, states, how), strict=True))


def engine_logits(path: Path, row: list[int]) -> Any:
    """What the numpy port gives after every token of a row but the last, (S - 1, V)."""
    with load(path, policy=Policy(), scratch_bytes=1 << 16) as engine:
        (scored,) = engine.score([ScoredRow(tuple(row), 1)], keep_logits=True).rows
    return scored.logits


@settings(max_examples=settings.default.max_examples // 2)  # each example is a whole job, in float64 too
@given(st.data())
def test_the_engine_is_inside_the_bound_in_every_variant(tmp_path_factory: Any, data: st.DataObject) -> None:
    spec, path = data.draw(own.specs(layers=2)), tmp_path_factory.mktemp("models") / "model.h5"
    scheme, dtype = data.draw(st.sampled_from(("none", "int4"))), data.draw(st.sampled_from(("float16", "float32")))
    write_model(path, spec, scheme=scheme, dtype=dtype, seed=data.draw(st.integers(0, 9)))
    row = data.draw(own.token_rows(spec.vocabulary, rows=1, longest=12))[0]
    row = [*row, 1]
    ((logits, bound),) = reference(path, [row], "float32")
    share = np.abs(engine_logits(path, row) - logits[:-1]) / bound[:-1]
    assert share.max() < 0.5


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_even_a_small_change_of_one_weight_is_outside_the_bound(tmp_path: Path, activation: str) -> None:
    path = tmp_path / "model.h5"
    spec = replace(SPEC, activation=activation)
    write_model(path, spec)
    ((logits, bound),) = reference(path, ROWS[:1], "float32")
    tensors = stored_tensors(path)
    tensors["layers/000/ffn_up/weight"][0] += 0.1
    other, _ = model_logits_bound(spec, tensors, ROWS[0])
    assert (np.abs(other - logits) / bound).max() > 1


@pytest.mark.parametrize("change", [{"heads": 4}, {"layers": 1}, {"pre_norm": False, "final_norm": False}])
@pytest.mark.parametrize("dtype", COMPUTE_DTYPES)
def test_another_model_is_outside_the_bound_of_every_type(tmp_path: Path, change: dict[str, Any], dtype: str) -> None:
    path = tmp_path / "model.h5"
    write_model(path, SPEC)
    ((logits, bound),) = reference(path, ROWS[:1], dtype)
    other, _ = model_logits_bound(replace(SPEC, **change), stored_tensors(path), ROWS[0])
    assert (np.abs(other - logits) > bound).any()


def test_the_values_are_those_of_the_model_in_float64(model: Callable[..., Path]) -> None:
    path = model(SPEC)
    file = open_weight_file(path)
    found = reference(path, ROWS, "float16", [2, 0, 3])
    for row, first, (logits, bound), needed in zip(
        ROWS, [2, 0, 3], found, exact_logits(file, ROWS, [2, 0, 3]), strict=True
    ):
        assert logits.shape == bound.shape == (len(row) - first, SPEC.vocabulary)
        assert np.abs(logits - needed).max() < 1e-12


def test_a_probable_bound_is_smaller_than_the_worst_and_larger_for_coarser_types(model: Callable[..., Path]) -> None:
    path = model(SPEC)
    _, worst = model_logits_bound(SPEC, stored_tensors(path), ROWS[0])
    bounds = [reference(path, ROWS[:1], dtype)[0][1].mean() for dtype in COMPUTE_DTYPES]
    assert bounds[0] < worst.mean()
    assert 8 * bounds[0] < bounds[1] < 4 * bounds[1] < bounds[2]


def test_a_file_in_a_finer_type_is_rounded_by_an_engine_of_a_coarser_one(model: Callable[..., Path]) -> None:
    """The bound covers weights that are rounded before anything is computed."""
    path = model(SPEC)
    ((logits, bound),) = reference(path, ROWS[:1], "float16")
    rounded = {name: values.astype(np.float16) for name, values in stored_tensors(path).items()}
    other, _ = model_logits_bound(SPEC, rounded, ROWS[0])
    assert 0.01 < (np.abs(other - logits) / bound).max() < 1


@pytest.mark.parametrize("dtype", COMPUTE_DTYPES)
def test_a_token_whose_row_of_the_table_is_zero_leaves_the_bounds_of_the_others(
    model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Checkpoints of OPT have such a row: that of the token that pads."""
    path, padding = model(SPEC), 1
    plain = reference(path, ROWS[:1], dtype)[0][1]

    def read(stored: StoredTensor) -> Any:
        values = read_tensor(stored)
        if stored.name == "tokens/0000":
            values[padding] = 0  # type: ignore[index]
        return values

    monkeypatch.setattr(flexref.check.logits, "read_tensor", read)
    ((logits, bound),) = reference(path, ROWS[:1], dtype)
    others = np.arange(SPEC.vocabulary) != padding
    assert (logits[:, padding] == 0).all()
    assert (bound[:, padding] < 1e-5).all()
    assert 0.5 < (bound / plain)[:, others].min() < (bound / plain)[:, others].max() < 2


def test_rows_in_blocks_of_their_own_have_the_same_logits(
    model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model(SPEC)
    together = reference(path, ROWS, "float32")
    monkeypatch.setattr(flexref.check.logits, "BLOCK_BYTES", 1)
    file = open_weight_file(path)
    job = Job(file, ROWS, [0] * len(ROWS))
    assert [list(block) for block in job.blocks()] == [[0], [1], [2]]
    assert stage_count(job, ("float32",)) == 3 * (SPEC.layers + 2) + 2 * sum(map(len, ROWS))
    assert positions_at_once(file) == 1
    for (one, bound), (other, other_bound) in zip(together, reference(path, ROWS, "float32"), strict=True):
        assert np.abs(one - other).max() < 1e-12
        assert 0.2 < (bound / other_bound).mean() < 5


@pytest.mark.parametrize(
    ("name", "stage"),
    [("layers/001/ffn_up/bias", "layer 1"), ("head/norm/weight", "head 0"), ("tokens/0000", "the head")],
)
def test_weights_that_are_not_finite_are_refused_by_stage(
    model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str, stage: str
) -> None:
    """No conversion writes such a file; one that is made with intent may hold it."""

    def read(stored: StoredTensor) -> Any:
        values = read_tensor(stored)
        if stored.name == name:
            values.reshape(-1)[7] = np.inf  # type: ignore[union-attr]
        return values

    monkeypatch.setattr(flexref.check.logits, "read_tensor", read)
    with pytest.raises(FlexrefError, match=rf"\.h5: {stage} gives numbers that are not finite, although"):
        reference(model(SPEC), ROWS, "float32")


def test_the_same_call_gives_the_same_bounds(model: Callable[..., Path]) -> None:
    first, second = (reference(model(SPEC), ROWS, "bfloat16") for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert all(np.array_equal(*pair) for pair in zip(one, other, strict=True))


def test_copies_differ_by_their_local_bound_and_the_first_is_exact() -> None:
    tape = NoisyTape(probable_arithmetic("float32"))
    values = np.arange(1.0, 7).reshape(2, 3)
    copies = tape.sites[tape.add(np.broadcast_to(values, (1 + COPIES, 2, 3)).copy(), np.full((2, 3), 0.5))].value
    assert np.array_equal(copies[0], values)
    assert (np.abs(copies[1:] - values) == 0.5).all()
    assert len({copy.tobytes() for copy in copies}) > COPIES / 2


def test_long_sums_lose_what_grows_with_the_root_of_their_length() -> None:
    how = probable_arithmetic("float32")
    assert how.sums(4) == pytest.approx(gamma(4, FLOAT32))
    assert how.sums(10_000) == pytest.approx(gamma(108, FLOAT32))
