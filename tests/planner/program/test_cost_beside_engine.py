"""The cost model beside the engine: the bytes that it moves and holds, and the seconds that its simulation takes."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import StageKind
from flexref.backend.capabilities import Capabilities
from flexref.block.budgets import engine_needs, totals
from flexref.block.memory_plan import plan_block, record_layout
from flexref.block.rows import RowLengths
from flexref.block.workspace import Expansion, expanded_bytes, workspace_bytes
from flexref.check.models import write_model
from flexref.engine.request import Request
from flexref.loading import load
from flexref.machine.machine import Machine
from flexref.machine.plain import plain_machine
from flexref.planner.program.linear import total
from flexref.planner.program.task import Task
from flexref.planner.situation import Situation
from flexref.policy import Policy, Shares
from flexref.simulator.simulate import simulate
from flexref.storage.random_weights import random_file
from flexref.storage.weightfile import WeightFile
from flexref.testing.tasks import all_shares, block_costs, moved_bytes
from flexref.tiers.weights_plan import WeightsPlan
from flexref.units import ALIGNMENT_BYTES, Tier, slots_of

MACHINE = plain_machine()
DEVICE, HOST_SHARES, DISK = Shares(1, 0, 0), Shares(0, 1, 0), Shares(0, 0, 1)
CORNERS = (DEVICE, HOST_SHARES, DISK)

corners = st.sampled_from(CORNERS)


def task_of(file: WeightFile, machine: Machine, row: RowLengths, policy: Policy) -> Task:
    """The task of rows that are all alike, from the engine's own plans."""
    port, spec = machine.port, file.spec
    caps = Capabilities(port.compute_dtype, True, True, True, port.scratch_bytes, port.fused_rows)
    walk = WeightsPlan.of(file, HOST_SHARES, slots_of(policy.overlap))
    held = [workspace_bytes(spec, caps.compute_dtype, file.dtype, tokens, 1, True) for tokens in (512, 1024)]
    per_token = (held[1] - held[0]) / 512
    return Task(
        spec=spec,
        stored=file.dtype if file.scheme == "none" else file.scheme,
        dense=file.dtype,
        stage_bytes=tuple(plan.streamed_bytes for plan in walk.stages),
        stage_kinds=tuple(plan.stage.kind for plan in walk.stages),
        gathered_bytes=sum(tensor.nbytes for tensor, _ in walk.gathered),
        cache_scheme=policy.cache_scheme,
        record_bytes=record_layout(spec, policy, caps.compute_dtype).record_bytes,
        prompt_tokens=row.prompt_tokens,
        prompt_tokens_most=row.prompt_tokens,
        new_tokens=row.new_tokens,
        attention_on=policy.attention_on,
        overlap=policy.overlap,
        workspace_bytes_fixed=max(0, round(held[0] - per_token * 512)),
        workspace_bytes_per_token=per_token,
        expanded_bytes=expanded_bytes(file, caps),
    )


@given(
    policy=st.builds(
        Policy,
        weights=corners,
        cache=corners,
        activations=corners,
        rows_per_group=st.integers(1, 3),
        groups_per_block=st.integers(1, 3),
        overlap=st.booleans(),
        attention_on=st.sampled_from(("device", "host")),
        cache_scheme=st.sampled_from(("none", "int4")),
        cache_group_size=st.just(16),
    ),
    stored=st.sampled_from(("none", "int4")),
    prompt=st.integers(2, 9),
    new=st.integers(1, 7),
)
def test_bytes_per_link_are_those_that_the_engine_moves(
    tmp_path_factory: pytest.TempPathFactory, policy: Policy, stored: str, prompt: int, new: int
) -> None:
    """On the numpy port, everything of a kind on one tier; rows of the token table are not counted."""
    spec, rows, groups = ModelSpec("tiny", 90, 48, 32, 32, 3, 4, 64), policy.rows_per_group, policy.groups_per_block
    path = tmp_path_factory.getbasetemp() / f"{stored}.h5"
    if not path.exists():
        write_model(path, spec, scheme=stored, dtype="float16")
    prompts = [[token % spec.vocabulary for token in range(prompt)]] * (rows * groups)
    with load(str(path), policy=policy, scratch_bytes=1 << 16) as engine:
        stats = engine.generate(prompts, Request(new, ignore_eos=True)).stats
        task = task_of(engine.file, MACHINE, RowLengths(prompt, new), policy)
    found = block_costs(task, MACHINE, rows, groups, policy.activations)
    counted = Counter(
        moved_bytes(found, all_shares(policy.weights, policy.cache, policy.activations, policy.shares_attention))
    )
    table_rows = rows * groups * spec.embed_width * 2 * (prompt + new - 1)
    if policy.weights != DEVICE:
        counted["host->device", "weights"] += table_rows  # type: ignore[assignment]
    if policy.weights == DISK:
        counted["disk->host", "weights"] += table_rows  # type: ignore[assignment]
    real = Counter({(link, kind): size for link, kinds in stats.link_bytes.items() for kind, size in kinds.items()})
    # From the file come the bytes of tensors, to the device those of whole pages.
    unread = counted["disk->host", "weights"] - real["disk->host", "weights"]
    assert 0 <= unread <= new * len(task.stage_bytes) * ALIGNMENT_BYTES
    counted["disk->host", "weights"] -= unread
    assert +counted == pytest.approx(+real)


@given(weights=corners, cache=corners, activations=corners, attention_on=st.sampled_from(("device", "host")))
def test_peak_bytes_are_what_the_engine_plans_or_a_little_more(
    weights: Shares, cache: Shares, activations: Shares, attention_on: str
) -> None:
    spec = ModelSpec("medium", 8192, 512, 512, 512, 6, 8, 2048)
    file, rows, groups, row = random_file(spec), 6, 3, RowLengths(200, 20)
    policy = Policy(weights, cache, activations, rows, groups, attention_on=attention_on)
    port = MACHINE.port
    caps = Capabilities(port.compute_dtype, True, True, True, port.scratch_bytes, port.fused_rows)
    plan = WeightsPlan.of(file, policy.weights, slots_of(policy.overlap))
    block = plan_block(plan, caps, policy, [row] * (rows * groups), expansion=Expansion.PER_PASS)
    real = totals(iter([*engine_needs(caps), *plan.needs(), *block.needs()]))
    found = block_costs(task_of(file, MACHINE, row, policy), MACHINE, rows, groups, activations)
    for tier in Tier:
        held = found.value(
            total(found.held[tier.value].values()), all_shares(weights, cache, activations, policy.shares_attention), 0
        )
        assert real[tier] <= held + 2**17  # a few alignments
        assert held <= 1.1 * real[tier] + 2**17


def budgets_without_kept(
    file: WeightFile, machine: Machine, policy: Policy, rows: list[RowLengths]
) -> dict[Tier, int | None]:
    """Budgets without room to keep expanded weights: what costs are computed for, since room is not known to them."""
    port = machine.port
    caps = Capabilities(port.compute_dtype, True, True, True, port.scratch_bytes, port.fused_rows)
    plan = WeightsPlan.of(file, policy.weights, slots_of(policy.overlap))
    block = plan_block(plan, caps, policy, rows, expansion=Expansion.PER_PASS)
    needs = totals(iter([*engine_needs(caps), *plan.needs(), *block.needs()]))
    return {Tier.DEVICE: needs[Tier.DEVICE], Tier.HOST: None, Tier.DISK: None}


CORNERS_OF_ALL = tuple((corner,) * 3 for corner in CORNERS)

SIMULATED = ModelSpec("medium", 8192, 512, 512, 512, 6, 8, 2048)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("attention_on", ["device", "host"])
@pytest.mark.parametrize("scheme", ["none", "int4"])
@pytest.mark.parametrize("asynchronous", [True, False])
def test_seconds_are_nearly_those_of_the_simulator(
    overlap: bool, attention_on: str, scheme: str, asynchronous: bool
) -> None:
    """What the first load and gathered token rows add, and what does not hide, is little in so long a job."""
    file, row = random_file(SIMULATED, scheme=scheme), RowLengths(200, 20)
    machine = plain_machine(asynchronous=asynchronous, link_per_s=2e9)
    for weights, cache, activations in (CORNERS, (DEVICE,) * 3, (HOST_SHARES,) * 3, (HOST_SHARES, DEVICE, DEVICE)):
        policy = Policy(weights, cache, activations, 6, 4, overlap, attention_on=attention_on)
        real = simulate(file, machine, policy, [row] * 24, budgets_without_kept(file, machine, policy, [row] * 24))
        found = block_costs(task_of(file, machine, row, policy), machine, 6, 4, activations)
        shares = all_shares(weights, cache, activations, policy.shares_attention)
        told = [max(found.value(term, shares, 0) for _, term in found.rows(phase)) for phase in ("prefill", "decode")]
        assert told[0] == pytest.approx(real.prefill_s, rel=0.1)
        assert told[1] == pytest.approx(real.decode_s, rel=0.06 if overlap else 0.1)


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize(("rows", "link_per_s"), [(6, 1e9), (32, 2e9), (6, 4e9), (16, 4e9), (16, 8e9)])
def test_a_link_that_waits_for_layers_does_not_load_the_head_meanwhile(
    rows: int, link_per_s: float, asynchronous: bool
) -> None:
    """Half of what is loaded is the head's, which takes little time: neither link nor operators are the limit of all
    stages. Then the seconds are a bound, at most 12.5 % below the simulator's; each alone would be up to 23 %."""
    file, row = random_file(SIMULATED, scheme="int4"), RowLengths(40, 20)
    machine = plain_machine(asynchronous=asynchronous, link_per_s=link_per_s)
    policy, job = Policy(HOST_SHARES, DEVICE, DEVICE, rows, 4), [row] * (4 * rows)
    real = simulate(file, machine, policy, job, budgets_without_kept(file, machine, policy, job))
    found = block_costs(task_of(file, machine, row, policy), machine, rows, 4)
    shares = all_shares(HOST_SHARES, DEVICE, DEVICE)
    told_s = max(found.value(term, shares, 0) for _, term in found.rows("decode"))
    assert 0.875 <= told_s / real.decode_s <= 1.005


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("scheme", ["none", "int4"])
def test_seconds_of_rows_that_come_and_go_are_those_of_the_simulator(scheme: str, overlap: bool) -> None:
    """Where a link is the limit. Elsewhere they are less: a pass in which many prompts are read takes longer than the
    mean pass, and is not hidden by the link's mean."""
    draw = np.random.default_rng(3)
    pairs = zip(draw.integers(16, 200, 300).tolist(), draw.integers(1, 60, 300).tolist(), strict=True)
    file, rows = random_file(SIMULATED, scheme=scheme), [RowLengths(prompt, new) for prompt, new in pairs]
    machine = plain_machine(asynchronous=True, link_per_s=2e9)
    for shares, least in (((HOST_SHARES,) * 3, 0.9), ((DISK,) * 3, 0.9), ((HOST_SHARES, DEVICE, DEVICE), 0.7)):
        policy = Policy(*shares, 6, 4, overlap)
        real = simulate(file, machine, policy, rows, budgets_without_kept(file, machine, policy, rows))
        task = Situation(file, machine, rows, policy).task
        full, thin, _ = (float(each[0]) for each in task.turned_over(len(rows), np.array([24.0])))
        assert thin == 0
        found = block_costs(task, machine, 6, 4, shares[2])
        told_s = full * max(found.value(term, all_shares(*shares), 0) for _, term in found.rows("decode"))
        assert least <= told_s / (real.prefill_s + real.decode_s) <= 1.02


SCORED = ModelSpec("scored", 40000, 512, 512, 256, 8, 8, 1024)
"""Several tiles of the head, and a table that is narrower than the hidden states."""


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("rows", [3, 12])
def test_a_job_that_scores_is_counted_as_the_simulator_runs_it(overlap: bool, asynchronous: bool, rows: int) -> None:
    """Bytes of every link, bytes held, seconds; no cache is moved, none outlasts a layer, and logits come in pieces."""
    machine = plain_machine(asynchronous=asynchronous, link_per_s=2e9)
    file, row, groups = random_file(SCORED), RowLengths(400, 1, 300), 3
    job = [row] * (rows * groups)
    for weights, cache, activations in (
        *CORNERS_OF_ALL,
        (HOST_SHARES, DISK, DEVICE),
        (DEVICE, HOST_SHARES, HOST_SHARES),
    ):
        policy = Policy(weights, cache, activations, rows, groups, overlap, read_ahead_gib=0.0)  # as the program
        task = Situation(file, machine, job, policy).task
        assert task.scoring is not None
        assert task.stage_kinds.count(StageKind.HEAD) > 1
        real = simulate(file, machine, policy, job, dict.fromkeys(Tier))
        found, shares = (
            block_costs(task, machine, rows, groups, activations),
            all_shares(weights, cache, activations, policy.shares_attention),
        )
        moved = {key: size for key, size in moved_bytes(found, shares).items() if size and key[1] != "weights"}
        told = {(link, kind): size for link, kinds in real.link_bytes.items() for kind, size in kinds.items()}
        assert moved == pytest.approx({key: size for key, size in told.items() if key[1] != "weights"})
        loading = {**dict.fromkeys(Tier, 0), Tier.HOST: WeightsPlan.of(file, weights, 2).loading_beside_bytes}
        for tier in Tier:
            held = found.value(total(found.held[tier.value].values()), shares, 0)
            # Weights load beside a block only where there is room for both: their places are in the peak alone.
            assert real.peak_bytes[tier.value] <= held + loading[tier] + 2**17
            assert held + loading[tier] <= 1.1 * real.peak_bytes[tier.value] + 2**17
        told_s = max(found.value(term, shares, 0) for _, term in found.rows("prefill"))
        assert told_s == pytest.approx(real.prefill_s, rel=0.15)
        assert real.decode_s == 0
        assert all(found.value(term, shares, 0) == 0 for _, term in found.rows("decode"))
