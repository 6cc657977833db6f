"""The best shares for given rows per group and groups, by FlexGen's linear program (section 4.3); no search over pairs.

A pair of rows per group and groups has several variants (hidden states may wait on device, host or disk; matrices are
expanded once for all groups or not). Each is a linear program; the fastest one is the pair's solution.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flexref.errors import how_many
from flexref.machine.machine import COPIES, Machine
from flexref.planner.program.cost import Costs
from flexref.planner.program.linear import IN_PLACE, Linear, Share, total
from flexref.planner.program.program import Optimum, Program
from flexref.planner.program.refusals import refusal
from flexref.planner.program.table import DISK_WRITES, LATENCY, PHASES, Duals, Table, tabulated
from flexref.planner.program.task import Limits, Task
from flexref.policy import Shares
from flexref.units import GIB, GIGA, KINDS, TIERS

BINDING_SHARE = 1e-5
"""A constraint counts as binding if, by its dual, it decides more than this share of a block's seconds. The solver
breaks ties with smaller amounts, which say nothing."""

FASTER_BYTES_PER_S = 1e6
"""The gain of one GB/s more is computed for this much more and scaled up: duals hold only nearby."""

SAME_SHARE = 1e-9
"""A variant must be better by more than this share to be taken: of equal ones the first, simplest, stays."""


@dataclass(frozen=True)
class Solution:
    """The best shares for a pair of rows per group and groups, and what keeps them from being better.

    Seconds and tokens per second are those of a full block, but for `job_s`, the whole job's, and tokens per second
    where rows come and go. `host_attention_share`: of the cache off the device, what attention on the host reads in
    place. `terms_s`: by phase, then by resource ("compute", the links, "host" on an asynchronous port and
    "host_attention" where it may be), the seconds for which it is busy, slowed down by the others. `held_bytes`: peak
    bytes by tier, as the linear program counts them. `binding`: names of the constraints whose duals are not zero, such
    as "device memory", "host->device in decode", "latency", "disk writes".
    `gain_per_gib` (by tier) and `gain_per_gb_per_s` (by link, and "weight file"): tokens per second gained by one more
    GiB or GB/s, by the duals, so exact only for small changes.
    """

    rows_per_group: int
    groups: int
    weights: Shares
    cache: Shares
    activations: Shares
    host_attention_share: float
    prefill_s: float
    decode_s: float
    block_s: float
    job_s: float
    tokens_per_s: float
    terms_s: Mapping[str, Mapping[str, float]]
    held_bytes: Mapping[str, float]
    binding: tuple[str, ...]
    gain_per_gib: Mapping[str, float]
    gain_per_gb_per_s: Mapping[str, float]


@dataclass(frozen=True)
class LinearProblem:
    """One pair of rows per group and groups, on a machine, for a task, within limits."""

    machine: Machine
    task: Task
    limits: Limits
    rows_per_group: int
    groups: int

    @property
    def whole_job(self) -> bool:
        """Whether tokens per second are the whole job's: a full block's say little where rows come and go, for it may
        have more places than the job can fill for long."""
        return self.task.turnover is not None and self.limits.rows is not None

    def tabulated(self) -> tuple[Table, Costs]:
        """Its variants as a table, and their costs."""
        pair = np.array([float(self.rows_per_group)]), np.array([float(self.groups)])
        return tabulated(self.machine, self.task, self.limits, *pair)


def solve(machine: Machine, task: Task, rows_per_group: int, groups: int, limits: Limits) -> Solution:
    """The shares of the fastest block; where the job's rows are known, of the fastest job with its last, partial block.

    Raises `CapacityError` if no placement fits, naming the tier, what is missing and who holds what; `PolicyError` with
    the least that is possible if a bound on latency or disk writes cannot be kept.
    """
    question = LinearProblem(machine, task, limits, rows_per_group, groups)
    _, costs, place, optimum = best_variant(question)
    return solution(question, costs, place, optimum)


def best_variant(question: LinearProblem) -> tuple[Table, Costs, int, Optimum]:
    """(table of the pair's variants, their costs, place of the best one, its optimum); raises what `solve` raises.

    A variant is not solved if its lower bound, from the duals of those before it, is no better than the best.
    """
    table, costs = question.tabulated()
    best: tuple[int, Optimum] | None = None
    bounds = np.zeros(len(table.pairs))
    for place in range(len(table.pairs)):
        if best is not None and bounds[place] >= best[1].job_s * (1 - SAME_SHARE):
            continue
        found = Program(table, place).optimum()
        if found is None:
            continue
        if best is None or found.job_s < best[1].job_s * (1 - SAME_SHARE):
            best = place, found
        bounds = np.maximum(bounds, table.least_s(found.duals))
    if best is None:
        pair = f"{how_many(question.rows_per_group, 'row')} per group in {how_many(question.groups, 'group')}"
        raise refusal(table, costs, question.limits, pair)
    return table, costs, *best


def solution(question: LinearProblem, costs: Costs, place: int, optimum: Optimum) -> Solution:
    """The `Solution` of an optimum, which is that of the candidate at `place` in the question's table."""
    shares, duals, rows = optimum.shares, optimum.duals, float(costs.blocks.rows[place])
    tokens_per_s = rows * question.task.row_tokens / optimum.block_s
    if question.whole_job:
        tokens_per_s = float(question.limits.rows or rows) * question.task.row_tokens / optimum.job_s

    def value(term: Linear) -> float:
        return costs.value(term, shares, place)

    # d(tokens / block_s) = tokens_per_s * (seconds that are saved) / block_s
    per_saved = tokens_per_s / optimum.block_s
    binding = _binding(costs, place, optimum)
    gains = {tier: duals.over[f"{tier} memory"] * GIB * per_saved for tier in TIERS}
    weights, cache, activations = (Shares(**{tier: shares[kind, tier] for tier in TIERS}) for kind in KINDS)
    return Solution(
        question.rows_per_group,
        question.groups,
        weights=weights,
        cache=cache,
        activations=activations,
        host_attention_share=_host_share(shares),
        prefill_s=optimum.prefill_s,
        decode_s=optimum.decode_s,
        block_s=optimum.block_s,
        job_s=optimum.job_s,
        tokens_per_s=tokens_per_s,
        terms_s={phase: {resource: value(term) for resource, term in costs.seconds[phase].items()} for phase in PHASES},
        held_bytes={tier: value(total(costs.held[tier].values())) for tier in TIERS},
        binding=binding,
        gain_per_gib={tier: gain if f"{tier} memory" in binding else 0.0 for tier, gain in gains.items()},
        gain_per_gb_per_s={curve: saved * per_saved for curve, saved in _saved_s(costs, place, optimum).items()},
    )


def _host_share(shares: Mapping[Share, float]) -> float:
    """Of the cache off the device, what is read in place; 0 where there is none."""
    off_device = sum(shares[IN_PLACE[0], tier] for tier in ("host", "disk"))
    return min(1.0, shares[IN_PLACE] / off_device) if off_device else 0.0


def _phase_rows(costs: Costs, duals: Duals) -> list[tuple[str, tuple[str, ...], Linear, float]]:
    """(phase, resources, seconds, dual) of every row of the linear program that bounds a phase's time."""
    rows = [(phase, *row) for phase in PHASES for row in costs.rows(phase)]
    return [(*row, weight) for row, weight in zip(rows, duals.rows, strict=True)]


def _binding(costs: Costs, place: int, optimum: Optimum) -> tuple[str, ...]:
    """Names of the constraints that bind: first bounds on bytes and latency, then what sets each phase's time."""
    shares, duals, names = optimum.shares, optimum.duals, []
    sizes = {f"{tier} memory": total(costs.held[tier].values()) for tier in TIERS}
    sizes[DISK_WRITES] = costs.disk_write_bytes
    for name, weight in duals.over.items():
        if weight * sizes[name].taken(np.array([place])).vector()[1].max() > BINDING_SHARE * optimum.block_s:
            names.append(name)
    if duals.latency > BINDING_SHARE:
        names.append(LATENCY)
    for phase, resources, seconds, weight in _phase_rows(costs, duals):
        if weight * costs.value(seconds, shares, place) > BINDING_SHARE * optimum.block_s:
            busy = (name for name in resources if costs.value(costs.seconds[phase][name], shares, place) > 0)
            names += [f"{name} in {phase}" for name in busy]
    return tuple(dict.fromkeys(names))


def _saved_s(costs: Costs, place: int, optimum: Optimum) -> dict[str, float]:
    """Seconds of a block that one more GB/s of each link (or of the weight file) saves.

    At the same shares, the rows' seconds are computed again on a machine whose link is a little faster; the duals weigh
    how much each row counts.
    """
    shares, saved = optimum.shares, dict.fromkeys(COPIES, 0.0)

    def weighted_s(of: Costs) -> float:
        rows = _phase_rows(of, optimum.duals)
        return sum(weight * of.value(seconds, shares, place) for _, _, seconds, weight in rows if weight > 0)

    now_s = weighted_s(costs)
    for curve in COPIES:
        mine = [flow for flow in costs.flows if flow.curve == curve]
        if any(costs.value(flow.moved_bytes(costs.blocks), shares, place) > 0 for flow in mine):
            faster = costs.machine.with_faster_link(curve, FASTER_BYTES_PER_S)
            less_s = now_s - weighted_s(costs.with_links_of(faster))
            saved[curve] = max(0.0, less_s) * GIGA / FASTER_BYTES_PER_S
    return saved
