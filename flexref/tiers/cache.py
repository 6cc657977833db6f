"""The KV cache over the tiers, by row: where a row's records are at home, how a visit brings and returns them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from flexref.backend.protocol import Backend
from flexref.tiers.cache_plan import CachePlan, RowPlan, RowStarts
from flexref.tiers.pool import Arena
from flexref.tiers.transfer import WHOLE, Copy, Pieces, Region, Tier, view


@dataclass(frozen=True, slots=True)
class RowTurn:
    """One live row in one pass: which row of its group's plan, tokens in its cache, and new ones."""

    row: int
    past: int
    new: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """Neighbouring rows of a group off the device with the same plan and turn: a copy of `rows` equal pieces."""

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
    """A block's caches: allocates, lists the copies of each visit, and hands out the rows that operators work on."""

    plan: CachePlan
    backend: Backend
    _record: int = field(init=False)
    _homes: dict[Tier, Region] = field(default_factory=dict)
    _slots: list[Region] = field(default_factory=list)
    _staging_in: list[Region] = field(default_factory=list)
    _staging_out: list[Region] = field(default_factory=list)
    _taken: list[tuple[Arena, str, Region]] = field(default_factory=list)
    _handles: dict[tuple[int, int, int, bool], tuple[Any, Any, int]] = field(default_factory=dict)
    _stretches_of: dict[int, tuple[Sequence[RowTurn], list[Stretch]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._record = self.plan.layout.record_bytes

    def allocate(self, arenas: Mapping[Tier, Arena]) -> None:
        """Take all memory that the plan names."""
        plan = self.plan
        for tier, holder, nbytes in plan.needs():
            region = arenas[tier].take(holder, nbytes)
            self._taken.append((arenas[tier], holder, region))
            if holder == "KV cache":
                self._homes[tier] = region
                continue
            size = nbytes // plan.slots
            parts = [region.part(slot * size, size) for slot in range(plan.slots)]
            if tier is Tier.DEVICE:
                self._slots = parts
            elif holder.endswith("in"):
                self._staging_in = parts
            else:
                self._staging_out = parts

    def release(self) -> None:
        """Give all memory back."""
        for arena, holder, region in reversed(self._taken):
            arena.give_back(holder, region)
        self._taken.clear()
        self._handles.clear()
        self._stretches_of.clear()

    def attends_far(self, turns: Sequence[RowTurn]) -> bool:
        """Whether this visit's rows off the device are attended to where they are: in decode, if the plan says so."""
        return self.plan.far and all(turn.past for turn in turns)

    def fetch(self, layer: int, group: int, turns: Sequence[RowTurn], slot: int) -> list[Copy]:
        """disk -> host: what rows at home on disk hold so far."""
        return [
            self._copy(layer, stretch, (self._home(layer, stretch), self._staged(stretch, slot)), 0, stretch.past)
            for stretch in self._stretches(group, turns)
            if stretch.past and stretch.plan.home is Tier.DISK
        ]

    def load(self, layer: int, group: int, turns: Sequence[RowTurn], slot: int) -> list[Copy]:
        """host -> device: what rows at home on host or disk hold so far, unless it is attended to where it is."""
        if self.attends_far(turns):
            return []
        copies = []
        for stretch in self._stretches(group, turns):
            if stretch.past:
                on_host = stretch.plan.home is Tier.HOST
                source = self._home(layer, stretch) if on_host else self._staged(stretch, slot)
                copies.append(self._copy(layer, stretch, (source, self._in_slot(stretch, slot)), 0, stretch.past))
        return copies

    def store(self, layer: int, group: int, turns: Sequence[RowTurn], slot: int) -> list[Copy]:
        """device -> host: the new records of rows at home on host or disk."""
        if self.attends_far(turns):
            return []
        copies = []
        for stretch in self._stretches(group, turns):
            on_host = stretch.plan.home is Tier.HOST
            target = self._home(layer, stretch) if on_host else self._leaving(stretch, slot)
            ways = (self._in_slot(stretch, slot), target)
            copies.append(self._copy(layer, stretch, ways, stretch.past, stretch.new))
        return copies

    def spill(self, layer: int, group: int, turns: Sequence[RowTurn], slot: int) -> list[Copy]:
        """host -> disk: the new records of rows at home on disk."""
        far, copies = self.attends_far(turns), []
        for stretch in self._stretches(group, turns):
            if stretch.plan.home is Tier.DISK:
                source = self._staged(stretch, slot) if far else self._leaving(stretch, slot)
                ways = (source, self._home(layer, stretch))
                copies.append(self._copy(layer, stretch, ways, stretch.past, stretch.new))
        return copies

    def handles(self, layer: int, group: int, turns: Sequence[RowTurn], slot: int) -> tuple[Any, Any, int]:
        """(rows for the device, rows for the host or None, live rows of the former) of a visit.

        Handles are kept: they change only with the rows that are alive, and a port may have uploaded them.
        """
        far = self.attends_far(turns)
        layer = 0 if self.plan.passing else layer
        key = (layer, group, slot, far)
        if key not in self._handles:
            rows = [turn.row for turn in turns]
            near_rows = [row for row in rows if not far or self._row(group, row).home is Tier.DEVICE]
            near = [self._view(self._near(layer, group, row, slot)) for row in near_rows]
            away = [self._view(self._away(layer, group, row, slot)) for row in rows[len(near_rows) :]]
            layout = self.plan.layout
            self._handles[key] = (
                self.backend.cache_rows(near, layout) if near else None,
                self.backend.cache_rows(away, layout) if away else None,
                len(near),
            )
        return self._handles[key]

    def forget(self, group: int) -> None:
        """A row of the group has retired: its handles are of no more use."""
        for key in [key for key in self._handles if key[1] == group]:
            del self._handles[key]

    def _row(self, group: int, row: int) -> RowPlan:
        return self.plan.groups[group][row]

    def _stretches(self, group: int, turns: Sequence[RowTurn]) -> list[Stretch]:
        """The live rows off the device, in stretches; worked out once per pass, for every layer moves the same."""
        known = self._stretches_of.get(group)
        if known is None or known[0] is not turns:
            known = self._stretches_of[group] = turns, list(self._find_stretches(group, turns))
        return known[1]

    def _find_stretches(self, group: int, turns: Sequence[RowTurn]) -> Iterator[Stretch]:
        plans = self.plan.groups[group]
        off_device = [turn for turn in turns if plans[turn.row].home is not Tier.DEVICE]

        def kind(numbered: tuple[int, RowTurn]) -> tuple[Any, ...]:
            place, turn = numbered
            return plans[turn.row], turn.past, turn.new, turn.row - place

        for _, alike in groupby(enumerate(off_device), key=kind):
            (_, turn), *others = alike
            starts = self.plan.starts[group][turn.row]
            yield Stretch(1 + len(others), plans[turn.row], starts, turn.past, turn.new)

    def _home(self, layer: int, stretch: Stretch) -> Spot:
        tier, size = stretch.plan.home, stretch.plan.capacity_tokens * self._record
        return Spot(self._homes[tier], layer * self.plan.layer_bytes(tier) + stretch.starts.home, size)

    def _in_slot(self, stretch: Stretch, slot: int) -> Spot:
        return Spot(self._slots[slot], stretch.starts.slot, self.plan.slot_tokens(stretch.plan) * self._record)

    def _staged(self, stretch: Stretch, slot: int) -> Spot:
        return Spot(self._staging_in[slot], stretch.starts.staged, stretch.plan.capacity_tokens * self._record)

    def _leaving(self, stretch: Stretch, slot: int) -> Spot:
        size = stretch.plan.prompt_tokens * self._record
        return Spot(self._staging_out[slot], stretch.starts.leaving, size, origin=stretch.past)

    def _copy(self, layer: int, stretch: Stretch, ways: tuple[Spot, Spot], first: int, tokens: int) -> Copy:
        """Records of `tokens` tokens from `first` on of every row of the stretch, from one spot to another."""
        source, target = ways
        for spot in ways:
            spot.piece(stretch.rows - 1, first, tokens, self._record)  # the last piece lies inside its region too
        pieces = WHOLE if stretch.rows == 1 else Pieces(stretch.rows, source.stride, target.stride)
        there, back = (spot.piece(0, first, tokens, self._record) for spot in ways)
        return Copy("cache", f"layer {layer} cache", there, back, pieces=pieces)

    def _alone(self, group: int, row: int) -> Stretch:
        """A row as a stretch of its own."""
        return Stretch(1, self._row(group, row), self.plan.starts[group][row], 0, 0)

    def _near(self, layer: int, group: int, row: int, slot: int) -> Spot:
        alone = self._alone(group, row)
        return self._home(layer, alone) if alone.plan.home is Tier.DEVICE else self._in_slot(alone, slot)

    def _away(self, layer: int, group: int, row: int, slot: int) -> Spot:
        alone = self._alone(group, row)
        return self._home(layer, alone) if alone.plan.home is Tier.HOST else self._staged(alone, slot)

    def _view(self, spot: Spot) -> Any:
        """A row's whole cache, whose size is its stride."""
        return view(self.backend, spot.region, (spot.stride,), "uint8", spot.offset)
