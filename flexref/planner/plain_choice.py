"""The policy of a job that needs no machine to be known: all of it fits on the device; it predicts nothing.

What lies on the device crosses no link, so no other placement is faster, and results never depend on it. What is left
to choose is how many rows are computed together; the rule for that is `shapes`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from flexref.backend.capabilities import Capabilities
from flexref.block.budgets import fit, lasting_needs, loading_need
from flexref.block.memory_plan import plan_block
from flexref.block.rows import RowLengths
from flexref.block.workspace import Expansion
from flexref.policy import Policy
from flexref.storage.weightfile import WeightFile
from flexref.tiers.weights_plan import WeightsPlan
from flexref.units import Tier

GROUPS_MOST = 20
"""Groups of a block at most, also where a policy is searched for; FlexGen stays below 20, too (section 4.3)."""

SPARE_PART = 8
"""One part in so many of every budget stays free: what is free now may be less in a moment."""

ROWS_MOST = 256
"""Rows of a group at most: with so many a matrix is read seldom enough on every processor that was measured."""

ROWS_LEAST = 32
"""Of a job with more rows, a group of fewer reads its matrices too often for the choice to be plain."""

PROMPT_TOKENS_MOST, SCORED_TOKENS_MOST = 1 << 15, 1 << 13
"""Tokens of a group's prompts, as long as it keeps `ROWS_LEAST` rows; where tokens are scored, which needs no
decoding, of whatever number of rows. More of them make the workspace longer and nothing faster."""


@dataclass(frozen=True)
class PlainChoice:
    """A job on a port under budgets: a file, and the rows of the whole job in order; `keep` as of `choose.Choice`."""

    file: WeightFile
    caps: Capabilities
    budgets: Mapping[Tier, int | None]
    rows: Sequence[RowLengths]
    keep: Mapping[str, Any]

    def policy(self) -> Policy | None:
        """All on the device, if it fits there with room to spare; else None.

        A shape for which expanded matrices can be kept comes first: they are read in every pass.
        """
        asked = Policy(**self.keep)
        weights = WeightsPlan.under(self.file, asked)
        budgets = {
            tier: None if budget is None else budget - budget // SPARE_PART for tier, budget in self.budgets.items()
        }
        whole = lasting_needs(weights, self.caps)
        if not fit([*whole, loading_need(weights)], budgets):
            return None
        for expansion, (size, groups) in product((Expansion.KEPT, Expansion.NEVER), shapes(self.rows, self.keep)):
            policy = asked.changed(rows_per_group=size, groups_per_block=groups)
            block = plan_block(weights, self.caps, policy, self.rows, expansion=expansion)
            if fit([*whole, *block.needs()], budgets):
                return policy
        return None


def shapes(rows: Sequence[RowLengths], keep: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """(rows per group, groups per block) for a job of `rows`, the best first; those that `keep` names are as it says.

    A group is as large as it may be, and all groups of a block are about as large: a matrix is read once for each.
    Where the whole job is too large for a block, there are fewer groups in it, and then smaller ones.
    """
    scored = any(row.scored_tokens for row in rows)
    longest = max(row.prompt_tokens for row in rows)
    tokens_most, least = (SCORED_TOKENS_MOST, 1) if scored else (PROMPT_TOKENS_MOST, ROWS_LEAST)
    least = min(least, len(rows))
    size = max(least, min(len(rows), ROWS_MOST, tokens_most // longest))
    if "rows_per_group" in keep:
        size = least = keep["rows_per_group"]
    while size >= least:
        groups = min(-(-len(rows) // size), GROUPS_MOST)
        while groups:
            even = min(size, -(-len(rows) // groups))
            yield keep.get("rows_per_group", even), keep.get("groups_per_block", groups)
            groups //= 2
        size //= 2
