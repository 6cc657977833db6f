"""Where the KV caches of a block may lie: the room of each group on each tier, slots and staging; it moves nothing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from flexref.backend.records import RecordLayout
from flexref.units import ALIGNMENT_BYTES, SPILL_BOUNCE_BYTES, Tier, aligned


class CacheRoom(str, Enum):
    """What a block's caches take memory for, by the name that it is counted under."""

    HOME = "KV cache"
    PREFIXES = "KV cache of shared prefixes"
    SLOTS = "KV cache slots"
    STAGING_IN = "KV cache staging in"
    STAGING_OUT = "KV cache staging out"
    BOUNCE = "KV cache bounce"
    """What goes to disk, or comes from there, unaligned goes through it."""

    __str__ = str.__str__


@dataclass(frozen=True, slots=True)
class RowPlace:
    """Where a row's cache lies: `capacity_tokens` records from number `start` on, among its group's on tier `home`.

    Those of a `shared` prefix lie among all of the block's prefixes, on the device. `in_place`: attention for the row
    runs on the host, beside its records, once these hold tokens.
    """

    home: Tier
    start: int
    capacity_tokens: int
    shared: bool = False
    in_place: bool = False

    @property
    def end(self) -> int:
        """The number of the record after its last one."""
        return self.start + self.capacity_tokens


@dataclass(frozen=True, slots=True)
class RowPass:
    """A row in one pass: the place of its cache, `past` tokens in it, `new` tokens to feed.

    The first of the past ones may lie in a `prefix` that it shares; then its own records are those after them.
    """

    place: RowPlace
    past: int
    new: int
    prefix: RowPlace | None = None

    @property
    def own_past(self) -> int:
        """Past tokens whose records are its own."""
        return self.past if self.prefix is None else self.past - self.prefix.capacity_tokens

    @property
    def is_away(self) -> bool:
        """Whether attention for the row runs on the host in this pass: its cache has tokens, and is read in place."""
        return self.place.in_place and self.past > 0


@dataclass(frozen=True, slots=True)
class InPlace:
    """What of a group's room is for rows of which attention runs on the host: by tier, the last of the records there.

    tokens, new_tokens: as in `GroupRoom`, of which they are a part. away_tokens: how many a pass feeds of such rows
    whose caches hold tokens already, at least one of each.
    """

    tokens: Mapping[Tier, int]
    new_tokens: Mapping[Tier, int]
    away_tokens: int


NOTHING_IN_PLACE = InPlace(dict.fromkeys(Tier, 0), dict.fromkeys(Tier, 0), 0)
"""Attention runs on the device, whatever lies where."""


@dataclass(frozen=True, slots=True)
class GroupRoom:
    """What the rows of one group, `rows` at most, may take.

    tokens: how many records their caches hold, by tier. new_tokens: how many tokens a pass feeds of rows there.
    prefix_tokens: how many it feeds of prefixes that rows share. in_place: what of it is for rows of which attention
    runs on the host.
    """

    rows: int
    tokens: Mapping[Tier, int]
    new_tokens: Mapping[Tier, int]
    prefix_tokens: int = 0
    in_place: InPlace = NOTHING_IN_PLACE

    def crossing_tokens(self, tier: Tier) -> int:
        """How many records on a tier are of rows of which attention runs on the device: the first ones there."""
        return self.tokens[tier] - self.in_place.tokens[tier]

    def slot_tokens(self, tier: Tier) -> int:
        """How many records of rows on a tier may be in a slot: all of those that cross, of others the new ones."""
        return self.crossing_tokens(tier) + self.in_place.new_tokens[tier]

    @property
    def pass_tokens(self) -> int:
        """The most tokens that a pass feeds."""
        return sum(self.new_tokens.values()) + self.prefix_tokens


@dataclass(frozen=True)
class CachePlan:
    """Homes and slots of a block's caches, whose rows come and go.

    Of a cache that is read in place, on the host, only what is new in a row's first pass crosses the link, from the
    device: so a slot has room for all records of the other rows off the device, and after them for the new ones of
    these. `transient`: a cache is read only by the
    visit that fills it; then there is room for one layer of the largest group, which all layers and groups use one
    after another. `prefix_tokens`: room for records of prefixes that rows share, in every layer of the model
    (`prefix_layers`), on the device.
    """

    layout: RecordLayout
    layers: int
    groups: tuple[GroupRoom, ...]
    slots: int
    transient: bool = False
    prefix_tokens: int = 0
    prefix_layers: int = 0

    @cached_property
    def first_bytes(self) -> tuple[Mapping[Tier, int], ...]:
        """Where each group's records begin among those of a layer, by tier.

        On disk each begins with a page, as it does in its staging slot: so all pages but those at the ends of a row are
        read directly to where they belong.
        """
        sums, firsts = dict.fromkeys(Tier, 0), []
        for group in self.groups:
            firsts.append(dict(sums))
            if not self.transient:
                sums = {tier: nbytes + self._group_bytes(group, tier) for tier, nbytes in sums.items()}
        return tuple(firsts)

    def _group_bytes(self, group: GroupRoom, tier: Tier) -> int:
        nbytes = group.tokens[tier] * self.layout.record_bytes
        return aligned(nbytes, ALIGNMENT_BYTES) if tier is Tier.DISK else nbytes

    def in_order(self, rows: Sequence[RowPass]) -> list[int]:
        """Which row comes when in a pass: prefixes first, those that are away last, others as they lie, by tier."""
        tiers = list(Tier)

        def key(number: int) -> tuple[bool, bool, int, int]:
            row, place = rows[number], rows[number].place
            return row.is_away, not place.shared, tiers.index(place.home), place.start

        return sorted(range(len(rows)), key=key)

    def layer_bytes(self, tier: Tier) -> int:
        """Bytes of one layer's caches whose home is `tier`: of all groups or, if transient, of the largest one."""
        return self._layer_bytes[tier]

    @cached_property
    def _layer_bytes(self) -> dict[Tier, int]:
        whole = max if self.transient else sum
        return {tier: whole(self._group_bytes(group, tier) for group in self.groups) for tier in Tier}

    def _largest(self, tokens: Callable[[GroupRoom], int]) -> int:
        """Bytes of so many tokens of the group that has most."""
        return max((tokens(group) for group in self.groups), default=0) * self.layout.record_bytes

    @property
    def slot_bytes(self) -> int:
        """Device bytes of one slot: the caches of one group's rows whose home is another tier."""
        return self._largest(lambda group: sum(map(group.slot_tokens, (Tier.HOST, Tier.DISK))))

    @property
    def staging_in_bytes(self) -> int:
        """Host bytes of one slot for caches that come from disk."""
        return aligned(self._largest(lambda group: group.tokens[Tier.DISK]), ALIGNMENT_BYTES)

    @property
    def staging_out_bytes(self) -> int:
        """Host bytes of one slot for new records on their way to disk."""
        return aligned(self._largest(lambda group: group.new_tokens[Tier.DISK]), ALIGNMENT_BYTES)

    def needs(self) -> Iterator[tuple[Tier, CacheRoom, int]]:
        """(tier, room, bytes) of everything that `CacheStore` will take."""
        for tier in Tier:
            if self.layer_bytes(tier):
                yield tier, CacheRoom.HOME, self.layers * self.layer_bytes(tier)
        if self.prefix_tokens:
            layer_bytes = self.prefix_tokens * self.layout.record_bytes
            yield Tier.DEVICE, CacheRoom.PREFIXES, self.prefix_layers * layer_bytes
        if self.slot_bytes:
            yield Tier.DEVICE, CacheRoom.SLOTS, self.slots * self.slot_bytes
        if self.staging_in_bytes:
            yield Tier.HOST, CacheRoom.STAGING_IN, self.slots * self.staging_in_bytes
            yield Tier.HOST, CacheRoom.STAGING_OUT, self.slots * self.staging_out_bytes
            yield Tier.HOST, CacheRoom.BOUNCE, SPILL_BOUNCE_BYTES
