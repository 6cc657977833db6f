"""Plans: what is returned fits and runs within its budgets, and says why it was chosen."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.block.counted_rows import CountedRows
from flexref.block.rows import RowLengths
from flexref.block.tracing.trace import Trace
from flexref.engine.request import Request
from flexref.errors import CapacityError, PolicyError, PromptError, StorageError
from flexref.loading import load
from flexref.machine.machine import Machine
from flexref.machine.plain import plain_machine
from flexref.planner.candidates import questions
from flexref.planner.choose import Choice, choose_policy
from flexref.planner.fitting import fitted, solutions_of
from flexref.planner.pareto import pareto
from flexref.planner.plan import plan
from flexref.planner.plan_request import PlanRequest
from flexref.planner.situation import Situation, rounded
from flexref.policy import WEIGHT_SCHEMES, Policy, Shares
from flexref.simulator.simulate import simulate
from flexref.testing import strategies as own
from flexref.units import Tier

MIB = 1 << 20
SCRATCH_BYTES = 1 << 16
ALL_IN_LENGTHS = {"prompt_tokens": None, "new_tokens": None, "rows": None}
SMALL_MODEL = ModelSpec("small", 300, 64, 64, 128, 2, 4, 64)


def machine_with(device: int, host: int, disk: int = 1 << 34, **rates: Any) -> Machine:
    """A machine like the numpy port of these tests."""
    machine = plain_machine(capacity_bytes=(device, host, disk), asynchronous=False, **rates)
    port = machine.port
    return machine.changed(port=type(port)("numpy", "float32", False, True, True, SCRATCH_BYTES, 0))


@dataclass(frozen=True)
class Case:
    """A model, how it is stored, budgets, and a job."""

    spec: ModelSpec
    scheme: str
    budgets: dict[str, float]
    rows: list[list[int]]
    new_tokens: int
    keep: dict[str, Any]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    spec = draw(own.specs())
    prompts = draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    rows = [[(token + row) % spec.vocabulary for token in range(length)] for row, length in enumerate(prompts)]
    budgets = {
        "device_mem_gib": draw(st.integers(200, 3000)) / MIB,
        "host_mem_gib": draw(st.integers(200, 6000)) / MIB,
    }
    keep = draw(st.fixed_dictionaries({}, optional={"cache_scheme": st.just("int4"), "overlap": st.just(False)}))
    return Case(spec, draw(st.sampled_from(["none", "int4", "int8"])), budgets, rows, draw(st.integers(1, 5)), keep)


@given(case=cases())
def test_a_policy_that_is_chosen_runs_within_its_budgets(model_file: Any, case: Case) -> None:
    """For random machines and models; where nothing fits, the tier that is too small is named."""
    path = model_file(case.spec, case.scheme, "float16")
    with load(path, keep=case.keep, scratch_bytes=SCRATCH_BYTES, **case.budgets) as engine:
        try:
            stats = engine.generate(case.rows, Request(case.new_tokens, ignore_eos=True)).stats
        except CapacityError as error:
            refused: str | None = error.tier
        else:
            refused = None
            for tier in ("device", "host"):
                assert stats.peak_bytes[tier] <= case.budgets[f"{tier}_mem_gib"] * (1 << 30)
            assert all(getattr(stats.policy, name) == value for name, value in case.keep.items())
    assert refused in (None, "device", "host")


@settings(max_examples=8)
@given(
    device=st.integers(2, 400),
    host=st.integers(1, 400),
    rows=st.integers(1, 40),
    cache_scheme=st.sampled_from(["none", "int4"]),
    attention_on=st.sampled_from(["device", "host"]),
    steady=st.booleans(),
)
def test_a_fitted_policy_fits_to_the_byte(
    device: int, host: int, rows: int, cache_scheme: str, attention_on: str, steady: bool
) -> None:
    machine = machine_with(device * MIB, host * MIB)
    wanted = PlanRequest(32, 8, None if steady else rows, ("int4",), (cache_scheme,), (attention_on,))
    (question,) = questions("125m", machine, wanted)
    situation, limits = question.situation, question.limits
    try:
        solutions, _ = solutions_of(situation, limits)
    except CapacityError:
        return
    for solution in solutions:
        found = fitted(situation, solution, limits)
        if found is not None:
            held = situation.held_bytes(found[0])
            assert all(held[tier] <= machine.capacity_bytes[tier.value] for tier in Tier)
            assert found[0].rows_per_group == solution.rows_per_group


@given(device=st.floats(0, 1), host=st.floats(0, 1))
def test_rounded_shares_sum_to_one(device: float, host: float) -> None:
    host *= 1 - device
    shares = rounded(Shares(device, host, max(0.0, 1 - device - host)))
    assert shares.device == pytest.approx(device, abs=1e-6)
    assert shares.host == pytest.approx(host, abs=2e-6)


SMALL = machine_with(300 * MIB, 2048 * MIB)


def test_a_plan_says_what_was_chosen_from_what_and_why() -> None:
    found = plan("125m", SMALL, PlanRequest(64, 8))
    best = found.best
    assert best.policy is not None
    assert best.prediction is not None
    assert best.prediction.simulated
    assert best.prediction.peak_bytes["device"] <= 300 * MIB
    assert len(found.candidates) == 8
    rates = [candidate.prediction.tokens_per_s for candidate in found.candidates if candidate.prediction is not None]
    assert best.prediction.tokens_per_s >= max(rates) * 0.7
    values = found.to_json()
    assert Policy.from_mapping(values["policy"]) == best.policy
    assert {"prefill_s", "decode_s", "tokens_per_s", "peak_bytes", "binding"} <= set(values["predicted"])
    assert len(values["one_more"]) == 8
    assert found.binding


def test_where_device_and_host_are_one_memory_noise_moves_no_cache_to_the_host() -> None:
    """A profile in which attention on the device was disturbed, and on the host was not."""
    noisy = machine_with(8192 * MIB, 8192 * MIB)
    noisy = noisy.changed(
        **{
            kind: {key: curve.scaled(30 if "device" in key else 1) for key, curve in getattr(noisy, kind).items()}
            for kind in ("decode_attention", "prefill_attention")
        }
    )
    chosen = []
    for one_memory in (False, True):
        machine = noisy.changed(port=replace(noisy.port, one_memory=one_memory))
        found = plan("125m", machine, PlanRequest(64, 32, 8, weights_schemes=("none",), cache_schemes=("none",)))
        (question, *_) = questions("125m", machine, PlanRequest(64, 32, 8, ("none",), ("none",)))
        kept = {"row_invariant": False}  # where rows have bits of their own the host is not thought of
        choice = Choice(question.situation.file, machine, BUDGETS, [RowLengths(64, 32)] * 8, kept)
        chosen.append((found.best.policy, choose_policy(choice)))
    for policy in chosen[0]:
        assert policy is not None
        assert policy.attention_on == "host"
    for policy in chosen[1]:
        assert policy is not None
        assert (policy.attention_on, policy.cache) == ("device", Shares())


BUDGETS = {Tier.DEVICE: 8192 * MIB, Tier.HOST: 8192 * MIB, Tier.DISK: None}


def test_what_one_more_brings_is_never_a_loss() -> None:
    found = plan("125m", SMALL, PlanRequest(64, 8, weights_schemes=("none",), cache_schemes=("none",)))
    assert all(entry.from_duals >= 0 for entry in found.one_more)
    assert all(entry.solved_again >= -1e-6 for entry in found.one_more)


def test_a_bound_on_latency_is_kept_by_the_simulator_too() -> None:
    free = plan("125m", SMALL, PlanRequest(64, 8, attention_on=("device",)))
    assert free.best.prediction is not None
    block_s = (free.best.prediction.prefill_s + free.best.prediction.decode_s) / 4
    bound = plan("125m", SMALL, PlanRequest(64, 8, attention_on=("device",), max_latency_s=block_s)).best
    assert bound.prediction is not None
    assert bound.prediction.prefill_s + bound.prediction.decode_s <= block_s
    assert bound.prediction.tokens_per_s <= free.best.prediction.tokens_per_s * 1.001


def test_a_bound_that_no_policy_keeps_says_what_is_possible() -> None:
    with pytest.raises(PolicyError, match=r"takes at least .* s, allowed are"):
        plan("125m", SMALL, PlanRequest(64, 8, max_latency_s=1e-6))


def test_a_machine_that_is_too_small_is_told_by_how_much() -> None:
    tiny = machine_with(MIB, MIB, MIB)
    with pytest.raises(CapacityError) as caught:
        plan("125m", tiny, PlanRequest(64, 8))
    assert caught.value.tier in ("device", "host", "disk")


@pytest.mark.parametrize("scheme", ["none", "int4", "int4-mse", "int8"])
def test_a_file_is_planned_as_it_holds_its_weights(model_file: Any, scheme: str) -> None:
    path, layout = model_file(SMALL_MODEL, scheme, "float16"), WEIGHT_SCHEMES[scheme]
    for asked in (None, (layout,)):
        found = plan(path, SMALL, PlanRequest(16, 4, weights_schemes=asked, attention_on=("device",)))
        assert {candidate.weights_scheme for candidate in found.candidates} == {layout}
    (other, *_) = {"none", "int4", "int8"} - {layout}
    stored = "float16" if layout == "none" else layout
    with pytest.raises(PolicyError, match=f"holds {stored} weights, asked for: {other}"):
        plan(path, SMALL, PlanRequest(16, 4, weights_schemes=(other,)))


def test_what_has_no_place_for_its_tokens_is_refused() -> None:
    with pytest.raises(PromptError, match="2048 positions"):
        plan("125m", SMALL, PlanRequest(2048, 8))
    with pytest.raises(StorageError, match="neither a weight file nor the size"):
        plan("no-such-model", SMALL, PlanRequest(8, 8))


def test_a_job_that_may_write_nothing_to_disk_writes_nothing() -> None:
    cramped = machine_with(100 * MIB, 60 * MIB)
    found = plan("125m", cramped, PlanRequest(64, 8, 64, ("int4",), ("none",), ("device",), max_disk_writes_gib=0.0))
    assert found.best.prediction is not None
    assert found.best.prediction.disk_write_bytes == 0
    assert found.best.prediction.rows == 64


def test_the_points_of_a_pareto_front_rise() -> None:
    points = pareto("125m", SMALL, PlanRequest(64, 8, weights_schemes=("int4",), attention_on=("device",)))
    rates = [candidate.prediction.tokens_per_s for _, candidate in points if candidate.prediction is not None]
    assert len(rates) >= 3
    assert rates == pytest.approx(sorted(rates), rel=0.05)  # the simulator may see near ties the other way round


def test_a_trace_of_a_plan_holds_its_first_block(tmp_path: Path) -> None:
    with Trace(tmp_path / "trace.json") as trace:
        plan("125m", SMALL, PlanRequest(16, 4, weights_schemes=("int4",), attention_on=("device",)), trace=trace)
    events = json.loads((tmp_path / "trace.json").read_text())
    assert {event.get("cat") for event in events} >= {"compute"}


def test_ragged_rows_are_planned_for_their_longest() -> None:
    (question,) = questions("125m", SMALL, PlanRequest(64, 8, 3, ("int4",), ("none",), ("device",)))
    ragged = Situation(question.situation.file, SMALL, [RowLengths(5, 8), RowLengths(60, 2)], question.situation.base)
    assert ragged.task.prompt_tokens_most == 60
    assert ragged.task.new_tokens == 8


def test_rows_that_are_alike_are_planned_alike_however_they_are_given() -> None:
    only = {"weights_schemes": ("int4",), "cache_schemes": ("none",), "attention_on": ("device",)}
    lengths = CountedRows.of([RowLengths(16, 4)] * 9)
    found = plan("125m", SMALL, PlanRequest(lengths=lengths, **only)).to_json()
    expected = plan("125m", SMALL, PlanRequest(16, 4, 9, **only)).to_json()
    assert found.pop("wanted") == {**expected.pop("wanted"), **ALL_IN_LENGTHS, "lengths": lengths.summary.to_json()}
    assert found == expected


@pytest.mark.parametrize("beside", [{"prompt_tokens": 3}, {"new_tokens": 3}, {"rows": 3}])
def test_lengths_take_the_place_of_equal_rows(beside: dict[str, int]) -> None:
    lengths = CountedRows.of([RowLengths(16, 4), RowLengths(2, 3)])
    with pytest.raises(PolicyError, match=f"^{next(iter(beside))} and lengths exclude each other"):
        PlanRequest(lengths=lengths, **beside)
    if "rows" not in beside:
        with pytest.raises(PolicyError, match=r"^needed prompt_tokens and new_tokens, or lengths$"):
            PlanRequest(**beside)
    (question, *_) = questions("125m", SMALL, PlanRequest(lengths=lengths))
    assert (question.situation.rows, question.situation.steady) == (lengths, False)
    too_long = CountedRows.of([RowLengths(16, 4), RowLengths(2000, 100)])
    with pytest.raises(PromptError, match="2100 tokens: the model has 2048 positions"):
        plan("125m", SMALL, PlanRequest(lengths=too_long))


def test_a_job_that_scores_is_planned_without_caches_that_nothing_reads() -> None:
    """Blocks are larger than the caches of all layers would allow, and fit."""
    (question,) = questions("125m", SMALL, PlanRequest(512, 1, 1, ("none",), ("none",), ("device",)))
    file, budgets = question.situation.file, {Tier.DEVICE: 512 * MIB, Tier.HOST: 64 * MIB, Tier.DISK: None}
    rows = [RowLengths(512, 1, 256)] * 64
    policy = choose_policy(Choice(file, SMALL, budgets, rows, {}))
    found = simulate(file, SMALL, policy, rows, budgets)
    assert found.peak_bytes["device"] <= 512 * MIB
    whole = policy.rows_per_block * 512 * question.situation.task.record_bytes * file.spec.layers
    weights = sum(question.situation.task.stage_bytes)
    assert policy.weights.device * weights + whole > (512 + 64) * MIB
    assert found.link_bytes["device->host"].keys() == {"activations"}
