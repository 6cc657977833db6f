"""The KV cache over the tiers, by row: where a row's records lie, and what a visit has to copy; no attention."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from flexref.backend.protocol import Backend
from flexref.tiers.cache_plan import CachePlan, CacheRoom, RowPlan, RowStarts
from flexref.tiers.pool import Arena
from flexref.tiers.transfer import WHOLE, Copy, Pieces, Region, view
from flexref.units import Kind, Tier


@dataclass(frozen=True, slots=True)
class RowPass:
    """A live row in one pass: its place in its group's plan, `past` tokens in its cache, `new` tokens to feed."""

    place: int
    past: int
    new: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """Neighbouring rows of a group, off the device, with equal plan, past and new: one copy of `rows` equal pieces."""

    rows: int
    plan: RowPlan
    starts: RowStarts
    """Those of the first row."""
    past: int
    new: int


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
    _slots: dict[CacheRoom, list[Region]] = field(default_factory=dict)
    _taken: list[tuple[Arena, str, Region]] = field(default_factory=list)
    _handles: dict[tuple[int, int, int, bool], tuple[Any, Any, int]] = field(default_factory=dict)
    _stretches_of: dict[int, tuple[Sequence[RowPass], list[Stretch]]] = field(default_factory=dict)

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
            else:
                size = nbytes // plan.slots
                self._slots[room] = [region.part(slot * size, size) for slot in range(plan.slots)]

    def release(self) -> None:
        """Give all memory back."""
        for arena, holder, region in reversed(self._taken):
            arena.give_back(holder, region)
        self._taken.clear()
        self._handles.clear()
        self._stretches_of.clear()

    def attends_far(self, rows: Sequence[RowPass]) -> bool:
        """Whether attention runs on the host for rows off the device: if planned so, and all rows have a cache."""
        return self.plan.far and all(row.past for row in rows)

    def fetch(self, layer: int, group: int, rows: Sequence[RowPass], slot: int) -> list[Copy]:
        """disk -> host: the past records of rows whose home is the disk."""
        return [
            self._copy(layer, stretch, (self._home(layer, stretch), self._staged(stretch, slot)), 0, stretch.past)
            for stretch in self._stretches(group, rows)
            if stretch.past and stretch.plan.home is Tier.DISK
        ]

    def load(self, layer: int, group: int, rows: Sequence[RowPass], slot: int) -> list[Copy]:
        """host -> device: the past records of rows whose home is host or disk; none if attention runs on the host."""
        if self.attends_far(rows):
            return []
        copies = []
        for stretch in self._stretches(group, rows):
            if stretch.past:
                on_host = stretch.plan.home is Tier.HOST
                source = self._home(layer, stretch) if on_host else self._staged(stretch, slot)
                copies.append(self._copy(layer, stretch, (source, self._in_slot(stretch, slot)), 0, stretch.past))
        return copies

    def store(self, layer: int, group: int, rows: Sequence[RowPass], slot: int) -> list[Copy]:
        """device -> host: the new records of rows whose home is host or disk; none if attention runs on the host."""
        if self.attends_far(rows):
            return []
        copies = []
        for stretch in self._stretches(group, rows):
            on_host = stretch.plan.home is Tier.HOST
            target = self._home(layer, stretch) if on_host else self._leaving(stretch, slot)
            ways = (self._in_slot(stretch, slot), target)
            copies.append(self._copy(layer, stretch, ways, stretch.past, stretch.new))
        return copies

    def spill(self, layer: int, group: int, rows: Sequence[RowPass], slot: int) -> list[Copy]:
        """host -> disk: the new records of rows whose home is the disk."""
        far, copies = self.attends_far(rows), []
        for stretch in self._stretches(group, rows):
            if stretch.plan.home is Tier.DISK:
                source = self._staged(stretch, slot) if far else self._leaving(stretch, slot)
                ways = (source, self._home(layer, stretch))
                copies.append(self._copy(layer, stretch, ways, stretch.past, stretch.new))
        return copies

    def handles(self, layer: int, group: int, rows: Sequence[RowPass], slot: int) -> tuple[Any, Any, int]:
        """(handle of the device's rows, handle of the host's, number of the device's) for a visit; None for no rows.

        Handles are kept until a row retires, since a port may have uploaded them.
        """
        far = self.attends_far(rows)
        layer = 0 if self.plan.transient else layer
        key = (layer, group, slot, far)
        if key not in self._handles:
            places = [row.place for row in rows]
            near_places = [place for place in places if not far or self._row(group, place).home is Tier.DEVICE]
            near = [self._view(self._near(layer, group, place, slot)) for place in near_places]
            away = [self._view(self._away(layer, group, place, slot)) for place in places[len(near_places) :]]
            layout = self.plan.layout
            self._handles[key] = (
                self.backend.cache_rows(near, layout) if near else None,
                self.backend.cache_rows(away, layout) if away else None,
                len(near),
            )
        return self._handles[key]

    def forget(self, group: int) -> None:
        """A row of the group has retired: drop the group's handles."""
        for key in [key for key in self._handles if key[1] == group]:
            del self._handles[key]

    def _row(self, group: int, place: int) -> RowPlan:
        return self.plan.groups[group][place]

    def _stretches(self, group: int, rows: Sequence[RowPass]) -> list[Stretch]:
        """The live rows off the device, in stretches; found once per pass, since every layer moves the same."""
        known = self._stretches_of.get(group)
        if known is None or known[0] is not rows:
            known = self._stretches_of[group] = rows, list(self._find_stretches(group, rows))
        return known[1]

    def _find_stretches(self, group: int, rows: Sequence[RowPass]) -> Iterator[Stretch]:
        plans = self.plan.groups[group]
        off_device = [row for row in rows if plans[row.place].home is not Tier.DEVICE]

        def alike(numbered: tuple[int, RowPass]) -> tuple[Any, ...]:
            number, row = numbered
            return plans[row.place], row.past, row.new, row.place - number

        for _, neighbours in groupby(enumerate(off_device), key=alike):
            (_, row), *others = neighbours
            starts = self.plan.starts[group][row.place]
            yield Stretch(1 + len(others), plans[row.place], starts, row.past, row.new)

    def _home(self, layer: int, stretch: Stretch) -> Spot:
        tier, size = stretch.plan.home, stretch.plan.capacity_tokens * self._record
        return Spot(self._homes[tier], layer * self.plan.layer_bytes(tier) + stretch.starts.home, size)

    def _in_slot(self, stretch: Stretch, slot: int) -> Spot:
        size = self.plan.slot_tokens(stretch.plan) * self._record
        return Spot(self._slots[CacheRoom.SLOTS][slot], stretch.starts.slot, size)

    def _staged(self, stretch: Stretch, slot: int) -> Spot:
        size = stretch.plan.capacity_tokens * self._record
        return Spot(self._slots[CacheRoom.STAGING_IN][slot], stretch.starts.staged, size)

    def _leaving(self, stretch: Stretch, slot: int) -> Spot:
        size = stretch.plan.prompt_tokens * self._record
        return Spot(self._slots[CacheRoom.STAGING_OUT][slot], stretch.starts.leaving, size, origin=stretch.past)

    def _copy(self, layer: int, stretch: Stretch, ways: tuple[Spot, Spot], first: int, tokens: int) -> Copy:
        """Records of `tokens` tokens from `first` on of every row of the stretch, from one spot to another."""
        source, target = ways
        for spot in ways:
            spot.piece(stretch.rows - 1, first, tokens, self._record)  # the last piece lies inside its region too
        pieces = WHOLE if stretch.rows == 1 else Pieces(stretch.rows, source.stride, target.stride)
        there, back = (spot.piece(0, first, tokens, self._record) for spot in ways)
        return Copy(Kind.CACHE, f"layer {layer} cache", there, back, pieces=pieces)

    def _alone(self, group: int, place: int) -> Stretch:
        """A row as a stretch of its own."""
        return Stretch(1, self._row(group, place), self.plan.starts[group][place], 0, 0)

    def _near(self, layer: int, group: int, place: int, slot: int) -> Spot:
        alone = self._alone(group, place)
        return self._home(layer, alone) if alone.plan.home is Tier.DEVICE else self._in_slot(alone, slot)

    def _away(self, layer: int, group: int, place: int, slot: int) -> Spot:
        alone = self._alone(group, place)
        return self._home(layer, alone) if alone.plan.home is Tier.HOST else self._staged(alone, slot)

    def _view(self, spot: Spot) -> Any:
        """A row's whole cache, whose size is its stride."""
        return view(self.backend, spot.region, (spot.stride,), "uint8", spot.offset)
