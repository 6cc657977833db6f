"""Tiny random models and strategies: they vary in what they should, and greedy text does not collapse."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, find, settings

from flexref.architecture.spec import ACTIVATIONS, ModelSpec
from flexref.check.models import stored_tensors, write_model
from flexref.engine.request import Request
from flexref.loading import load
from flexref.policy import Policy
from flexref.testing import strategies as own

SEARCH = settings(max_examples=1000, database=None, derandomize=True, phases=[Phase.generate])
"""The first example that fits will do."""

SPECS = {
    "opt": ModelSpec("tiny", 90, 48, 32, 32, 2, 2, 64),
    "post-norm": ModelSpec("tiny", 90, 48, 32, 16, 2, 2, 64, pre_norm=False, final_norm=False),
    "galactica": ModelSpec("tiny", 90, 48, 32, 32, 3, 4, 64, bias=False, affine_norm=False, activation="gelu"),
    "untied": ModelSpec("tiny", 90, 48, 24, 24, 1, 2, 64, tied_head=False),
}


@pytest.mark.parametrize("scheme", ["none", "int4"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_greedy_text_of_a_random_model_does_not_collapse(tmp_path: Path, spec: ModelSpec, scheme: str) -> None:
    write_model(tmp_path / "model.h5", spec, scheme=scheme)
    with load(tmp_path / "model.h5", scratch_bytes=1 << 16) as engine:
        outputs = engine.generate([[5, 6], [7], [8, 9, 10]], Request(32, ignore_eos=True)).outputs
    for output in outputs:
        assert len(set(output.token_ids)) >= 6
    assert len({tuple(output.token_ids) for output in outputs}) == 3


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_model_is_the_same_for_the_same_seed_and_another_for_another(tmp_path: Path, dtype: str) -> None:
    spec = SPECS["opt"]
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        write_model(tmp_path / name, spec, dtype=dtype, seed=seed)
    first, again, other = (stored_tensors(tmp_path / name) for name in ("first", "again", "other"))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    "wanted",
    [
        *(lambda spec, name=name: spec.activation == name for name in ACTIVATIONS),
        lambda spec: not spec.pre_norm and spec.projected,
        lambda spec: spec.pre_norm and not spec.final_norm,
        lambda spec: not spec.bias and not spec.affine_norm,
        lambda spec: not spec.tied_head,
    ],
)
def test_every_variant_of_the_family_is_drawn(wanted: object) -> None:
    find(own.specs(), wanted, settings=SEARCH)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wanted",
    [
        lambda policy: policy.weights.disk == 1 and policy.overlap,
        lambda policy: 0 < policy.cache.host < 1 and policy.attention_on == "host",
        lambda policy: policy.cache_scheme == "int4" and policy.groups_per_block > 1 and not policy.overlap,
        lambda policy: 0 < policy.activations.disk < 1,
    ],
)
def test_every_kind_of_policy_is_drawn(wanted: object) -> None:
    find(own.policies(), wanted, settings=SEARCH)  # type: ignore[arg-type]


def test_a_field_of_a_policy_can_be_fixed() -> None:
    policy = find(own.policies(rows_per_group=3), lambda policy: isinstance(policy, Policy), settings=SEARCH)
    assert policy.rows_per_group == 3


@pytest.mark.parametrize("kind", own.EVERY_KIND)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_numbers_of_every_kind_are_finite_and_have_their_type(kind: str, dtype: str) -> None:
    values = own.numbers((40, 30), dtype, kind, 0)
    assert values.dtype == dtype
    assert np.isfinite(values).all()
    assert values.flags.c_contiguous
    assert (len(np.unique(values)) > 1) == (kind != "zero")


def test_prompts_differ_in_length() -> None:
    rows = find(own.token_rows(9), lambda rows: len({len(row) for row in rows}) >= 3, settings=SEARCH)
    assert all(0 <= token < 9 for row in rows for token in row)
