"""Candidates of a search side by side, and lower bounds for all of them from the duals of one; it solves nothing.

Weak duality: whatever multipliers the rows of a linear program are given, the least of the weighted sum over the shares
is no more than the program's optimum. Multipliers that are optimal for one candidate are good ones for its neighbours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from flexref.machine.arrays import Numbers, numbers
from flexref.machine.machine import TIERS, Machine
from flexref.planner.program.blocks import ANYWHERE, ON_DEVICE, ON_HOST, Blocks
from flexref.planner.program.cost import Costs
from flexref.planner.program.linear import KINDS, Linear, Places, total
from flexref.planner.program.task import Limits, Task

PHASES = ("prefill", "decode")

DISK_WRITES, LATENCY = "disk writes", "latency"


@dataclass(frozen=True)
class Row:
    """That a phase takes at least so many seconds: of a full block, and of the job's last, partial one."""

    phase: int
    resources: tuple[str, ...]
    full_s: Linear
    rest_s: Linear | None


@dataclass(frozen=True)
class Duals:
    """Multipliers, none below 0, of a job's seconds: of the rows of full blocks, and of its last one, each of which
    count for as many blocks as there are; of bytes that must not be exceeded, in seconds of a block; of latency."""

    rows: Sequence[float]
    rest_rows: Sequence[float]
    over: Mapping[str, float]
    latency: float


@dataclass(frozen=True)
class Table:
    """N candidates. `over`: bytes by which each may exceed its bound, at most 0: "device memory", "disk writes".

    `pairs` numbers pairs of rows per group and groups, of which there are variants; a job is `full_blocks` and, maybe,
    a partial one, as many rows as `blocks` have, and generates `tokens`.
    """

    rows: tuple[Row, ...]
    over: Mapping[str, Linear]
    latency_s: float | None
    waiting: npt.NDArray[np.int64]
    expanded: npt.NDArray[np.bool_]
    pairs: npt.NDArray[np.int64]
    full_blocks: Numbers
    blocks: Numbers
    tokens: Numbers

    def taken(self, places: Places) -> "Table":
        """The candidates at some places."""
        return replace(
            self,
            rows=tuple(
                replace(
                    row,
                    full_s=row.full_s.taken(places),
                    rest_s=None if row.rest_s is None else row.rest_s.taken(places),
                )
                for row in self.rows
            ),
            over={name: over.taken(places) for name, over in self.over.items()},
            **{name: getattr(self, name)[places] for name in PER_CANDIDATE},
        )

    def least_s(self, duals: Duals) -> Numbers:
        """(N,) seconds that every candidate's job takes at least.

        The multipliers of each phase's rows sum to 1 and latency's, those of its rows of the last block to 1.
        """
        job = self._seconds(duals).times(self.full_blocks) + self._excess(duals).times(self.blocks)
        for row, weight in zip(self.rows, duals.rest_rows, strict=True):
            if weight and row.rest_s is not None:
                job = job + row.rest_s.times(weight)
        return self._least(job)

    def least_excess(self, duals: Duals) -> Numbers:
        """(N,) if above 0, a candidate cannot keep all bounds: multipliers of rows sum to latency's."""
        return self._least(self._seconds(duals) + self._excess(duals))

    def _excess(self, duals: Duals) -> Linear:
        return total(self.over[name].times(weight) for name, weight in duals.over.items() if weight)

    def _seconds(self, duals: Duals) -> Linear:
        terms = [row.full_s.times(weight) for row, weight in zip(self.rows, duals.rows, strict=True) if weight]
        if self.latency_s is not None and duals.latency:
            terms.append(Linear.fixed(-duals.latency * self.latency_s))
        return total(terms)

    def _least(self, sum_of: Linear) -> Numbers:
        """The least value over all shares that are allowed: each kind is all on its cheapest tier."""
        value = np.broadcast_to(sum_of.constant, self.waiting.shape)
        for kind in KINDS:
            costs = [sum_of.by_share.get((kind, tier), numbers(0.0)) for tier in TIERS]
            if kind == "activations":
                allowed = (ON_DEVICE, ON_HOST, ANYWHERE)
                costs = [
                    np.where(self.waiting >= least, cost, np.inf) for least, cost in zip(allowed, costs, strict=True)
                ]
            value = value + np.minimum(np.minimum(costs[0], costs[1]), costs[2])
        return value


PER_CANDIDATE = ("waiting", "expanded", "pairs", "full_blocks", "blocks", "tokens")
"""Fields of a table with one value per candidate."""


def sized(
    rows_per_group: Numbers, groups: Numbers, rows: int | None
) -> tuple[Numbers, Numbers, Numbers, Numbers, Numbers]:
    """(rows of a full block, its groups, its largest group, full blocks, rows of the last block or 0) of pairs."""
    whole = rows_per_group * groups
    if rows is None:
        return whole, groups, rows_per_group, np.ones_like(whole), np.zeros_like(whole)
    held = np.minimum(whole, rows)
    return (
        held,
        np.ceil(held / rows_per_group),
        np.minimum(rows_per_group, held),
        np.maximum(1.0, rows // whole),
        np.where(whole < rows, rows % whole, 0.0),
    )


def tabulated(
    machine: Machine, task: Task, limits: Limits, rows_per_group: Numbers, groups: Numbers
) -> tuple[Table, Costs]:
    """All variants of pairs (P,) as a table, and the costs that it is made of."""
    held, blocks, most, full_blocks, rest = sized(rows_per_group, groups, limits.rows)
    pairs, expanded, waiting = _variants(task, blocks)
    full = Costs(machine, task, Blocks.of(held[pairs], blocks[pairs], most[pairs], expanded, waiting))
    partial = None
    if rest.any():
        # Where there is no partial block its seconds are those of a row, times nothing.
        counted = np.where(rest > 0, rest, 1.0)
        last_groups = np.ceil(counted / rows_per_group)
        last_most = np.minimum(counted, rows_per_group)
        last = Blocks.of(counted[pairs], last_groups[pairs], last_most[pairs], expanded, waiting)
        partial = Costs(machine, task, last)
    is_rest = (rest > 0)[pairs].astype(np.float64)
    table = Table(
        rows=tuple(_rows(full, partial, is_rest)),
        over=_over(machine, limits, full, partial, (full_blocks[pairs], is_rest)),
        latency_s=limits.max_block_s,
        waiting=waiting,
        expanded=expanded,
        pairs=pairs,
        full_blocks=full_blocks[pairs],
        blocks=(full_blocks + rest / held)[pairs],
        tokens=(held if limits.rows is None else np.full_like(held, limits.rows))[pairs] * task.new_tokens,
    )
    return table, full


def _variants(
    task: Task, blocks: Numbers
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """(pair, whether matrices are expanded once, where hidden states may wait) of every candidate."""
    every = np.arange(len(blocks), dtype=np.int64)
    several = every[blocks > 1] if task.expanded_bytes else every[:0]
    pairs, expanded, waiting = [], [], []
    for some, is_expanded in ((every, False), (several, True)):
        for level in (ON_DEVICE, ON_HOST, ANYWHERE):
            pairs.append(some)
            expanded.append(np.full(len(some), is_expanded))
            waiting.append(np.full(len(some), level, np.int64))
    return np.concatenate(pairs), np.concatenate(expanded), np.concatenate(waiting)


def _rows(full: Costs, partial: Costs | None, is_rest: Numbers) -> list[Row]:
    rows = []
    for number, phase in enumerate(PHASES):
        rest = None if partial is None else [term.times(is_rest) for _, term in partial.rows(phase)]
        for place, (resources, term) in enumerate(full.rows(phase)):
            rows.append(Row(number, resources, term, None if rest is None else rest[place]))
    return rows


def _over(
    machine: Machine, limits: Limits, full: Costs, partial: Costs | None, counts: tuple[Numbers, Numbers]
) -> dict[str, Linear]:
    """What must not exceed 0: held bytes less the capacity, by tier; spilled bytes less their bound."""
    over = {
        f"{tier} memory": total(full.held[tier].values()) + Linear.fixed(-float(machine.capacity_bytes[tier]))
        for tier in TIERS
    }
    if limits.max_disk_write_bytes is not None:
        written = full.disk_write_bytes
        if limits.rows is not None:
            written = written.times(counts[0])
            written = written if partial is None else written + partial.disk_write_bytes.times(counts[1])
        over[DISK_WRITES] = written + Linear.fixed(-limits.max_disk_write_bytes)
    return over
