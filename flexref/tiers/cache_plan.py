"""Where the KV caches of a block are to lie, row by row: homes, slots and staging in bytes; it moves nothing."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from flexref.backend.records import RecordLayout
from flexref.units import Tier


class CacheRoom(str, Enum):
    """What a block's caches take memory for, by the name that it is counted under."""

    HOME = "KV cache"
    SLOTS = "KV cache slots"
    STAGING_IN = "KV cache staging in"
    STAGING_OUT = "KV cache staging out"

    __str__ = str.__str__


@dataclass(frozen=True, slots=True)
class RowPlan:
    """One row's cache: the tokens that it may hold, those of its prompt, and the tier of its home."""

    capacity_tokens: int
    prompt_tokens: int
    home: Tier


@dataclass(frozen=True, slots=True)
class RowStarts:
    """Where a row's records start, in bytes: among the homes of one layer, in a slot, and in the staging of one."""

    home: int
    slot: int
    staged: int
    leaving: int


@dataclass(frozen=True)
class CachePlan:
    """Homes and slots of a block's caches. In every group, rows whose home is the device come first.

    `far`: attention over caches that are off the device is computed on the host, once they hold tokens. Of such a cache
    only the prompt's records cross the link, from the device. `transient`: a cache is read only by the visit that fills
    it; then there is room for one layer of the largest group, which all layers and groups use one after another.
    """

    layout: RecordLayout
    layers: int
    groups: tuple[tuple[RowPlan, ...], ...]
    far: bool
    slots: int
    transient: bool = False

    @cached_property
    def starts(self) -> tuple[tuple[RowStarts, ...], ...]:
        """Where the records of every row of every group start."""
        at_home = dict.fromkeys(Tier, 0)
        return tuple(
            tuple(self._group_starts(group, dict.fromkeys(Tier, 0) if self.transient else at_home))
            for group in self.groups
        )

    def _group_starts(self, group: Sequence[RowPlan], at_home: dict[Tier, int]) -> Iterator[RowStarts]:
        in_slot = staged = leaving = 0
        record = self.layout.record_bytes
        for row in group:
            yield RowStarts(at_home[row.home], in_slot, staged, leaving)
            at_home[row.home] += row.capacity_tokens * record
            if row.home is not Tier.DEVICE:
                in_slot += self.slot_tokens(row) * record
            if row.home is Tier.DISK:
                staged += row.capacity_tokens * record
                leaving += row.prompt_tokens * record

    def slot_tokens(self, row: RowPlan) -> int:
        """Tokens that a slot on the device has room for, of a row whose home is another tier."""
        return row.prompt_tokens if self.far else row.capacity_tokens

    def layer_bytes(self, tier: Tier) -> int:
        """Bytes of one layer's caches whose home is `tier`: of all rows or, if transient, of the largest group."""
        return self._layer_bytes[tier]

    @cached_property
    def _layer_bytes(self) -> dict[Tier, int]:
        whole = max if self.transient else sum
        return {
            tier: self.layout.record_bytes
            * whole(sum(row.capacity_tokens for row in group if row.home is tier) for group in self.groups)
            for tier in Tier
        }

    def _largest(self, tokens: Callable[[RowPlan], int], homes: tuple[Tier, ...]) -> int:
        """Bytes of the largest group: `tokens` of each of its rows whose home is one of `homes`."""
        sums = (sum(tokens(row) for row in group if row.home in homes) for group in self.groups)
        return max(sums, default=0) * self.layout.record_bytes

    @property
    def slot_bytes(self) -> int:
        """Device bytes of one slot: the caches of one group's rows whose home is another tier."""
        return self._largest(self.slot_tokens, (Tier.HOST, Tier.DISK))

    @property
    def staging_in_bytes(self) -> int:
        """Host bytes of one slot for caches that come from disk."""
        return self._largest(lambda row: row.capacity_tokens, (Tier.DISK,))

    @property
    def staging_out_bytes(self) -> int:
        """Host bytes of one slot for new records on their way to disk: at most a prompt's."""
        return self._largest(lambda row: row.prompt_tokens, (Tier.DISK,))

    def needs(self) -> Iterator[tuple[Tier, CacheRoom, int]]:
        """(tier, room, bytes) of everything that `CacheStore` will take."""
        for tier in Tier:
            if self.layer_bytes(tier):
                yield tier, CacheRoom.HOME, self.layers * self.layer_bytes(tier)
        if self.slot_bytes:
            yield Tier.DEVICE, CacheRoom.SLOTS, self.slots * self.slot_bytes
        if self.staging_in_bytes:
            yield Tier.HOST, CacheRoom.STAGING_IN, self.slots * self.staging_in_bytes
            yield Tier.HOST, CacheRoom.STAGING_OUT, self.slots * self.staging_out_bytes
