"""The KV cache over the tiers, by row: where a row's records lie, and what a visit has to copy; no attention."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flexref.backend.parts import Parts
from flexref.backend.protocol import Backend
from flexref.tiers.arrangement import Arrangement, Stretch, arrange
from flexref.tiers.cache_plan import CachePlan, CacheRoom, RowPass, RowPlace
from flexref.tiers.pool import Arena
from flexref.tiers.transfer import WHOLE, Copy, Pieces, Region, lend, view
from flexref.units import Kind, Tier


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a stretch lies: its first row from `offset` of a region on, the others `stride` bytes further each.

    The first record there is that of token `origin`.
    """

    region: Region
    offset: int
    stride: int
    origin: int = 0

    def piece(self, row: int, first: int, tokens: int, record_bytes: int) -> Region:
        """The records of `tokens` tokens from `first` on of row number `row` of the stretch."""
        start = self.offset + row * self.stride + (first - self.origin) * record_bytes
        return self.region.part(start, tokens * record_bytes)


@dataclass(slots=True)
class CacheStore:
    """A block's caches: takes their memory, lists the copies of each visit, and gives operators the handles of rows."""

    plan: CachePlan
    backend: Backend
    _record: int = field(init=False)
    _homes: dict[Tier, Region] = field(default_factory=dict)
    _prefixes: Region | None = None
    _slots: dict[CacheRoom, list[Region]] = field(default_factory=dict)
    _taken: list[tuple[Arena, str, Region]] = field(default_factory=list)
    _handles: dict[int, dict[tuple[int, int], tuple[Any, Any]]] = field(default_factory=dict)
    _arranged: dict[int, Arrangement] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._record = self.plan.layout.record_bytes

    def allocate(self, arenas: Mapping[Tier, Arena]) -> None:
        """Take all memory that the plan names."""
        plan = self.plan
        for tier, room, nbytes in plan.needs():
            region = arenas[tier].take(room, nbytes)
            self._taken.append((arenas[tier], room, region))
            if room is CacheRoom.HOME:
                self._homes[tier] = region
            elif room is CacheRoom.PREFIXES:
                self._prefixes = region
            elif room is CacheRoom.BOUNCE:
                lend(self.backend, region, self._homes[Tier.DISK])
            else:
                size = nbytes // plan.slots
                self._slots[room] = [region.part(slot * size, size) for slot in range(plan.slots)]

    def release(self) -> None:
        """Give all memory back."""
        for arena, holder, region in reversed(self._taken):
            arena.give_back(holder, region)
        self._taken.clear()
        self._handles.clear()
        self._arranged.clear()

    def fetch(self, layer: int, group: int, rows: Sequence[RowPass], slot: int) -> list[Copy]:
        """disk -> host: the past records of rows whose home is the disk."""
        return [
            self._copy(layer, each, (self._home(layer, group, each), self._staged(each, slot)), 0, each.past)
            for each in self._arrangement(group, rows).stretches
            if each.past and each.place.home is Tier.DISK
        ]

    def load(self, layer: int, group: int, rows: Sequence[RowPass], slot: int) -> list[Copy]:
        """host -> device: the past records of rows whose home is host or disk; not of those that are away."""
        arranged, copies = self._arrangement(group, rows), list[Copy]()
        for home in (Tier.HOST, Tier.DISK):
            moved = [stretch for stretch in arranged.off_device(home) if stretch.past and not stretch.away]
            if len(moved) > 1:
                copies.append(self._in_parts(layer, group, arranged, moved, slot, inward=True))
            for each in moved if len(moved) == 1 else ():
                source = self._home(layer, group, each) if home is Tier.HOST else self._staged(each, slot)
                copies.append(self._copy(layer, each, (source, self._in_slot(each, slot)), 0, each.past))
        return copies

    def store(self, layer: int, group: int, rows: Sequence[RowPass], slot: int) -> list[Copy]:
        """device -> host: the new records of rows whose home is host or disk; not of those that are away."""
        arranged, copies = self._arrangement(group, rows), list[Copy]()
        for home in (Tier.HOST, Tier.DISK):
            moved = [stretch for stretch in arranged.off_device(home) if not stretch.away]
            if len(moved) > 1:
                copies.append(self._in_parts(layer, group, arranged, moved, slot, inward=False))
            for each in moved if len(moved) == 1 else ():
                target = self._home(layer, group, each) if home is Tier.HOST else self._leaving(each, slot)
                copies.append(self._copy(layer, each, (self._in_slot(each, slot), target), each.past, each.new))
        return copies

    def spill(self, layer: int, group: int, rows: Sequence[RowPass], slot: int) -> list[Copy]:
        """host -> disk: the new records of rows whose home is the disk."""
        copies = []
        for each in self._arrangement(group, rows).stretches:
            if each.place.home is Tier.DISK:
                source = self._staged(each, slot) if each.away else self._leaving(each, slot)
                copies.append(self._copy(layer, each, (source, self._home(layer, group, each)), each.past, each.new))
        return copies

    def handles(self, layer: int, group: int, rows: Sequence[RowPass], slot: int) -> tuple[Any, Any]:
        """(handle of the device's rows, handle of the host's) for a visit; None for no rows.

        Handles are kept until other rows are in the group's pass, since a port may have uploaded them.
        """
        arranged, layout = self._arrangement(group, rows), self.plan.layout
        known = self.handles_of(group)
        if self.plan.transient and not self.plan.prefix_tokens:
            layer = 0  # all of them have the same place
        if (layer, slot) not in known:
            near = [self._near(layer, group, found, slot) for found in arranged.near]
            away = [self._away(layer, group, place, slot) for place in arranged.away]
            shared = [None if place is None else self._shared(layer, place) for place in arranged.prefixes]
            known[layer, slot] = (
                self.backend.cache_rows(near, layout, *([shared] if shared else [])) if near else None,
                self.backend.cache_rows(away, layout) if away else None,
            )
        return known[layer, slot]

    def handles_of(self, group: int) -> dict[tuple[int, int], tuple[Any, Any]]:
        """The group's handles by layer and slot: the same object until other rows need other handles."""
        return self._handles.setdefault(group, {})

    def near_rows(self, group: int, rows: Sequence[RowPass]) -> int:
        """How many rows of a pass the device's operators reach; from now on handles are those of its rows."""
        return len(self._arrangement(group, rows).near)

    def _arrangement(self, group: int, rows: Sequence[RowPass]) -> Arrangement:
        """How the rows lie; found once per pass, since every layer has the same.

        Handles stand for other rows then, if the port renews them; else they are dropped.
        """
        known = self._arranged.get(group)
        if known is None or known.rows is not rows:
            found = None if known is None else known.after(rows)
            if found is None:
                found = arrange(self.plan, group, rows)
                if known is not None and not found.lies_as(known) and not self._renewed(group, known, found):
                    self._handles.pop(group, None)
            known = self._arranged[group] = found
        return known

    def _renewed(self, group: int, known: Arrangement, found: Arrangement) -> bool:
        """Whether the group's handles stand for the rows of `found` from now on.

        They do if all rows lie at home on the device before and after, or all in slots: see `may_stand_for`.
        """
        handles = self._handles.get(group, {})
        if not handles or not (known.near and found.near and known.may_stand_for(found)):
            return False
        (layer, slot), _ = next(iter(handles.items()))
        near = [self._near(layer, group, each, slot) for each in found.near]
        return self.backend.renew_rows([near_handle for near_handle, _ in handles.values()], near)

    def _spot(self, region: Region, start_tokens: int, stride_tokens: int, origin: int = 0) -> Spot:
        return Spot(region, start_tokens * self._record, stride_tokens * self._record, origin)

    def _at_home(self, layer: int, group: int, place: RowPlace) -> Spot:
        plan, tier = self.plan, place.home
        before = self._layer(layer) * plan.layer_bytes(tier) + plan.first_bytes[group][tier]
        return Spot(self._homes[tier], before + place.start * self._record, place.capacity_tokens * self._record)

    def _home(self, layer: int, group: int, stretch: Stretch) -> Spot:
        return self._at_home(layer, group, stretch.place)

    def _in_slot(self, stretch: Stretch, slot: int) -> Spot:
        return self._spot(self._slots[CacheRoom.SLOTS][slot], stretch.in_slot, stretch.stride)

    def _staged(self, stretch: Stretch, slot: int) -> Spot:
        place = stretch.place
        return self._spot(self._slots[CacheRoom.STAGING_IN][slot], place.start, place.capacity_tokens)

    def _leaving(self, stretch: Stretch, slot: int) -> Spot:
        return self._spot(self._slots[CacheRoom.STAGING_OUT][slot], stretch.leaving, stretch.new, stretch.past)

    def _copy(self, layer: int, stretch: Stretch, ways: tuple[Spot, Spot], first: int, tokens: int) -> Copy:
        """Records of `tokens` tokens from `first` on of every row of the stretch, from one spot to another."""
        source, target = ways
        for spot in ways:
            spot.piece(stretch.rows - 1, first, tokens, self._record)  # the last piece lies inside its region too
        pieces = WHOLE if stretch.rows == 1 else Pieces(stretch.rows, source.stride, target.stride)
        there, back = (spot.piece(0, first, tokens, self._record) for spot in ways)
        return Copy(Kind.CACHE, f"layer {layer} cache", there, back, pieces=pieces)

    def _in_parts(
        self, layer: int, group: int, arranged: Arrangement, moved: Sequence[Stretch], slot: int, *, inward: bool
    ) -> Copy:
        """One copy of several stretches with one home: the past records go in to a slot, or the new ones out of it."""
        home = moved[0].place.home
        if home is Tier.HOST:
            first = self.plan.first_bytes[group][home]
            size = self.plan.groups[group].tokens[home] * self._record
            there = self._homes[home].part(self._layer(layer) * self.plan.layer_bytes(home) + first, size)
        else:
            there = self._slots[CacheRoom.STAGING_IN if inward else CacheRoom.STAGING_OUT][slot]
        here = self._slots[CacheRoom.SLOTS][slot]
        source, target = (there, here) if inward else (here, there)
        parts = arranged.parts.get((home, inward))
        if parts is None:
            each = [part for stretch in moved for part in self._parts(stretch, inward)]
            parts = arranged.parts[home, inward] = Parts.of(each, source.nbytes, target.nbytes)
        return Copy(Kind.CACHE, f"layer {layer} cache", source, target, parts=parts)

    def _parts(self, stretch: Stretch, inward: bool) -> Iterator[tuple[int, int, int]]:
        """(distance in the source, in the target, bytes) of every row of a stretch."""
        first, tokens = (0, stretch.past) if inward else (stretch.past, stretch.new)
        capacity, leaves = stretch.place.capacity_tokens, stretch.place.home is Tier.DISK and not inward
        for row in range(stretch.rows):
            here = stretch.in_slot + row * stretch.stride + first
            there = stretch.leaving + row * stretch.new if leaves else stretch.place.start + row * capacity + first
            ends = (there, here) if inward else (here, there)
            yield ends[0] * self._record, ends[1] * self._record, tokens * self._record

    def _layer(self, layer: int) -> int:
        """Whose memory a layer has: all layers have the same, if what they hold lasts a visit."""
        return 0 if self.plan.transient else layer

    def _near(self, layer: int, group: int, found: tuple[RowPlace, int | None, int], slot: int) -> Any:
        """The cache of a row that the device's operators reach: at home, or in a slot."""
        place, in_slot, tokens = found
        if place.shared:
            return self._shared(layer, place)[0]
        if in_slot is None:
            return self._view(self._at_home(layer, group, place), tokens)
        return self._view(self._spot(self._slots[CacheRoom.SLOTS][slot], in_slot, 0), tokens)

    def _shared(self, layer: int, place: RowPlace) -> tuple[Any, int]:
        """A prefix in one layer: its records, and how many there are."""
        assert self._prefixes is not None
        start = layer * self.plan.prefix_tokens + place.start
        return self._view(self._spot(self._prefixes, start, 0), place.capacity_tokens), place.capacity_tokens

    def _away(self, layer: int, group: int, place: RowPlace, slot: int) -> Any:
        if place.home is Tier.HOST:
            return self._view(self._at_home(layer, group, place), place.capacity_tokens)
        region = self._slots[CacheRoom.STAGING_IN][slot]
        return self._view(self._spot(region, place.start, 0), place.capacity_tokens)

    def _view(self, spot: Spot, tokens: int) -> Any:
        """So many records from a spot on."""
        return view(self.backend, spot.region, (tokens * self._record,), "uint8", spot.offset)
