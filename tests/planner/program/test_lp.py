"""The linear program: its optimum is that of every placement, its duals tell the truth, and its refusals say why."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flexref.errors import CapacityError, PolicyError
from flexref.machine.machine import WEIGHT_FILE, HostSeconds, Machine
from flexref.machine.plain import plain_machine
from flexref.planner.program.blocks import ANYWHERE, ON_HOST
from flexref.planner.program.cost import HOST_ATTENTION, Costs
from flexref.planner.program.linear import SHARES, VARIABLES, Share
from flexref.planner.program.lp import LinearProblem, Solution, solve
from flexref.planner.program.program import Program
from flexref.planner.program.table import Table
from flexref.planner.program.task import Limits, Task
from flexref.testing.tasks import SMALL, all_shares, machines, plain_task, tasks
from flexref.units import KINDS, LINKS, TIERS

LIMITS = Limits(rows_per_group_most=16, groups_most=8, rows=None)
GIB = 1 << 30

pairs = st.tuples(st.integers(1, 8), st.integers(1, 4))


def shares_of(solution: Solution) -> dict[Share, float]:
    return all_shares(solution.weights, solution.cache, solution.activations, solution.host_attention_share)


def solved(machine: Machine, task: Task, pair: tuple[int, int], limits: Limits = LIMITS) -> Solution:
    """The solution; examples in which nothing fits are of no use."""
    try:
        return solve(machine, task, *pair, limits)
    except CapacityError:
        assume(False)
        raise


@given(machines(), tasks(), pairs)
def test_shares_lie_in_0_to_1_and_sum_to_1_and_fit(machine: Machine, task: Task, pair: tuple[int, int]) -> None:
    solution = solved(machine, task, pair)
    shares = shares_of(solution)
    assert all(0 <= share <= 1 for share in shares.values())
    for kind in KINDS:
        assert sum(shares[kind, tier] for tier in TIERS) == pytest.approx(1, abs=1e-9)
    for tier, capacity in machine.capacity_bytes.items():
        assert solution.held_bytes[tier] <= capacity * (1 + 1e-6) + 1
    assert solution.block_s == solution.prefill_s + solution.decode_s
    assert solution.tokens_per_s == pytest.approx(pair[0] * pair[1] * task.new_tokens / solution.block_s)


@given(machines(), tasks(), pairs)
def test_a_phase_takes_its_longest_term_or_their_sum(machine: Machine, task: Task, pair: tuple[int, int]) -> None:
    solution = solved(machine, task, pair)
    for phase, taken in (("prefill", solution.prefill_s), ("decode", solution.decode_s)):
        terms = solution.terms_s[phase]
        alone = {resource: taken_s for resource, taken_s in terms.items() if resource != HOST_ATTENTION}
        if task.overlap and HOST_ATTENTION in terms:  # visits wait for it
            assert taken >= max(alone.values()) * (1 - 1e-9)
            assert taken <= (sum(alone.values()) + terms[HOST_ATTENTION]) * (1 + 1e-9)
        elif task.overlap:
            assert taken == pytest.approx(max(terms.values()), rel=1e-9)
        else:
            links = sum(terms[link] for link in LINKS)
            alone["compute"] += terms.get(HOST_ATTENTION, 0.0)
            assert taken == pytest.approx(links + max(alone[unit] for unit in alone if unit not in LINKS), rel=1e-9)


STEPS = 4
"""The grid's shares are multiples of a quarter."""


def grid(in_place: tuple[float, float]) -> np.ndarray:
    """Every placement on the grid, (N, 10), with the least and the most that may be read in place and some between."""
    one_kind = [(a, b, STEPS - a - b) for a in range(STEPS + 1) for b in range(STEPS + 1 - a)]
    nine = np.array([sum(some, ()) for some in product(one_kind, repeat=len(KINDS))]) / STEPS
    away = sum(nine[:, SHARES.index(("cache", tier))] for tier in ("host", "disk"))
    parts = np.unique(np.linspace(*in_place, 1 + STEPS // 2))
    return np.vstack([np.column_stack([nine, part * away]) for part in parts])


def best_on_grid(table: Table, room: float) -> float:
    """The least seconds of a block on the grid, over all variants; `room`: how far bounds may be exceeded, as a share
    of what a step of every share moves."""
    best = np.inf
    for place, level in enumerate(table.waiting):
        points = grid(table.in_place)
        if level < ON_HOST:
            points = points[points[:, SHARES.index(("activations", "device"))] == 1]
        elif level < ANYWHERE:
            points = points[points[:, SHARES.index(("activations", "disk"))] == 0]
        alone = table.taken(np.array([place]))
        for over in alone.over.values():
            constant, row = over.vector()
            points = points[constant + points @ row <= room * np.abs(row).sum() / STEPS]
        if not len(points):
            continue
        phases = []
        for phase in (0, 1):
            rows = [row.full_s.vector() for row in alone.rows if row.phase == phase]
            phases.append(np.max([constant + points @ row for constant, row in rows], axis=0))
        best = min(best, float(np.min(phases[0] + phases[1])))
    return best


@given(machines(), tasks(), pairs)
def test_the_optimum_is_that_of_a_grid_up_to_its_steps(machine: Machine, task: Task, pair: tuple[int, int]) -> None:
    solution = solved(machine, task, pair)
    table, _ = LinearProblem(machine, task, LIMITS, *pair).tabulated()
    assert best_on_grid(table, 0.0) >= solution.block_s * (1 - 1e-6)
    # The optimum's nearest point of the grid differs by less than a step in every share.
    slack = sum(
        max(
            np.abs(row.full_s.taken(np.array([place])).vector()[1]).sum() / STEPS
            for row in table.rows
            if row.phase == phase
        )
        for phase, place in ((0, len(table.pairs) - 1), (1, len(table.pairs) - 1))
    )
    assert best_on_grid(table, 1.0) <= solution.block_s + slack * (1 + 1e-9)


def cheaper(machine: Machine) -> Machine:
    """The machine with half of every cost that the host has."""
    host = machine.host_s
    return machine.changed(
        host_s=HostSeconds(host.call / 2, host.submission / 2, host.visit / 2, host.choice / 2, host.choice_row / 2)
    )


BETTER = {
    **{
        f"more {tier} memory": lambda machine, tier=tier: machine.with_capacity(
            tier, round(1.3 * machine.capacity_bytes[tier]) + (1 << 18)
        )
        for tier in TIERS
    },
    **{
        f"faster {link}": lambda machine, link=link: machine.with_faster_link(link, 1e8)
        for link in (*LINKS, WEIGHT_FILE)
    },
    "less work on the host": cheaper,
}


@pytest.mark.parametrize("change", BETTER)
@given(machine=machines(), task=tasks(), pair=pairs)
def test_nothing_better_ever_lowers_the_optimum(
    change: str, machine: Machine, task: Task, pair: tuple[int, int]
) -> None:
    before = solved(machine, task, pair).tokens_per_s
    after = solve(BETTER[change](machine), task, *pair, LIMITS).tokens_per_s
    assert after >= before * (1 - 1e-6)


def test_copies_with_a_lower_fixed_cost_are_better() -> None:
    task = plain_task()
    capacity = (10 << 20, 1 << 30, 1 << 40)
    speeds = [
        solve(plain_machine(fixed_s=fixed_s, capacity_bytes=capacity), task, 4, 2, LIMITS).tokens_per_s
        for fixed_s in (1e-3, 1e-5, 1e-7)
    ]
    assert speeds == sorted(speeds)


@given(machines(), tasks(), pairs, st.sampled_from(TIERS), st.floats(1e-4, 0.1))
def test_duals_bracket_what_a_little_more_or_less_memory_does(
    machine: Machine, task: Task, pair: tuple[int, int], tier: str, share: float
) -> None:
    """A dual is a slope of a convex function: more room saves no more than it says, less room costs no less."""

    def seconds(capacity: float) -> float | None:
        table, _ = LinearProblem(machine.with_capacity(tier, round(capacity)), task, LIMITS, *pair).tabulated()
        optimum = Program(table, place).optimum()
        return None if optimum is None else optimum.block_s

    table, _ = LinearProblem(machine, task, LIMITS, *pair).tabulated()
    place = int(np.argmax(table.waiting))
    optimum = Program(table, place).optimum()
    assume(optimum is not None)
    assert optimum is not None
    now, capacity = optimum.block_s, machine.capacity_bytes[tier]
    change = round(share * capacity)
    slope = optimum.duals.over[f"{tier} memory"]
    more, less = seconds(capacity + change), seconds(capacity - change)
    assert more is not None
    allowed = 1e-5 * now
    assert now - more <= slope * change + allowed
    assert less is None or less - now >= slope * change - allowed


@given(machines(), tasks(), pairs, st.sampled_from((*LINKS, WEIGHT_FILE)))
def test_gains_of_a_faster_link_are_at_least_what_solving_again_finds_at_the_same_shares(
    machine: Machine, task: Task, pair: tuple[int, int], link: str
) -> None:
    solution = solved(machine, task, pair)
    faster = machine.with_faster_link(link, 1e3)
    again = solve(faster, task, *pair, LIMITS).tokens_per_s
    gain = solution.gain_per_gb_per_s[link] * 1e3 / 1e9
    assert again - solution.tokens_per_s >= gain * (1 - 1e-2) - 1e-6 * solution.tokens_per_s


def weights_bound() -> tuple[Machine, Task]:
    """A machine whose device has no room for all weights and whose link is what limits decode."""
    task = plain_task()
    held = sum(task.stage_bytes)
    capacity = held // 2 + (4 << 20), 1 << 30, 1 << 40
    return plain_machine(link_per_s=1e9, memory_per_s=1e12, flops_per_s=1e13, capacity_bytes=capacity), task


def test_duals_agree_with_solving_again() -> None:
    machine, task = weights_bound()
    now = solve(machine, task, 2, 2, LIMITS)
    assert now.binding == ("device memory", "host->device in decode") or set(now.binding) >= {
        "device memory",
        "host->device in decode",
    }
    more = machine.with_capacity("device", machine.capacity_bytes["device"] + 4096)
    per_gib = (solve(more, task, 2, 2, LIMITS).tokens_per_s - now.tokens_per_s) * GIB / 4096
    assert now.gain_per_gib["device"] == pytest.approx(per_gib, rel=0.02)
    assert now.gain_per_gib["host"] == now.gain_per_gib["disk"] == 0
    faster = machine.with_faster_link("host->device", 1e6)
    per_gb = (solve(faster, task, 2, 2, LIMITS).tokens_per_s - now.tokens_per_s) * 1e3
    assert now.gain_per_gb_per_s["host->device"] == pytest.approx(per_gb, rel=0.02)
    assert now.gain_per_gb_per_s[WEIGHT_FILE] == 0


@given(tasks(), pairs)
def test_what_costs_nothing_stays_near(task: Task, pair: tuple[int, int]) -> None:
    """Operators set both phases' time wherever things lie: they lie on the device, or else on the host."""
    task = replace(task, attention_on="device", overlap=True)
    idle = HostSeconds(1e-12, 1e-12, 1e-12, 1e-12, 1e-12)
    roomy = plain_machine(capacity_bytes=(1 << 40,) * 3, link_per_s=1e15, disk_per_s=1e15, flops_per_s=1e9)
    copies = {name: curve.scaled(1e-6) for name, curve in roomy.copies.items()}
    roomy = roomy.changed(host_s=idle, copies=copies)
    near = solve(roomy, task, *pair, LIMITS)
    assert all(share == (1.0 if tier == "device" else 0.0) for (_, tier), share in shares_of(near).items())
    assert not any("memory" in name for name in near.binding)
    assert set(near.gain_per_gib.values()) == {0.0}
    narrow = roomy.with_capacity("device", round(near.held_bytes["device"] - 0.3 * sum(task.stage_bytes)))
    away = solved(narrow, task, pair)
    assert away.block_s == pytest.approx(near.block_s, rel=1e-3)
    assert away.weights.disk == away.cache.disk == away.activations.disk == 0


def test_the_same_question_has_the_same_answer() -> None:
    machine, task = weights_bound()
    assert solve(machine, task, 3, 2, LIMITS) == solve(machine, task, 3, 2, LIMITS)


@pytest.mark.parametrize("tier", TIERS)
def test_a_refusal_names_the_capacity_and_what_it_lacks(tier: str) -> None:
    task = plain_task(replace(SMALL, layers=24))
    capacity = {"device": 10 << 20, "host": 8 << 20, "disk": 1 << 40, tier: 1 << 16}
    machine = plain_machine(capacity_bytes=tuple(capacity.values()))  # type: ignore[arg-type]
    with pytest.raises(
        CapacityError, match=rf"^{tier} memory is too small by .*4 rows per group in 2 groups"
    ) as caught:
        solve(machine, task, 4, 2, LIMITS)
    error = caught.value
    assert error.tier == tier
    assert sum(error.holders.values()) == pytest.approx(error.needed_bytes, rel=0.01)
    enough = machine.with_capacity(tier, round(error.needed_bytes * (1 + 1e-6)) + 1)
    solve(enough, task, 4, 2, LIMITS)
    less = machine.with_capacity(tier, round(error.needed_bytes * 0.999))
    with pytest.raises(CapacityError):
        solve(less, task, 4, 2, LIMITS)


@given(machines(), tasks(), pairs)
def test_what_is_refused_fits_where_every_tier_has_what_the_refusals_ask(
    machine: Machine, task: Task, pair: tuple[int, int]
) -> None:
    for _ in range(8):
        try:
            solve(machine, task, *pair, LIMITS)
            return
        except CapacityError as error:
            machine = machine.with_capacity(error.tier, round(error.needed_bytes * 1.001) + 1)
    pytest.fail("it is refused however much it gets")


def test_a_bound_on_latency_is_kept_or_refused_with_the_least_that_is_possible() -> None:
    machine, task = weights_bound()
    free = solve(machine, task, 4, 2, LIMITS)
    with pytest.raises(PolicyError, match=r"takes at least .* s, allowed are 1e-06 s") as caught:
        solve(machine, task, 4, 2, replace(LIMITS, max_block_s=1e-6))
    least = float(str(caught.value).split("at least ")[1].split(" s")[0])
    assert least == pytest.approx(free.block_s, rel=1e-3)
    kept = solve(machine, task, 4, 2, replace(LIMITS, max_block_s=free.block_s * 1.01))
    assert kept.block_s == pytest.approx(free.block_s)


def test_a_bound_on_disk_writes_is_kept_or_refused_with_the_least_that_is_possible() -> None:
    """The device has room for slots and weights, the host for some of the cache: the rest must be spilled."""
    task = plain_task(replace(SMALL, layers=24))
    machine = plain_machine(capacity_bytes=(10 << 20, 36 << 20, 1 << 40), link_per_s=1e9, disk_per_s=1e9)
    # Weights from disk are never an answer there.
    machine = machine.changed(copies={**machine.copies, WEIGHT_FILE: machine.copies[WEIGHT_FILE].scaled(1e3)})
    table, costs = LinearProblem(machine, task, LIMITS, 4, 2).tabulated()
    place = int(np.argmax(table.waiting))

    def written(solution: Solution) -> float:
        return costs.value(costs.disk_write_bytes, shares_of(solution), place)

    free = solve(machine, task, 4, 2, LIMITS)
    assert written(free) > 0
    tight = solve(machine, task, 4, 2, replace(LIMITS, max_disk_write_bytes=written(free) / 2))
    assert written(tight) == pytest.approx(written(free) / 2, rel=1e-6)
    assert "disk writes" in tight.binding
    assert tight.block_s > free.block_s
    small = machine.with_capacity("host", 8 << 20)
    with pytest.raises(PolicyError, match=r"write at least .* to disk, allowed are 1\.00 KiB"):
        solve(small, task, 4, 2, replace(LIMITS, max_disk_write_bytes=1024.0))


def test_disk_writes_of_a_job_are_those_of_all_its_blocks() -> None:
    task, machine = plain_task(), plain_machine()
    limits = replace(LIMITS, rows=20, max_disk_write_bytes=1e9)
    table, _ = LinearProblem(machine, task, limits, 4, 2).tabulated()
    everything = dict.fromkeys(VARIABLES, 0.0) | {("cache", "disk"): 1.0}
    written = table.over["disk writes"].at(everything)[-1] + 1e9
    assert written == 20 * task.spec.layers * (64 + 15) * task.record_bytes


def test_a_block_of_fewer_rows_is_counted_as_what_it_is() -> None:
    machine, task = weights_bound()
    few = solve(machine, task, 4, 4, replace(LIMITS, rows=6))
    blocks = LinearProblem(machine, task, replace(LIMITS, rows=6), 4, 4).tabulated()[1].blocks
    assert (blocks.rows[0], blocks.groups[0], blocks.rows_most[0]) == (6, 2, 4)
    assert few.block_s < solve(machine, task, 4, 4, LIMITS).block_s
    assert few.tokens_per_s == pytest.approx(6 * task.new_tokens / few.block_s)


def test_several_groups_may_share_expanded_matrices_where_there_is_room() -> None:
    task = plain_task(stored="int4")
    slow = plain_machine(capacity_bytes=(1 << 30,) * 3)
    products = {**slow.products, "int4": slow.products["int4"].scaled(20)}
    slow = slow.changed(products=products)
    roomy = solve(slow, task, 4, 4, LIMITS)
    without = solve(slow, replace(task, expanded_bytes=1 << 40), 4, 4, LIMITS)
    assert roomy.block_s < 0.7 * without.block_s
    assert isinstance(LinearProblem(slow, task, LIMITS, 4, 4).tabulated()[1], Costs)
