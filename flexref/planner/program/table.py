"""All candidates of a search as arrays, and lower bounds for all of them from the duals of one; it solves nothing.

Weak duality: take any multipliers (none below 0) for the rows of a linear program. The weighted sum of the rows, at the
shares that make it least, is never more than the program's optimum, so it is a lower bound. Multipliers that are
optimal for one candidate give good bounds for similar ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from flexref.machine.arrays import Numbers, numbers
from flexref.machine.machine import Machine
from flexref.planner.program.blocks import ANYWHERE, ON_DEVICE, ON_HOST, Blocks
from flexref.planner.program.cost import Costs
from flexref.planner.program.linear import IN_PLACE, Linear, Places, total
from flexref.planner.program.task import Limits, Task
from flexref.units import KINDS, TIERS

PHASES = ("prefill", "decode")

DISK_WRITES, LATENCY = "disk writes", "latency"


@dataclass(frozen=True)
class ProgramRow:
    """A row of the linear programs: phase number `phase` takes at least `full_s` seconds in a full block.

    `rest_s`: the same in the job's last, partial block. `resources` are those whose seconds are summed up.
    """

    phase: int
    resources: tuple[str, ...]
    full_s: Linear
    rest_s: Linear | None


@dataclass(frozen=True)
class Duals:
    """Multipliers, none below 0: for the rows of a full block (`rows`) and of the last, partial one (`rest_rows`); for
    each bound on bytes (`over`, by name), in seconds of a block per byte; and for the bound on a block's latency."""

    rows: Sequence[float]
    rest_rows: Sequence[float]
    over: Mapping[str, float]
    latency: float


@dataclass(frozen=True)
class Table:
    """N candidates: every variant of every pair of rows per group and groups.

    `over`: by name ("device memory", "disk writes"), bytes above the bound; a placement must keep them at most 0.
    `pairs`: (N,) the number of each candidate's pair. Its job takes `full_blocks` blocks and, maybe, a partial one;
    `blocks` counts that one as the share of rows it has. The job generates `tokens`. `in_place`: see `Task.in_place`.
    """

    rows: tuple[ProgramRow, ...]
    over: Mapping[str, Linear]
    latency_s: float | None
    waiting: npt.NDArray[np.int64]
    expanded: npt.NDArray[np.bool_]
    pairs: npt.NDArray[np.int64]
    full_blocks: Numbers
    blocks: Numbers
    tokens: Numbers
    in_place: tuple[float, float]

    def taken(self, places: Places) -> "Table":
        """A table of the candidates at `places` alone."""
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
        """(N,) a lower bound on the seconds of every candidate's job.

        In each phase the multipliers of `rows` must sum to 1 plus latency's, those of `rest_rows` to 1.
        """
        job = self._seconds(duals).times(self.full_blocks) + self._excess(duals).times(self.blocks)
        for row, weight in zip(self.rows, duals.rest_rows, strict=True):
            if weight and row.rest_s is not None:
                job = job + row.rest_s.times(weight)
        return self._least(job)

    def least_excess(self, duals: Duals) -> Numbers:
        """(N,) above 0 where not all bounds can be kept; in each phase `rows` must sum to latency's multiplier."""
        return self._least(self._seconds(duals) + self._excess(duals))

    def _excess(self, duals: Duals) -> Linear:
        return total(self.over[name].times(weight) for name, weight in duals.over.items() if weight)

    def _seconds(self, duals: Duals) -> Linear:
        terms = [row.full_s.times(weight) for row, weight in zip(self.rows, duals.rows, strict=True) if weight]
        if self.latency_s is not None and duals.latency:
            terms.append(Linear.fixed(-duals.latency * self.latency_s))
        return total(terms)

    def _least(self, sum_of: Linear) -> Numbers:
        """(N,) the least value over all shares that are allowed: put each kind of data on its cheapest tier."""
        value = np.broadcast_to(sum_of.constant, self.waiting.shape)
        for kind in KINDS:
            costs = [sum_of.by_share.get((kind, tier), numbers(0.0)) for tier in TIERS]
            if kind == IN_PLACE[0] and IN_PLACE in sum_of.by_share:
                more = np.minimum(*(share * sum_of.by_share[IN_PLACE] for share in self.in_place))
                costs = [costs[0], *(cost + more for cost in costs[1:])]
            if kind == "activations":
                allowed = (ON_DEVICE, ON_HOST, ANYWHERE)
                costs = [
                    np.where(self.waiting >= least, cost, np.inf) for least, cost in zip(allowed, costs, strict=True)
                ]
            value = value + np.minimum(np.minimum(costs[0], costs[1]), costs[2])
        return value


PER_CANDIDATE = ("waiting", "expanded", "pairs", "full_blocks", "blocks", "tokens")
"""Fields of `Table` with one value per candidate."""


def sized(
    rows_per_group: Numbers, groups: Numbers, rows: int | None
) -> tuple[Numbers, Numbers, Numbers, Numbers, Numbers]:
    """For each pair (rows of a full block, its groups, rows of its largest group, full blocks, rows of the last block).

    The last one is 0 where there is no partial block. `rows`: of the job; None: one full block.
    """
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
    """All variants of P pairs as a table, and the costs of their full blocks."""
    held, blocks, most, full_blocks, rest = sized(rows_per_group, groups, limits.rows)
    pairs, expanded, waiting = _variants(task, blocks)
    full = Costs(machine, task, Blocks.of(held[pairs], blocks[pairs], most[pairs], expanded, waiting))
    partial = None
    times = (rest > 0).astype(np.float64)
    if task.turnover is not None and limits.rows is not None:
        full_blocks, rest, times = task.turned_over(limits.rows, held)
    if rest.any():
        # Pairs without a partial block are computed with one row, and `times` multiplies the result by 0.
        counted = np.where(rest > 0, rest, 1.0)
        last_groups = np.ceil(counted / rows_per_group) if task.turnover is None else blocks  # rows leave all of them
        last_most = np.minimum(counted, rows_per_group)
        last = Blocks.of(counted[pairs], last_groups[pairs], last_most[pairs], expanded, waiting)
        partial = Costs(machine, task, last)
    table = Table(
        rows=tuple(_rows(full, partial, times[pairs])),
        over=_over(machine, limits, full, partial, (full_blocks[pairs], times[pairs])),
        latency_s=limits.max_block_s,
        waiting=waiting,
        expanded=expanded,
        pairs=pairs,
        full_blocks=full_blocks[pairs],
        blocks=(full_blocks + rest / held)[pairs],
        tokens=(held if limits.rows is None else np.full_like(held, limits.rows))[pairs] * task.row_tokens,
        in_place=task.in_place,
    )
    return table, full


def _variants(
    task: Task, blocks: Numbers
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """(number of its pair, whether matrices are expanded once, where hidden states may wait) of every candidate."""
    every = np.arange(len(blocks), dtype=np.int64)
    several = every[blocks > 1] if task.expanded_bytes else every[:0]
    pairs, expanded, waiting = [], [], []
    for some, is_expanded in ((every, False), (several, True)):
        for level in (ON_DEVICE, ON_HOST, ANYWHERE):
            pairs.append(some)
            expanded.append(np.full(len(some), is_expanded))
            waiting.append(np.full(len(some), level, np.int64))
    return np.concatenate(pairs), np.concatenate(expanded), np.concatenate(waiting)


def _rows(full: Costs, partial: Costs | None, times: Numbers) -> list[ProgramRow]:
    rows = []
    for number, phase in enumerate(PHASES):
        rest = None if partial is None else [term.times(times) for _, term in partial.rows(phase)]
        for place, (resources, term) in enumerate(full.rows(phase)):
            rows.append(ProgramRow(number, resources, term, None if rest is None else rest[place]))
    return rows


def _over(
    machine: Machine, limits: Limits, full: Costs, partial: Costs | None, counts: tuple[Numbers, Numbers]
) -> dict[str, Linear]:
    """What must stay at or below 0: by tier, bytes held less its capacity; bytes written to disk less their bound."""
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
