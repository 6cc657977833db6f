"""Scores of rows: within the bound of the exact model, the same bits wherever things lie, budgets kept to the byte."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.check.forward import model_logits_bound
from flexref.check.models import stored_tensors
from flexref.check.tolerances import assert_within
from flexref.engine.next_tokens import NextTokens
from flexref.engine.request import Request
from flexref.engine.scoring import Listener, ScoredRow, Scores
from flexref.errors import CapacityError, FlexrefError, PolicyError, PromptError
from flexref.loading import load
from flexref.policy import Policy
from flexref.storage.weightfile import open_weight_file
from flexref.testing import strategies as own

GIB = 1 << 30
STORED = st.sampled_from([("none", "float32"), ("none", "float16"), ("int4", "float16"), ("int4", "float32")])
TILED = ModelSpec("tiled", 600, 400, 32, 32, 2, 2, 64)
"""Three tiles of the head, and room for more tokens than there are logits of at a time."""

WIDE = ModelSpec("wide", 600, 400, 8, 64, 1, 2, 8)
"""What the head's table is multiplied with is much wider than the hidden states, whose place it takes."""


@st.composite
def scored_rows(draw: st.DrawFn, vocabulary: int, longest: int = 12) -> list[ScoredRow]:
    rows = draw(own.token_rows(vocabulary, shortest=2, longest=longest))
    return [ScoredRow(tuple(row), draw(st.integers(1, len(row) - 1))) for row in rows]


@st.composite
def jobs(draw: st.DrawFn) -> tuple[ModelSpec, list[ScoredRow]]:
    spec = draw(own.specs())
    return spec, draw(scored_rows(spec.vocabulary))


def score(path: str, rows: list[ScoredRow], policy: Policy | None, **options: Any) -> Scores:
    top = options.pop("top", 1)
    if options.get("backend", "numpy") == "numpy":
        options.setdefault("scratch_bytes", 1 << 16)
    with load(path, policy=policy, **options) as engine:
        return engine.score(rows, top=top, keep_logits=True)


def assert_same_bits(found: Scores, expected: Scores) -> None:
    for number, (mine, other) in enumerate(zip(found.rows, expected.rows, strict=True)):
        for name in ("logits", "logprobs", "normalizer", "top_ids", "top_logprobs", "greedy"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(other, name), err_msg=f"row {number}: {name}")


def at_home(policy: Policy, groups: int) -> Policy:
    """Everything on the device, one thing after another, in the same groups."""
    return Policy(
        rows_per_group=policy.rows_per_group,
        groups_per_block=groups,
        overlap=False,
        cache_scheme=policy.cache_scheme,
        cache_group_size=policy.cache_group_size,
    )


@settings(max_examples=settings.default.max_examples // 2)  # each example is two whole jobs, on every port
@given(job=jobs(), stored=STORED, policy=own.policies(), groups=st.sampled_from((1, 3)))
def test_scores_are_bit_identical_for_every_placement(
    model_file: Any,
    computing_port: str,
    job: tuple[ModelSpec, list[ScoredRow]],
    stored: tuple[str, str],
    policy: Policy,
    groups: int,
) -> None:
    spec, rows = job
    path = model_file(spec, *stored)
    if computing_port != "numpy":
        policy = policy.changed(attention_on="device", host_attention_share=1.0)
    found = score(path, rows, policy, backend=computing_port, top=3)
    if not found.stats.row_invariant:  # the port promises that for rows in one order and company alone
        policy, groups = policy.changed(cache=own.one_home(policy.cache)), policy.groups_per_block
        found = score(path, rows, policy, backend=computing_port, top=3)
    assert_same_bits(found, score(path, rows, at_home(policy, groups), backend=computing_port, top=3))


@settings(max_examples=settings.default.max_examples // 2)  # each example is two whole jobs
@given(job=jobs(), stored=STORED, policy=own.policies(), chunk=st.integers(1, 5))
def test_rows_are_scored_whole_whatever_a_pass_reads_of_a_prompt_at_most(
    model_file: Any, job: tuple[ModelSpec, list[ScoredRow]], stored: tuple[str, str], policy: Policy, chunk: int
) -> None:
    spec, rows = job
    path = model_file(spec, *stored)
    found, expected = (score(path, rows, each) for each in (policy.changed(prompt_chunk_tokens=chunk), policy))
    assert_same_bits(found, expected)
    assert found.stats.peak_bytes == expected.stats.peak_bytes


@pytest.mark.parametrize("spec", [TILED, WIDE], ids=lambda spec: spec.name)
@pytest.mark.parametrize("stored", [("none", "float16"), ("int4", "float16")])
@settings(max_examples=5)
@given(policy=own.policies(rows_per_group=2))
def test_more_tokens_than_there_are_logits_of_at_a_time_are_scored_alike_everywhere(
    model_file: Any, stored: tuple[str, str], spec: ModelSpec, policy: Policy
) -> None:
    path = model_file(spec, *stored)
    draw = np.random.default_rng(0)
    rows = [
        ScoredRow(tuple(draw.integers(0, 600, length).tolist()), first)
        for length, first in ((300, 1), (280, 30), (9, 3))
    ]
    assert_same_bits(score(path, rows, policy), score(path, rows, at_home(policy, 2)))


@given(own.specs(layers=2), st.sampled_from(["none", "int4"]), own.policies(cache_schemes=("none",)), st.data())
def test_log_probabilities_are_those_of_the_exact_model_whoever_the_neighbours_are(
    model_file: Any, spec: ModelSpec, scheme: str, policy: Policy, data: st.DataObject
) -> None:
    path = model_file(spec, scheme, "float32")
    rows = data.draw(scored_rows(spec.vocabulary, longest=6))
    found = score(path, rows, policy)
    number = data.draw(st.integers(0, len(rows) - 1))
    row, scored = rows[number], found.rows[number]
    exact, bound = model_logits_bound(spec, stored_tensors(Path(path)), row.token_ids[:-1], first=row.first - 1)
    assert scored.logits is not None
    assert_within(scored.logits, exact, bound, "logits")
    # A log-sum-exp moves by at most as much as the logit that moves most.
    most = 2 * bound.max(axis=1)
    whole = (
        exact - np.log(np.exp(exact - exact.max(1, keepdims=True)).sum(1, keepdims=True)) - exact.max(1, keepdims=True)
    )
    assert_within(scored.distribution(), whole, most[:, None] + 1e-12, "log-probabilities")
    targets = np.array(row.token_ids[row.first :])
    np.testing.assert_array_equal(scored.logprobs, scored.distribution()[np.arange(len(targets)), targets])


@given(jobs(), STORED, own.policies())
def test_the_last_position_has_the_logits_that_generation_chooses_from(
    model_file: Any, job: tuple[ModelSpec, list[ScoredRow]], stored: tuple[str, str], policy: Policy
) -> None:
    spec, rows = job
    path = model_file(spec, *stored)
    prompts = [row.token_ids[:-1] for row in rows]
    logits: dict[int, npt.NDArray[np.float32]] = {}

    def keep(numbers: npt.NDArray[np.int64], steps: npt.NDArray[np.int64], values: npt.NDArray[np.float32]) -> None:
        logits.update(dict(zip(numbers.tolist(), values, strict=True)))

    with load(path, policy=policy, scratch_bytes=1 << 16) as engine:
        engine.generate(prompts, Request(1, ignore_eos=True), on_logits=keep)
        found = engine.score([ScoredRow(row.token_ids, len(row.token_ids) - 1) for row in rows], keep_logits=True)
    for number, scored in enumerate(found.rows):
        assert scored.logits is not None
        np.testing.assert_array_equal(scored.logits[0], logits[number])


@settings(max_examples=settings.default.max_examples // 3)  # each example is several jobs
@given(jobs(), STORED, own.policies())
def test_budgets_are_kept_to_the_byte_and_one_byte_less_is_refused(
    model_file: Any, counting: Any, job: tuple[ModelSpec, list[ScoredRow]], stored: tuple[str, str], policy: Policy
) -> None:
    spec, rows = job
    path, port = model_file(spec, *stored), counting()
    policy = policy.changed(read_ahead_gib=policy.read_ahead_gib or 0)  # what is chosen is less where there is less
    first = score(path, rows, policy, backend=port)
    peak = first.stats.peak_bytes
    assert peak["device"] == port.peak["device"] + port.caps.scratch_bytes
    assert peak["host"] == port.peak["host"]
    assert not +port.live, "what was taken was not given back"
    exact = {"device_mem_gib": peak["device"] / GIB, "host_mem_gib": peak["host"] / GIB}
    again = score(path, rows, policy, backend=counting(), **exact)
    assert again.stats.peak_bytes == peak
    assert_same_bits(again, first)
    for tier in ("device", "host"):
        # Keeping expanded weights, then sharing them in a pass: a tighter budget can go without, one after the other.
        least, refusal = peak, None
        for _ in range(1 + 2 * first.stats.blocks):
            tight = {**exact, f"{tier}_mem_gib": (least[tier] - 1) / GIB}
            try:
                least = score(path, rows, policy, backend=counting(), **tight).stats.peak_bytes
            except CapacityError as error:
                refusal = str(error)
                break
        assert refusal is not None
        assert f"{tier} memory is too small by" in refusal


@settings(max_examples=8)
@given(jobs(), STORED, st.floats(0.05, 1.2), st.floats(0.05, 1.2))
def test_a_policy_chosen_from_budgets_fits_them_or_is_refused(
    model_file: Any, job: tuple[ModelSpec, list[ScoredRow]], stored: tuple[str, str], device: float, host: float
) -> None:
    spec, rows = job
    path = model_file(spec, *stored)
    rich = score(path, rows, Policy(rows_per_group=2, groups_per_block=3))
    budgets = {
        "device_mem_gib": max(1, int(rich.stats.peak_bytes["device"] * device)) / GIB,
        "host_mem_gib": max(1, int(rich.stats.peak_bytes["device"] * host)) / GIB,
    }
    try:
        found = score(path, rows, None, keep={"rows_per_group": 2}, **budgets)
    except CapacityError as error:
        assert "\n" not in str(error)  # noqa: PT017  it need not be raised
        return
    assert found.stats.peak_bytes["device"] <= budgets["device_mem_gib"] * GIB
    assert found.stats.peak_bytes["host"] <= budgets["host_mem_gib"] * GIB
    assert_same_bits(found, rich)


def test_no_cache_outlasts_its_layer_and_hidden_states_cross_once_per_stage_and_tile(model_file: Any) -> None:
    path = model_file(TILED)
    assert 2 < TILED.vocabulary / open_weight_file(path).tile_rows < 3
    rows = [ScoredRow((5, 6, 7, 8), 2), ScoredRow((9, 10), 1)]  # 3 + 1 tokens are fed, 2 + 1 scored
    everything = Policy.from_percent([0] * 6, rows_per_group=1, groups_per_block=2)
    found = score(path, rows, everything).stats
    assert not any("cache" in kinds for kinds in found.link_bytes.values())
    assert found.tier_bytes["cache"] == {"device": 3 * 2 * 32 * 4, "host": 0, "disk": 0}, "one layer of one group"
    fed, scored, token = 4, 3, 32 * 4
    stored = 3 * fed + scored  # after the embedding, two layers, and the first tile of the head
    assert found.link_bytes["host->disk"]["activations"] == stored * token
    read = 3 * fed + 2 * scored  # before two layers, and all three tiles
    assert found.link_bytes["disk->host"]["activations"] == read * token
    logits = scored * 600 * 4
    assert found.link_bytes["device->host"]["activations"] == stored * token + logits


@given(jobs(), STORED, own.policies(), st.integers(2, 100))
def test_the_most_probable_tokens_are_those_of_the_logits(
    model_file: Any, job: tuple[ModelSpec, list[ScoredRow]], stored: tuple[str, str], policy: Policy, top: int
) -> None:
    spec, rows = job
    found = score(model_file(spec, *stored), rows, policy, top=top)
    for row, scored in zip(rows, found.rows, strict=True):
        targets = np.array(row.token_ids[row.first :])
        assert scored.logits is not None
        expected = NextTokens(targets, min(top, spec.vocabulary))
        expected.push(0, 0, scored.logits)
        np.testing.assert_array_equal(scored.top_ids, expected.top_ids)
        np.testing.assert_array_equal(scored.greedy, scored.logits.argmax(1) == targets)


def test_a_listener_hears_of_every_tile_hidden_state_and_row(model_file: Any) -> None:
    rows = [ScoredRow((5, 6, 7, 8), 2), ScoredRow((9, 10), 1), ScoredRow((1, 2, 3), 1)]
    seen = np.full((5, 600), np.nan, np.float32)
    hidden: dict[tuple[str, int], Any] = {}
    done: list[int] = []

    def on_tile(first: int, first_id: int, logits: npt.NDArray[np.float32]) -> None:
        seen[first : first + len(logits), first_id : first_id + logits.shape[1]] = logits

    def on_hidden(stage: Any, numbers: npt.NDArray[np.int64], x: Any) -> None:
        assert x.shape == (len(numbers), 32)
        for row in np.unique(numbers):
            hidden[stage.name, int(row)] = x[numbers == row]

    path = model_file(TILED)
    with load(path, policy=Policy(rows_per_group=2)) as engine:
        found = engine.score(rows, keep_logits=True, listener=Listener(on_tile, on_hidden, done.append))
        alone: list[Any] = []
        engine.score(rows[2:], listener=Listener(on_hidden=lambda stage, numbers, x: alone.append(x)))
    np.testing.assert_array_equal(seen, np.concatenate([row.logits for row in found.rows if row.logits is not None]))
    assert hidden.keys() == {(stage, row) for stage in ("embed", "layer 0", "layer 1") for row in range(3)}
    np.testing.assert_allclose(hidden["layer 1", 2], alone[2], rtol=1e-4, atol=1e-5)
    assert done == [2, 1]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (ScoredRow((5, 6), 0), "row 1: of 2 tokens those from number 0 on cannot be scored"),
        (ScoredRow((5, 6), 2), "from number 2 on cannot be scored"),
        (ScoredRow((5,), 1), "of 1 tokens"),
        (ScoredRow((5, 90), 1), "token 90 is no id below 90"),
        (ScoredRow((-1, 5), 1), "token -1 is no id"),
        (ScoredRow((True, 5), 1), "token True is no id"),
        (ScoredRow((1,) * 42, 1), "42 tokens are too many: the model has 40 positions"),
    ],
)
def test_a_row_that_cannot_be_scored_is_refused_by_number(model_file: Any, row: ScoredRow, complaint: str) -> None:
    with load(model_file(ModelSpec("tiny", 90, 40, 32, 32, 2, 2, 64))) as engine:
        with pytest.raises(PromptError, match="row 1: ") as refused:
            engine.score([row])
        assert complaint in str(refused.value)
        assert engine.score([ScoredRow((1,) * 41, 40)]).scored_tokens == 1, "the last token needs no position"
        with pytest.raises(PromptError, match="there is no row"):
            engine.score([])


def test_a_port_that_computes_nothing_scores_nothing(model_file: Any) -> None:
    with load(model_file(TILED), backend="dry") as engine, pytest.raises(PolicyError, match="dry computes nothing"):
        engine.score([ScoredRow((1, 2))])


def test_logits_that_were_not_kept_have_no_distribution(model_file: Any) -> None:
    with load(model_file(TILED)) as engine:
        (scored,) = engine.score([ScoredRow((1, 2))]).rows
    assert scored.logits is None
    with pytest.raises(ValueError, match="not kept"):
        scored.distribution()


def test_a_failure_in_a_listener_gives_all_memory_back(model_file: Any, counting: Any) -> None:
    def fail(rows: int) -> None:
        raise FlexrefError("no")

    port = counting()
    with load(model_file(TILED), policy=Policy.from_percent([0] * 6), backend=port) as engine:
        with pytest.raises(FlexrefError, match="no"):
            engine.score([ScoredRow((1, 2))], listener=Listener(on_tile=lambda *_: fail(0)))
        assert engine.score([ScoredRow((1, 2))]).scored_tokens == 1
    assert not +port.live
