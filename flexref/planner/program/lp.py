"""The shares that take least for given rows per group and groups: FlexGen's linear program (section 4.3)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flexref.machine.machine import COPIES, TIERS, Machine
from flexref.planner.program.cost import Costs
from flexref.planner.program.linear import KINDS, Linear, total
from flexref.planner.program.program import Optimum, Program
from flexref.planner.program.refusals import refusal
from flexref.planner.program.table import DISK_WRITES, LATENCY, PHASES, Duals, Table, tabulated
from flexref.planner.program.task import Limits, Task
from flexref.policy import Shares

GIB, GIGA = 1 << 30, 1e9

BINDING_SHARE = 1e-5
"""A constraint binds if its dual moves a block's seconds by more than this share; ties are broken with less."""

FASTER_BYTES_PER_S = 1e6
"""A link's gain is that of so much more, extended to a GB/s."""

SAME_SHARE = 1e-9
"""A variant is better only if it is so by more than this share: of equal ones the simplest is taken."""


@dataclass(frozen=True)
class Solution:
    """The best shares of rows per group and groups, and why no others are better.

    Seconds and tokens per second are those of a full block; `terms_s` says by phase and resource ("compute", links,
    "host" where operators are called ahead) what it is busy for, what works beside it included. `held_bytes` are the
    linear program's own count. `binding` names the constraints whose duals are not zero: "device memory",
    "host->device in decode", "latency", "disk writes". `gain_per_gib` (by tier) and `gain_per_gb_per_s` (by link, and
    "weight file") are the tokens per second that one more would bring, as far as the duals hold.
    """

    rows_per_group: int
    groups: int
    weights: Shares
    cache: Shares
    activations: Shares
    prefill_s: float
    decode_s: float
    block_s: float
    tokens_per_s: float
    terms_s: Mapping[str, Mapping[str, float]]
    held_bytes: Mapping[str, float]
    binding: tuple[str, ...]
    gain_per_gib: Mapping[str, float]
    gain_per_gb_per_s: Mapping[str, float]


@dataclass(frozen=True)
class Question:
    """One pair of rows per group and groups, on a machine, for a task, within limits."""

    machine: Machine
    task: Task
    limits: Limits
    rows_per_group: int
    groups: int

    def tabulated(self) -> tuple[Table, Costs]:
        """Its variants, and what they are made of."""
        pair = np.array([float(self.rows_per_group)]), np.array([float(self.groups)])
        return tabulated(self.machine, self.task, self.limits, *pair)


def solve(machine: Machine, task: Task, rows_per_group: int, groups: int, limits: Limits) -> Solution:
    """The shares that take the least seconds for a block; or, where the job's rows are known and its last block is a
    partial one, for all its blocks.

    Raises `CapacityError` if it does not fit however it is placed, naming the tier, what is missing and who holds what;
    `PolicyError` with the least that is possible if a bound on latency or disk writes cannot be kept.
    """
    question = Question(machine, task, limits, rows_per_group, groups)
    _, costs, place, optimum = best_variant(question)
    return solution(question, costs, place, optimum)


def best_variant(question: Question) -> tuple[Table, Costs, int, Optimum]:
    """A pair's variants, what they are made of, and of the best one the place and the optimum; see `solve`."""
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
        pair = f"{question.rows_per_group} rows per group in {question.groups} groups"
        raise refusal(table, costs, question.limits, pair)
    return table, costs, *best


def solution(question: Question, costs: Costs, place: int, optimum: Optimum) -> Solution:
    """What is to be said of an optimum: that of the candidate at `place` of the question's table."""
    shares, duals, rows = optimum.shares, optimum.duals, float(costs.blocks.rows[place])
    tokens_per_s = rows * question.task.new_tokens / optimum.block_s

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
        prefill_s=optimum.prefill_s,
        decode_s=optimum.decode_s,
        block_s=optimum.block_s,
        tokens_per_s=tokens_per_s,
        terms_s={phase: {resource: value(term) for resource, term in costs.seconds[phase].items()} for phase in PHASES},
        held_bytes={tier: value(total(costs.held[tier].values())) for tier in TIERS},
        binding=binding,
        gain_per_gib={tier: gain if f"{tier} memory" in binding else 0.0 for tier, gain in gains.items()},
        gain_per_gb_per_s={curve: saved * per_saved for curve, saved in _saved_s(costs, place, optimum).items()},
    )


def _phase_rows(costs: Costs, duals: Duals) -> list[tuple[str, tuple[str, ...], Linear, float]]:
    """(phase, resources, seconds, multiplier) of every row."""
    rows = [(phase, *row) for phase in PHASES for row in costs.rows(phase)]
    return [(*row, weight) for row, weight in zip(rows, duals.rows, strict=True)]


def _binding(costs: Costs, place: int, optimum: Optimum) -> tuple[str, ...]:
    """Names of the constraints that hold a block back: bounds, then what sets each phase's time."""
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

    The rows' seconds at the same shares on a machine whose link is a little faster, weighted by their duals.
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
