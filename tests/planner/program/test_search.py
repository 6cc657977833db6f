"""The search: pruned as it is, it finds what solving every pair finds, and its bounds are bounds."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flexref.architecture.published import published
from flexref.errors import CapacityError, PolicyError
from flexref.machine.machine import Machine
from flexref.machine.plain import plain_machine
from flexref.planner.program.lp import LinearProblem, solve
from flexref.planner.program.program import Program
from flexref.planner.program.search import TOLERANCE, Found, pairs_within, search
from flexref.planner.program.table import tabulated
from flexref.planner.program.task import Limits, Task
from flexref.testing.tasks import SMALL, machines, plain_task, tasks

SMALL_BOUND = Limits(rows_per_group_most=4, groups_most=3, rows=None)


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    """Bounds of a few pairs, for blocks or for a job; some keep one of both."""
    return Limits(
        rows_per_group_most=draw(st.integers(1, 4)),
        groups_most=draw(st.integers(1, 3)),
        rows=draw(st.none() | st.integers(1, 30)),
        rows_per_group=draw(st.none() | st.none() | st.integers(1, 7)),
        groups=draw(st.none() | st.none() | st.integers(1, 5)),
    )


def scores(machine: Machine, task: Task, within: Limits) -> dict[tuple[int, int], float]:
    """Seconds per token of every pair that fits, by solving all variants of each."""
    found: dict[tuple[int, int], float] = {}
    for rows_per_group, groups in zip(*pairs_within(within), strict=True):
        pair = int(rows_per_group), int(groups)
        table, _ = LinearProblem(machine, task, within, *pair).tabulated()
        for place in range(len(table.pairs)):
            optimum = Program(table, place).optimum()
            if optimum is not None:
                score = float(optimum.job_s / table.tokens[place])
                found[pair] = min(score, found.get(pair, np.inf))
    return found


def found_or_none(machine: Machine, task: Task, within: Limits, keep: int = 8) -> Found | None:
    try:
        return search(machine, task, within, keep=keep)
    except CapacityError:
        return None


@given(machines(), tasks(), limits(), st.integers(1, 3))
def test_it_finds_the_best_that_solving_every_pair_finds(
    machine: Machine, task: Task, within: Limits, keep: int
) -> None:
    every = scores(machine, task, within)
    found = found_or_none(machine, task, within, keep)
    assert (found is None) == (not every)
    assume(found is not None)
    assert found is not None
    pairs = [(solution.rows_per_group, solution.groups) for solution in found.solutions]
    assert len(set(pairs)) == len(pairs) == min(keep, len(every))
    best = sorted(every.values())
    for place, pair in enumerate(pairs):
        assert every[pair] <= best[place] / (1 - TOLERANCE) * (1 + 1e-9)
    told = [every[pair] for pair in pairs]
    assert told == sorted(told)
    assert found.solved + found.pruned == len(pairs_within(within)[0])


@pytest.mark.parametrize(("capacity", "link_per_s"), [((12 << 20, 40 << 20), 2e9), ((24 << 20, 60 << 20), 2e8)])
def test_of_many_pairs_it_leaves_out_none_that_is_better_than_its_tolerance(
    capacity: tuple[int, int], link_per_s: float
) -> None:
    machine = plain_machine(capacity_bytes=(*capacity, 1 << 40), link_per_s=link_per_s, disk_per_s=1e8)
    task, within = plain_task(attention_on="host"), Limits(14, 10, None)
    every, found = scores(machine, task, within), search(machine, task, within)
    told = [every[solution.rows_per_group, solution.groups] for solution in found.solutions]
    for score, best in zip(told, sorted(every.values()), strict=False):
        assert score <= best / (1 - TOLERANCE)
    assert found.solved <= 20


@given(machines(), tasks(), limits())
def test_a_solution_is_what_its_pair_alone_has(machine: Machine, task: Task, within: Limits) -> None:
    found = found_or_none(machine, task, within)
    assume(found is not None)
    assert found is not None
    best = found.solutions[0]
    alone = solve(machine, task, best.rows_per_group, best.groups, within)
    assert best.block_s == pytest.approx(alone.block_s, rel=1e-5)


@given(machines(), tasks(), limits(), st.data())
def test_duals_of_any_candidate_bound_all_others(
    machine: Machine, task: Task, within: Limits, data: st.DataObject
) -> None:
    table, _ = tabulated(machine, task, within, *pairs_within(within))
    places = st.integers(0, len(table.pairs) - 1)
    from_place, to_place = data.draw(places), data.draw(places)
    source, target = Program(table, from_place), Program(table, to_place).optimum()
    optimum = source.optimum()
    if optimum is None:
        excess = table.least_excess(source.shortage({}).duals)
        assert excess[from_place] > 0
        assert target is None or excess[to_place] <= 1e-7
    elif target is not None:
        assert table.least_s(optimum.duals)[to_place] <= target.job_s * (1 + 1e-6)
    if optimum is not None:
        assert table.least_s(optimum.duals)[from_place] == pytest.approx(optimum.job_s, rel=1e-5)


@given(machines(), tasks(), st.sampled_from(("device", "host", "disk")))
def test_a_bigger_budget_never_lowers_the_best_throughput(machine: Machine, task: Task, tier: str) -> None:
    before = found_or_none(machine, task, SMALL_BOUND)
    assume(before is not None)
    assert before is not None
    more = machine.with_capacity(tier, round(1.5 * machine.capacity_bytes[tier]) + (1 << 19))
    after = search(more, task, SMALL_BOUND)
    assert after.solutions[0].tokens_per_s >= before.solutions[0].tokens_per_s * (1 - TOLERANCE)


def test_pairs_are_complete_and_have_no_groups_without_rows() -> None:
    def listed(within: Limits) -> list[tuple[float, float]]:
        return sorted(zip(*(values.tolist() for values in pairs_within(within)), strict=True))

    assert len(listed(SMALL_BOUND)) == 12
    assert listed(replace(SMALL_BOUND, rows=3)) == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1)]
    assert listed(replace(SMALL_BOUND, rows_per_group=48)) == [(48, 1), (48, 2), (48, 3)]
    assert listed(replace(SMALL_BOUND, rows=3, rows_per_group=48, groups=7)) == [(48, 7)]


def test_the_last_block_counts_as_what_it_is() -> None:
    """Of 9 rows 8 fill a block and one is left over, which reads all weights again, as do 5 and 4, and 9 do not."""
    machine = plain_machine(capacity_bytes=(64 << 20, 1 << 30, 1 << 40), flops_per_s=1e13, memory_per_s=1e9)
    task, within = plain_task(), Limits(rows_per_group_most=9, groups_most=1, rows=9)
    score = scores(machine, task, within)
    assert min(score, key=lambda pair: score[pair]) == (9, 1)
    assert score[8, 1] == pytest.approx(score[5, 1], rel=0.05)
    assert score[4, 1] > 1.3 * score[5, 1]
    assert search(machine, task, within).solutions[0].rows_per_group == 9


def test_bounds_on_latency_and_disk_writes_are_kept_by_the_best() -> None:
    machine = plain_machine(capacity_bytes=(16 << 20, 8 << 20, 1 << 40))
    free = search(machine, plain_task(), SMALL_BOUND).solutions[0]
    bound_s = (free.block_s + solve(machine, plain_task(), 1, 1, SMALL_BOUND).block_s) / 2
    fast = search(machine, plain_task(), replace(SMALL_BOUND, max_block_s=bound_s)).solutions[0]
    assert fast.block_s <= bound_s * (1 + 1e-6)
    assert fast.tokens_per_s <= free.tokens_per_s
    with pytest.raises(PolicyError, match=r"a block of 1 row per group in 1 group takes at least"):
        search(machine, plain_task(), replace(SMALL_BOUND, max_block_s=1e-9))


def test_what_fits_nowhere_is_refused_for_the_pair_that_holds_least() -> None:
    machine = plain_machine(capacity_bytes=(1 << 10, 1 << 30, 1 << 40))
    with pytest.raises(CapacityError, match=r"device memory is too small by .*: 1 row per group in 1 group"):
        search(machine, plain_task(), SMALL_BOUND)


@pytest.mark.parametrize("stored", ["float16", "int4"])
@pytest.mark.parametrize("rows", [None, 1000])
def test_a_wide_bound_is_searched_with_few_programs(stored: str, rows: int | None) -> None:
    machine = plain_machine(
        link_per_s=12e9,
        disk_per_s=2e9,
        memory_per_s=320e9,
        flops_per_s=40e12,
        capacity_bytes=(16 << 30, 208 << 30, 1500 << 30),
    )
    task = plain_task(published("opt-175b"), stored=stored, prompt_tokens=512.0, prompt_tokens_most=512, new_tokens=32)
    found = search(machine, task, Limits(512, 64, rows))
    assert found.solved < 200
    assert found.solved + found.pruned == len(pairs_within(Limits(512, 64, rows))[0])
    assert len(found.solutions) == 8


def test_one_row_in_one_group_is_a_job_too() -> None:
    found = search(plain_machine(), plain_task(SMALL), Limits(512, 64, rows=1))
    assert [(solution.rows_per_group, solution.groups) for solution in found.solutions] == [(1, 1)]
