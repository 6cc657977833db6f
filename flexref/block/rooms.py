"""Cuts the room of a block's groups to the lengths of the rows that will go through it; it takes no memory.

Rows that all are in the block at once get the room that they need. Of more rows it is not known which will be beside
each other: a group gets what that many rows, drawn at random, take in all but a few cases, and at least what the
longest one takes. A row that finds no room waits until others have left, and a prompt is read in as many passes as it
takes.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt

from flexref.block.admission import longest_first
from flexref.block.counted_rows import kinds_of
from flexref.block.rows import JobRows, RowLengths, each_of
from flexref.policy import Policy, Shares
from flexref.tiers.cache_plan import GroupRoom, InPlace
from flexref.tiers.placement import first_in_order, place_in_order
from flexref.units import Tier

DEVIATIONS = 2.0
"""So many standard deviations of its mean a group's rows may be longer than the job's are on average: in one of forty
cases they are longer."""


@dataclass(frozen=True)
class BlockRooms:
    """The room of every group. `single_pass`: no row needs a second one.

    `prefix_tokens`: how many records of prefixes that rows share may lie on the device.
    """

    groups: tuple[GroupRoom, ...]
    scored_share: float
    single_pass: bool
    prefix_tokens: int

    @classmethod
    def of(cls, rows: JobRows, policy: Policy) -> "BlockRooms":
        """The rooms of a block that `rows` go through.

        Where tokens are scored caches are on the device: they last a visit.
        """
        kinds = kinds_of(rows)
        count, size = kinds.total(), policy.rows_per_block
        share = max(row.scored_tokens / row.own_tokens for row in kinds)
        chunk = None if share else policy.prompt_chunk_tokens
        typical = _in_order(kinds, rows) if count <= size else _typical(kinds, policy)
        groups = [
            typical[first : first + policy.rows_per_group] for first in range(0, len(typical), policy.rows_per_group)
        ]
        homes = place_in_order(
            [[row.capacity_tokens for row in group] for group in groups], Shares() if share else policy.cache
        )
        longest, prefixes = max(row.capacity_tokens for row in kinds), _Prefixes.of(kinds)
        # Whether every prompt is read in one pass: then attention runs on the host for one token of a row at a time.
        whole = chunk is None and (count <= size or len({row.own_tokens for row in kinds}) == 1)
        in_place = _in_place(groups, homes, 0.0 if share else policy.shares_attention)
        rooms = []
        for group, tiers, within in zip(groups, homes, in_place, strict=True):
            parts = _Parts.of(group, list(zip(tiers, within, strict=True)), chunk)
            if count > size:
                parts.widen(longest, all_at_once=bool(share))
            rooms.append(parts.room(len(group), prefixes.in_a_pass(len(group), chunk), whole))
        single = max(row.new_tokens for row in kinds) == 1 and count <= size
        return cls(tuple(rooms), share, single and not prefixes.sizes, prefixes.in_all(size))

    @property
    def scores(self) -> bool:
        """Whether tokens are scored, and none generated."""
        return self.scored_share > 0

    def scored(self, tokens: int) -> int:
        """How many of so many tokens are scored at most."""
        return ceil(tokens * self.scored_share)


def _in_place(
    groups: Sequence[Sequence[RowLengths]], homes: Sequence[Sequence[Tier]], share: float
) -> list[list[bool]]:
    """For every row of every group, whether attention for it runs on the host: those on the host first, then on disk.

    Rows of a group lie in the order of tiers, so these are the first ones off the device.
    """
    off_device = [
        [row.capacity_tokens for row, tier in zip(group, tiers, strict=True) if tier is not Tier.DEVICE]
        for group, tiers in zip(groups, homes, strict=True)
    ]
    chosen = first_in_order(off_device, share)
    return [
        [tiers.count(Tier.DEVICE) <= number < tiers.count(Tier.DEVICE) + rows for number in range(len(tiers))]
        for tiers, rows in zip(map(list, homes), chosen, strict=True)
    ]


Part = tuple[Tier, bool]
"""A tier, and whether attention for rows there runs on the host."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """Records of a group's rows, and tokens that a pass feeds of them, by tier and by where attention runs."""

    tokens: dict[Part, int]
    new_tokens: dict[Part, int]

    @classmethod
    def of(cls, group: Sequence[RowLengths], parts: Sequence[Part], chunk: int | None) -> "_Parts":
        every = [(tier, in_place) for tier in Tier for in_place in (False, True)]
        made = cls(dict.fromkeys(every, 0), dict.fromkeys(every, 0))
        for row, part in zip(group, parts, strict=True):
            made.tokens[part] += row.capacity_tokens
            made.new_tokens[part] += row.own_tokens if chunk is None else min(chunk, row.own_tokens)
        return made

    def widen(self, longest: int, *, all_at_once: bool) -> None:
        """Let the largest part have room for the longest row; a pass feeds all of it, if `all_at_once`."""
        widest = max(self.tokens, key=lambda part: self.tokens[part])
        self.tokens[widest] = max(self.tokens[widest], longest)
        if all_at_once:
            self.new_tokens[widest] = self.tokens[widest]

    def room(self, rows: int, prefix_tokens: int, whole: bool) -> GroupRoom:
        """The group's room. `whole`: every prompt is read in one pass, so that a row is away for a token at a time."""
        kinds = self.tokens, self.new_tokens
        tokens, new_tokens = ({tier: kind[tier, False] + kind[tier, True] for tier in Tier} for kind in kinds)
        within, new_within = ({tier: kind[tier, True] for tier in Tier} for kind in kinds)
        away = sum(new_within.values())
        in_place = InPlace(within, new_within, min(away, rows) if whole else away)
        return GroupRoom(rows, tokens, new_tokens, prefix_tokens, in_place)


@dataclass(frozen=True, slots=True)
class _Prefixes:
    """The prefixes of a job: the tokens of each by its number, and how many rows the job has."""

    sizes: Mapping[int, int]
    rows: int

    @classmethod
    def of(cls, kinds: Counter[RowLengths]) -> "_Prefixes":
        return cls({row.prefix: row.shared_tokens for row in kinds if row.prefix}, kinds.total())

    def in_all(self, rows: int) -> int:
        """Tokens of the prefixes that so many rows have: their part of all, and the longest twice."""
        total, longest = sum(self.sizes.values()), max(self.sizes.values(), default=0)
        return total if rows >= self.rows else min(total, ceil(total * rows / self.rows) + 2 * longest)

    def in_a_pass(self, rows: int, chunk: int | None) -> int:
        """Tokens of prefixes that a pass reads for a group of so many rows."""
        longest = max(self.sizes.values(), default=0)
        most = max(longest, ceil(sum(self.sizes.values()) * min(1.0, rows / self.rows)))
        return most if chunk is None else min(most, chunk)


def _in_order(kinds: Counter[RowLengths], rows: JobRows) -> Sequence[RowLengths]:
    """All rows, as they enter a block in which there is room for all of them."""
    every = list(each_of(rows))
    return every if any(row.scored_tokens for row in kinds) else sorted(every, key=longest_first)


def _typical(kinds: Counter[RowLengths], policy: Policy) -> Sequence[RowLengths]:
    """Rows that, in a group, take as much as rows of the job do in all but a few cases."""
    rows = policy.rows_per_group
    capacity = _enough(kinds, rows, lambda row: row.capacity_tokens)
    own = min(capacity, _enough(kinds, rows, lambda row: row.own_tokens))
    return [RowLengths(own, capacity - own + 1)] * policy.rows_per_block


def _enough(kinds: Counter[RowLengths], rows: int, tokens: Callable[[RowLengths], int]) -> int:
    """Tokens for each of `rows` rows drawn at random: their mean and some deviations of it, or that of the longest."""
    total = kinds.total()
    mean = sum(tokens(row) * count for row, count in kinds.items()) / total
    variance = sum((tokens(row) - mean) ** 2 * count for row, count in kinds.items()) / total
    left, most = rows, 0
    for row in sorted(kinds, key=tokens, reverse=True):
        some = min(left, kinds[row])
        most, left = most + some * tokens(row), left - some
    return ceil(min(mean + DEVIATIONS * sqrt(variance / rows), most / rows) - 1e-9)
