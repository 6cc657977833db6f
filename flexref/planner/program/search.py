"""The best rows per group and groups up to a stated bound, by branch and bound over all pairs; it knows no engine.

A linear program that is solved gives, by weak duality, a lower bound on the seconds of every other candidate. If it has
no solution, it also shows which others have none. The candidate with the least bound is solved next, until no bound
that is left is below the best that was found. So the search is complete although few programs are solved.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from flexref.machine.arrays import Numbers
from flexref.machine.machine import Machine
from flexref.planner.program.blocks import Blocks
from flexref.planner.program.lp import LinearProblem, Solution, best_variant, solution
from flexref.planner.program.program import NEGLIGIBLE_EXCESS, Optimum, Program
from flexref.planner.program.table import Duals, Table, tabulated
from flexref.planner.program.task import Limits, Task

TOLERANCE = 0.005
"""The best that is returned may be worse than the best pair there is by at most this share of its seconds."""

KEPT = 8
"""Solutions that are returned by default."""

SURE_EXCESS = 10 * NEGLIGIBLE_EXCESS
"""A candidate is ruled out unsolved only if it exceeds its bounds by more than this share: well above the solver's own
tolerance."""

SHRINK_SHARE = 0.7
"""When at most this share of a table's candidates is still open, the others are dropped from it."""


@dataclass(frozen=True)
class Answer:
    """A candidate's optimum, and which variant of its pair it is. `score`: seconds per generated token of the job."""

    score: float
    optimum: Optimum
    expanded: bool
    waiting: int

    @classmethod
    def of(cls, table: Table, place: int, optimum: Optimum) -> "Answer":
        """The answer for the candidate at `place`."""
        score = float(optimum.job_s / table.tokens[place])
        return cls(score, optimum, bool(table.expanded[place]), int(table.waiting[place]))


@dataclass(frozen=True)
class Ranked:
    """A pair and its best answer; the whole `Solution` is computed when it is asked for."""

    question: LinearProblem
    answer: Answer

    @property
    def groups(self) -> int:
        """Groups of the pair."""
        return self.question.groups

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second of a full block: the same figure as the solution's."""
        if self.question.whole_job:
            return 1 / self.answer.score
        rows = self.question.rows_per_group * self.question.groups
        held = min(rows, self.question.limits.rows or rows)
        return held * self.question.task.row_tokens / self.answer.optimum.block_s

    @cached_property
    def solution(self) -> Solution:
        """The `Solution` of the pair's best variant."""
        _, costs = self.question.tabulated()
        blocks: Blocks = costs.blocks
        mine = (blocks.expanded == self.answer.expanded) & (blocks.waiting == self.answer.waiting)
        return solution(self.question, costs, int(np.argmax(mine)), self.answer.optimum)


@dataclass(frozen=True)
class Found:
    """The result of a search: the best pairs, best first; how many pairs were `solved`, and how many `pruned` unsolved.

    No pruned pair takes less than (1 - tolerance) times the seconds per token of the first pair in `ranked`; nor, if
    as many were found as were asked for, of the last.
    """

    ranked: tuple[Ranked, ...]
    solved: int
    pruned: int
    tolerance: float

    @property
    def solutions(self) -> tuple[Solution, ...]:
        """Their solutions, in that order."""
        return tuple(each.solution for each in self.ranked)


def search(machine: Machine, task: Task, limits: Limits, *, keep: int = KEPT) -> Found:
    """The best `keep` pairs within the limits, by seconds per generated token of the whole job.

    A last, partial block counts with the rows that it has. If no pair is possible, raises what `solve` raises for the
    smallest one.
    """
    rows_per_group, groups = pairs_within(limits)
    table, _ = tabulated(machine, task, limits, rows_per_group, groups)
    frontier = Frontier(table, keep)
    frontier.run()
    solved = len(frontier.solved)
    pruned = len(rows_per_group) - solved

    def asked(pair: int) -> LinearProblem:
        return LinearProblem(machine, task, limits, int(rows_per_group[pair]), int(groups[pair]))

    ranked = tuple(Ranked(asked(pair), frontier.found[pair]) for pair in frontier.best())
    if not ranked:
        least = int(np.lexsort((rows_per_group, groups))[0])
        # The smallest pair: either this raises, or it fits so tightly that it was lost to the solver's rounding.
        variants, _, place, optimum = best_variant(asked(least))
        ranked = (Ranked(asked(least), Answer.of(variants, place, optimum)),)
    return Found(ranked, solved, pruned, TOLERANCE)


def pairs_within(limits: Limits) -> tuple[Numbers, Numbers]:
    """(rows per group, groups) of every pair; where the job's rows are known, none that would have an empty group."""

    def choices(kept: int | None, most: int) -> Numbers:
        return np.arange(1, most + 1, dtype=np.float64) if kept is None else np.array([float(kept)])

    rows_per_group = choices(limits.rows_per_group, limits.rows_per_group_most)
    groups = choices(limits.groups, limits.groups_most)
    grid = np.meshgrid(rows_per_group, groups, indexing="ij")
    sizes, counts = grid[0].ravel(), grid[1].ravel()
    if limits.rows is None:
        return sizes, counts
    sensible = np.ones(len(sizes), np.bool_)
    if limits.rows_per_group is None:
        sensible &= sizes <= limits.rows
    if limits.groups is None:
        sensible &= counts <= np.ceil(limits.rows / sizes)
    return sizes[sensible], counts[sensible]


@dataclass
class Frontier:
    """The state of a search: the candidates that are still open, with lower bounds on their seconds per token."""

    table: Table
    keep: int
    found: dict[int, Answer] = field(default_factory=dict)
    """For each pair the best of its variants so far."""
    solved: set[int] = field(default_factory=set)
    """Pairs of which any variant was solved."""
    _scores: Numbers = field(init=False)
    _bounds: Numbers = field(init=False)
    _open: npt.NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self._open = np.ones(len(self.table.pairs), np.bool_)
        self._bounds = np.zeros(len(self.table.pairs))
        self._scores = np.full(self.table.pairs.max() + 1, np.inf)
        self._raise_bounds(compute_alone(self.table))

    def run(self) -> None:
        """Solve the open candidate with the least bound, until none is open."""
        while self._open.any():
            self._shrink()
            place = int(np.argmin(np.where(self._open, self._bounds, np.inf)))
            self._open[place] = False
            program = Program(self.table, place)
            self.solved.add(int(self.table.pairs[place]))
            optimum = program.optimum()
            if optimum is None:
                excess = self.table.least_excess(program.shortage({}).duals)
                self._open &= excess <= SURE_EXCESS
            else:
                self._note(place, optimum)
                self._raise_bounds(optimum.duals)
            self._prune()

    def best(self) -> list[int]:
        """The best pairs, best first; of equal ones the one with the lower number."""
        return sorted(self.found, key=lambda pair: (self.found[pair].score, pair))[: self.keep]

    def _note(self, place: int, optimum: Optimum) -> None:
        pair, answer = int(self.table.pairs[place]), Answer.of(self.table, place, optimum)
        if pair not in self.found or answer.score < self.found[pair].score:
            self.found[pair] = answer
            self._scores[pair] = answer.score

    def _raise_bounds(self, duals: Duals) -> None:
        self._bounds = np.maximum(self._bounds, self.table.least_s(duals) / self.table.tokens)

    def _prune(self) -> None:
        """Close candidates that cannot be among the best, and those that cannot beat a solved variant of their pair."""
        best = self.best()
        if len(best) == self.keep:
            self._open &= self._bounds < self.found[best[-1]].score * (1 - TOLERANCE)
        self._open &= self._bounds < self._scores[self.table.pairs]

    def _shrink(self) -> None:
        """Drop closed candidates from the table when they are many: bounds are computed for all in it."""
        if self._open.sum() <= SHRINK_SHARE * len(self._open):
            self.table, self._bounds = self.table.taken(self._open), self._bounds[self._open]
            self._open = np.ones(len(self._bounds), np.bool_)


def compute_alone(table: Table) -> Duals:
    """Multipliers that count each phase's operators alone: a lower bound to start with, before anything is solved."""
    rows, seen = [], set()
    for row in table.rows:
        first = "compute" in row.resources and row.phase not in seen
        rows.append(1.0 if first else 0.0)
        if first:
            seen.add(row.phase)
    return Duals(rows, rows, {}, 0.0)
