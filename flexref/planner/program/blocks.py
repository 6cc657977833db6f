"""Candidates of a search as arrays: blocks of rows in groups, and the phases in which they run; it knows no machine."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from flexref.machine.arrays import Numbers, numbers
from flexref.planner.program.task import Task

ON_DEVICE, ON_HOST, ANYWHERE = 0, 1, 2
"""Where hidden states may wait between stages: slots and staging are taken whole, however few groups need them."""


@dataclass(frozen=True)
class Phase:
    """Passes that are alike: a row brings `new_tokens`, with `past_tokens` in its cache, the mean over the passes."""

    name: str
    passes: float
    new_tokens: float
    past_tokens: float

    @property
    def decoding(self) -> bool:
        """Whether a row brings one token, and attention reads its cache once (see `durations.DECODE_TOKENS`)."""
        return self.new_tokens == 1


def phases(task: Task) -> tuple[Phase, Phase]:
    """(prefill, decode). Pass p of decode finds prompt + p - 1 tokens, p from 1 to new - 1: prompt + (new - 2) / 2."""
    prompt, new = task.prompt_tokens, task.new_tokens
    return Phase("prefill", 1, prompt, 0.0), Phase("decode", new - 1, 1, prompt + max(0, new - 2) / 2)


@dataclass(frozen=True)
class Blocks:
    """N candidates: `rows` in all, in `groups`, the largest of `rows_most`; (N,) each.

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
        """Every number of rows per group (their mean in a block), once: what curves are asked for."""
        return self._sizes[0]

    def spread(self, values: Numbers) -> Numbers:
        """Values by size, as one per candidate."""
        return values[self._sizes[1]] if values.ndim else values

    def taken(self, place: int) -> "Blocks":
        """The candidate at `place` alone."""
        some = slice(place, place + 1)
        return Blocks(self.rows[some], self.groups[some], self.rows_most[some], self.expanded[some], self.waiting[some])
