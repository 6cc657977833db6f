"""Candidates of a search as arrays: blocks of rows in groups, and the phases in which they run; it knows no machine."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from flexref.machine.arrays import Numbers, numbers
from flexref.planner.program.task import Task

ON_DEVICE, ON_HOST, ANYWHERE = 0, 1, 2
"""The slowest tier on which hidden states may wait between stages. It is part of a variant because slots and staging
are taken as soon as one group needs them."""


@dataclass(frozen=True)
class Phase:
    """`passes` passes that are alike: each feeds `new_tokens` of a row, and loads `past_tokens` of its cache (means).

    `prompts`: of the rows of a pass that also decodes, the share whose prompts, of `prompt_tokens`, are read in it.
    """

    name: str
    passes: float
    new_tokens: float
    past_tokens: float
    prompts: float = 0.0
    prompt_tokens: float = 0.0

    @property
    def decoding(self) -> bool:
        """Whether a pass feeds one token of a row, and attention reads its cache once (`durations.DECODE_TOKENS`)."""
        return self.new_tokens == 1


def phases(task: Task) -> tuple[Phase, Phase]:
    """(prefill, decode). Decode pass p, from 1 to new - 1, has prompt + p - 1 past tokens: their mean is taken.

    Where rows come and go there is no prefill: in every pass some rows' prompts are read while the others decode.
    """
    prompt, new = task.prompt_tokens, task.new_tokens
    if task.turnover is not None:
        passes = task.turnover.passes
        share = 1 / passes
        fed, past = share * prompt + (1 - share), (1 - share) * task.turnover.past_tokens
        return Phase("prefill", 0, prompt, 0.0), Phase("decode", passes, fed, past, share, prompt)
    return Phase("prefill", 1, prompt, 0.0), Phase("decode", new - 1, 1, prompt + max(0, new - 2) / 2)


@dataclass(frozen=True)
class Blocks:
    """N candidates: blocks of `rows` rows in `groups` groups, the largest of `rows_most` rows; (N,) each.

    `expanded`: matrices are expanded once for all groups. `waiting`: where hidden states may wait.
    """

    rows: Numbers
    groups: Numbers
    rows_most: Numbers
    expanded: npt.NDArray[np.bool_]
    waiting: npt.NDArray[np.int64]

    @classmethod
    def of(cls, rows: object, groups: object, rows_most: object, expanded: object, waiting: object) -> "Blocks":
        """From lists."""
        return cls(
            numbers(rows),
            numbers(groups),
            numbers(rows_most),
            np.asarray(expanded, np.bool_),
            np.asarray(waiting, np.int64),
        )

    @cached_property
    def _sizes(self) -> tuple[Numbers, npt.NDArray[np.intp]]:
        sizes, places = np.unique(self.rows / self.groups, return_inverse=True)
        return sizes, places

    @property
    def sizes(self) -> Numbers:
        """The distinct mean sizes of groups, (M,): curves are evaluated once for each of them."""
        return self._sizes[0]

    def spread(self, values: Numbers) -> Numbers:
        """Values for every size (M,) -> values for every candidate (N,)."""
        return values[self._sizes[1]] if values.ndim else values

    def taken(self, place: int) -> "Blocks":
        """The candidate at `place` alone."""
        some = slice(place, place + 1)
        return Blocks(self.rows[some], self.groups[some], self.rows_most[some], self.expanded[some], self.waiting[some])
