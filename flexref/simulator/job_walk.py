"""Walks the rows of a job through their block without running it: what every pass feeds and finds, in numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flexref.block.admission import Waiting
from flexref.block.block_rows import BlockRows
from flexref.block.group import Group
from flexref.block.planned_block import PlannedBlock
from flexref.simulator.spilled_pages import SpilledPages
from flexref.units import Tier


class PassSums(NamedTuple):
    """One pass in numbers: rows, and tokens of all of them together.

    `read` were given and `generated` were not; `scored`: after so many the next one is scored. `waits_on_...`: tokens
    whose hidden states wait there between stages, `scored_on_...`: the scored ones of them. `past_on_...`: records in
    the caches whose home that is, before the pass, with shared prefixes on the device; `new_on_...`: those that it
    adds. `away`: tokens for which attention runs on the host; `past_away`: records that it reads in place.
    `spilled_bytes`: what the disk writes.
    """

    rows: int
    read: int
    generated: int
    scored: int
    scored_on_host: int
    scored_on_disk: int
    waits_on_host: int
    waits_on_disk: int
    past_on_device: int
    past_on_host: int
    past_on_disk: int
    new_on_host: int
    new_on_disk: int
    away: int
    past_away: int
    spilled_bytes: int


@dataclass(frozen=True)
class Walk:
    """A job's passes. `sums`: (P, F) of each, in the order of `PassSums`. `changes`: (P,) whether a pass
    is of other rows than the one before it, or follows one that reads.
    """

    sums: npt.NDArray[np.int64]
    changes: npt.NDArray[np.bool_]

    @property
    def passes(self) -> int:
        """How many there are."""
        return len(self.sums)

    def column(self, name: str) -> npt.NDArray[np.int64]:
        """(P,) one of `PassSums`."""
        found: npt.NDArray[np.int64] = self.sums[:, PassSums._fields.index(name)]
        return found

    def stretches(self) -> list[range]:
        """Runs of passes that begin with a change: a pass that reads alone, or some in which the same rows generate."""
        firsts = [*np.flatnonzero(self.changes).tolist(), self.passes]
        return [range(first, end) for first, end in pairwise(firsts)]


def walked(planned: PlannedBlock, waiting: Waiting, compute_dtype: str) -> Walk:
    """Let all rows go through the block, each getting some token in every pass in which it does not read.

    Hidden states are of `compute_dtype`.
    """
    rows = BlockRows(planned.memory.cache, waiting, planned.prompt_chunk_tokens)
    homes = [group.home for group in planned.memory.activations.groups]
    spills = SpilledPages(planned, compute_dtype)
    known, sums, changes = (-1, -1), list[PassSums](), list[bool]()
    while rows.alive():
        numbered = enumerate(zip(rows.groups, homes, strict=True))
        each = [_sums(group, home, partial(spills.of, number, group)) for number, (group, home) in numbered]
        found = PassSums(*map(sum, zip(*each, strict=True)))
        sums.append(found)
        now = rows.admission.admitted, rows.admission.retired
        changes.append(now != known or sums[-2].read > 0)
        known = now
        rows.skip_pass()
    return Walk(np.array(sums, np.int64).reshape(-1, len(PassSums._fields)), np.array(changes, np.bool_))


def _sums(group: Group, home: Tier, spilled_bytes: Callable[[], int]) -> PassSums:
    """What the next pass has of one group, whose hidden states wait on `home`."""
    if not group.fed:
        return PassSums(*[0] * len(PassSums._fields))
    past, new = dict.fromkeys(Tier, 0), dict.fromkeys(Tier, 0)
    away = past_away = 0
    for row in group.in_pass:
        tier = row.place.home
        past[tier] += row.own_past
        past[Tier.DEVICE] += row.past - row.own_past
        new[tier] += row.new
        if row.is_away:
            away += row.new
            past_away += row.past
    fed, scored = group.fed_in_pass, sum(row.scored for row in group.fed)
    return PassSums(
        rows=fed.rows,
        read=fed.prompt_tokens,
        generated=fed.generated_tokens,
        scored=scored,
        scored_on_host=scored if home is Tier.HOST else 0,
        scored_on_disk=scored if home is Tier.DISK else 0,
        waits_on_host=group.tokens if home is Tier.HOST else 0,
        waits_on_disk=group.tokens if home is Tier.DISK else 0,
        past_on_device=past[Tier.DEVICE],
        past_on_host=past[Tier.HOST],
        past_on_disk=past[Tier.DISK],
        new_on_host=new[Tier.HOST],
        new_on_disk=new[Tier.DISK],
        away=away,
        past_away=past_away,
        spilled_bytes=spilled_bytes(),
    )
