"""Rows of a run are recomputed: right tokens of any model, type and cache pass, wrong ones do not, and few would."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_kit import HALF
from flexref_numpy import NumpyBackend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexref.architecture.flops import prefill_flops
from flexref.architecture.published import published
from flexref.architecture.spec import ModelSpec
from flexref.check import run_tokens
from flexref.check.forced import logits as forced
from flexref.check.forced import products, walk
from flexref.check.forced.logits import Drawing, ForcedLogits, ForcedRow, forced_logits
from flexref.check.forced.walk import PortRounding
from flexref.check.greedy import exact_logits
from flexref.check.run_tokens import WrongTokens, check_tokens, rows_checked, work_of
from flexref.engine.request import Request
from flexref.errors import FlexrefError
from flexref.loading import load
from flexref.policy import Policy
from flexref.storage.random_weights import random_file
from flexref.storage.weightfile import WeightFile, open_weight_file, read_tensor

PLAIN = ModelSpec("plain", 173, 64, 32, 32, 3, 2, 64, activation="relu")
SPECS = (
    PLAIN,
    replace(PLAIN, name="post", pre_norm=False, final_norm=False),
    replace(PLAIN, name="projected", embed_width=16, activation="gelu"),
    replace(PLAIN, name="bare", bias=False, affine_norm=False, activation="gelu"),
)
NEW = 6


def run(file: WeightFile, port: Any, policy: Policy, seed: int = 0) -> tuple[list[list[int]], list[list[int]], Any]:
    """Prompts of several lengths, the tokens that a port gives, and the float32 tensors that it gave them with."""
    draw = np.random.default_rng(seed)
    prompts = [draw.integers(0, file.spec.vocabulary, count).tolist() for count in (9, 1, 14)]
    engine = load(file, backend=port, policy=policy)
    outputs = engine.generate(prompts, Request(NEW, ignore_eos=True)).outputs
    return prompts, [output.token_ids for output in outputs], engine


@settings(max_examples=9, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(SPECS),
    st.sampled_from(["none", "int4", "int8"]),
    st.sampled_from(["float16", "float32"]),
    st.sampled_from(["none", "int4"]),
    st.sampled_from([NumpyBackend, HALF]),
    st.integers(0, 99),
)
def test_the_tokens_of_a_right_port_pass_and_hardly_any_others_would(
    model: Callable[..., Path], spec: ModelSpec, scheme: str, dtype: str, cache: str, port: Any, seed: int
) -> None:
    file = open_weight_file(model(spec, scheme, dtype))
    policy = Policy(rows_per_group=2, groups_per_block=2, cache_scheme=cache)
    prompts, tokens, engine = run(file, port(), policy, seed)
    with engine:
        rounding = PortRounding(engine.backend.caps.compute_dtype, policy.cache_group_size if cache == "int4" else None)
        found = check_tokens(file, engine.session.stored, prompts, tokens, (0, 1, 2), Drawing(rounding, seed))
        assert found.tokens == 3 * NEW
        assert found.worst_share <= 1
        if cache == "none":  # a 4-bit code that rounds the other way moves the logits of so small a model far
            assert found.possible_tokens < 6
        if cache == "none":
            ids, places = [*prompts[0], *tokens[0]], [4, 9, 12]
            row = [ForcedRow(ids, places)]
            (found_row,) = forced_logits(file, engine.session.stored, row, Drawing(rounding, seed))
            (exactly,) = exact_logits(file, [ids], [0])
            assert np.abs(found_row.logits - exactly[places]).max() < 1e-4 * np.abs(exactly).max()
            (wide,) = forced_logits(file, engine.session.stored, row, Drawing(PortRounding("float32"), seed))
            assert (wide.bound < found_row.bound).all() == (rounding.compute_dtype == "float16")


@pytest.mark.parametrize("half", [False, True])
def test_a_token_that_another_would_have_been_is_found_and_named(model: Callable[..., Path], half: bool) -> None:
    file = open_weight_file(model(PLAIN, "int4", "float16"))
    prompts, tokens, engine = run(file, HALF() if half else NumpyBackend(), Policy())
    with engine:
        how = Drawing(PortRounding(engine.backend.caps.compute_dtype), 0)
        for row, step in ((0, NEW - 1), (2, 0), (1, 3)):
            wrong = [list(ids) for ids in tokens]
            wrong[row][step] = (wrong[row][step] + 1) % PLAIN.vocabulary
            with pytest.raises(
                WrongTokens, match=f"^row {row}, new token {step}: the run gave token {wrong[row][step]}"
            ):
                check_tokens(file, engine.session.stored, prompts, wrong, (row,), how)
            # Rows that are not drawn are not looked at.
            check_tokens(file, engine.session.stored, prompts, wrong, ((row + 1) % 3,), how)


@pytest.mark.parametrize("token", [-1, PLAIN.vocabulary])
def test_a_token_that_the_model_has_not_is_wrong(model: Callable[..., Path], token: int) -> None:
    file = open_weight_file(model(PLAIN, "int4", "float16"))
    prompts, tokens, engine = run(file, NumpyBackend(), Policy())
    tokens[0][2] = token
    with engine, pytest.raises(WrongTokens, match=f"^row 0, new token 2: the run gave token {token}, and the model"):
        check_tokens(file, engine.session.stored, prompts, tokens, (0,), Drawing(PortRounding("float32"), 0))


def check_one(monkeypatch: pytest.MonkeyPatch, logits: list[float], bound: list[float], token: int) -> Any:
    """Check one token of a row whose logits and bounds would be these."""
    found = ForcedLogits(*(np.array([values], np.float32) for values in (logits, bound)))
    monkeypatch.setattr(run_tokens, "forced_logits", lambda *_: [found])
    file = random_file(replace(PLAIN, vocabulary=len(logits)))
    return check_tokens(file, lambda name: np.zeros(0), [[0]], [[token]], (0,), Drawing(PortRounding("float32"), 0))


@pytest.mark.parametrize("bound", [[np.inf, 1, 1], [1, 1, np.inf], [1, np.nan, 1], [3e38, 3e38, 3e38]])
@pytest.mark.parametrize("token", [0, 1, 2])
def test_where_anything_would_pass_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, bound: list[float], token: int
) -> None:
    with np.errstate(over="ignore"), pytest.raises(FlexrefError, match=r"row 0, new token 0: .*not finite") as raised:
        check_one(monkeypatch, [5, 1, 2], bound, token)
    assert not isinstance(raised.value, WrongTokens)


@pytest.mark.parametrize("token", [0, 2])
def test_either_of_two_tokens_that_are_exactly_alike_is_right_where_nothing_is_permitted(
    monkeypatch: pytest.MonkeyPatch, token: int
) -> None:
    found = check_one(monkeypatch, [5, 1, 5], [0, 0, 0], token)
    assert (found.tokens, found.other_tokens) == (1, int(token != 0))
    assert (found.worst_share, found.possible_tokens) == (0, 2)


def test_a_distance_is_permitted_up_to_the_bounds_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_one(monkeypatch, [5, 1, 2], [1, 3, 2], 1).worst_share == 1
    with pytest.raises(WrongTokens, match="token 1, whose logit is 4 below that of token 0, and rounding permits 3"):
        check_one(monkeypatch, [5, 1, 2], [1, 2, 2], 1)
    with pytest.raises(WrongTokens, match="and rounding permits 0 "):
        check_one(monkeypatch, [5, 1, 2], [0, 0, 0], 1)


class Deaf(NumpyBackend):
    """Attention leaves the bias of its scale out: all keys count for more than they do."""

    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        return super().attend(rows, segments, q, 1.5 * scale, out)


class Late(NumpyBackend):
    """Does not activate in decode."""

    def activate(self, x: Any, activation: str) -> Any:
        return super().activate(x, activation) if x.shape[0] > 4 else x


@pytest.mark.parametrize("wrong", [Deaf, Late])
def test_the_tokens_of_a_wrong_port_do_not_pass(model: Callable[..., Path], wrong: Any) -> None:
    file = open_weight_file(model(PLAIN, "none", "float32"))
    prompts, tokens, engine = run(file, wrong(), Policy())
    with engine, pytest.raises(WrongTokens):
        check_tokens(file, engine.session.stored, prompts, tokens, (0, 1, 2), Drawing(PortRounding("float32"), 0))


def test_random_weights_are_recomputed_without_a_file() -> None:
    file = random_file(PLAIN, scheme="int4", seed=5)
    prompts, tokens, engine = run(file, HALF(), Policy(cache_scheme="int4"))
    with engine:
        rounding = PortRounding("float16", 64)
        found = check_tokens(file, engine.session.stored, prompts, tokens, (0, 2), Drawing(rounding, 0))
        assert found.rows == (0, 2)
        other = random_file(PLAIN, scheme="int4", seed=6)
        with load(other, policy=Policy()) as elsewhere, pytest.raises(WrongTokens):
            check_tokens(other, elsewhere.session.stored, prompts, tokens, (0, 2), Drawing(rounding, 0))


ROUNDED = Drawing(PortRounding("float16"), 3)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(SPECS),
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 8)), min_size=1, max_size=4),
    st.integers(4, 24),
    st.integers(1, 5),
)
def test_rows_that_are_computed_together_are_as_alone_and_read_each_weight_once(
    model: Callable[..., Path], spec: ModelSpec, lengths: list[tuple[int, int]], tokens: int, pairs: int
) -> None:
    file, names, layers = open_weight_file(model(spec, "int4", "float16")), list[str](), list[None]()
    draw = np.random.default_rng(0)
    rows = [
        ForcedRow(draw.integers(0, spec.vocabulary, count).tolist(), [min(place, count - 1)])
        for count, place in lengths
    ]

    def read(name: str) -> Any:
        names.append(name)
        return read_tensor(file.tensors[name])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forced, "TOKENS_TOGETHER", tokens)
        patch.setattr(walk, "SCORES_AT_ONCE", pairs)
        patch.setattr(products, "SLAB_ELEMENTS", 64 * pairs)
        patch.setattr(products, "PIECES", 4)
        runs = forced.together(rows)
        assert [row for run in runs for row in run] == rows
        assert all(len(run) == 1 or sum(len(row.token_ids) for row in run) <= tokens for run in runs)
        found = list(forced_logits(file, read, rows, ROUNDED, lambda: layers.append(None)))
    assert len(layers) == spec.layers * len(runs)
    assert {names.count(name) for name in names if "layers/" in name} == {len(runs)}
    exactly = exact_logits(file, [list(row.token_ids) for row in rows], [0] * len(rows))
    for row, one, needed in zip(rows, found, exactly, strict=True):
        assert np.abs(one.logits - needed[row.positions]).max() < 1e-4 * np.abs(needed).max()
        (alone,) = forced_logits(file, read, [row], ROUNDED)
        assert np.abs(one.logits - alone.logits).max() < 1e-4 * np.abs(needed).max()
        assert (one.bound < 8 * alone.bound.max()).all()  # drawn otherwise, and as large


def test_what_a_check_will_take_counts_each_run_of_rows_and_goes_by_the_rate_of_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_tokens, "product_rate", lambda: 1e9)
    monkeypatch.setattr(forced, "TOKENS_TOGETHER", 20)
    one = work_of(PLAIN, [ForcedRow([0] * 9, [8])])
    three = work_of(PLAIN, [ForcedRow([0] * 9, [8])] * 3)
    assert (one.layers, three.layers) == (PLAIN.layers, 2 * PLAIN.layers)
    assert three.flops == pytest.approx(3 * one.flops)
    assert one.flops == 2 * prefill_flops(PLAIN, 9)
    assert three.seconds == pytest.approx(3 * one.seconds)
    assert one.seconds >= one.flops / 1e9


@given(st.integers(1, 40), st.integers(0, 50), st.integers(0, 9))
def test_rows_are_drawn_by_the_seed_as_many_as_are_wanted(count: int, wanted: int, seed: int) -> None:
    lengths = [12] * count
    found = rows_checked(PLAIN, lengths, wanted, seed)
    assert found == rows_checked(PLAIN, lengths, wanted, seed)
    assert len(set(found)) == len(found) == min(count, wanted)
    assert all(0 <= row < count for row in found)


def test_without_a_number_the_work_decides_and_a_row_that_takes_too_long_is_none() -> None:
    assert len(rows_checked(PLAIN, [12] * 64, None, 0)) == 4
    assert len(rows_checked(published("opt-6.7b"), [544] * 64, None, 0)) == 1
    assert len(rows_checked(published("opt-30b"), [544] * 64, None, 0)) == 1
    assert rows_checked(published("opt-175b"), [544] * 64, None, 0) == ()
    assert len(rows_checked(published("opt-175b"), [544] * 64, 1, 0)) == 1
