"""The KV cache over the tiers, by row: where a row's records are at home, how a visit brings and returns them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from flexref.backend.protocol import Backend
from flexref.backend.records import RecordLayout
from flexref.tiers.pool import Arena
from flexref.tiers.transfer import Copy, Region, Tier, view


@dataclass(frozen=True, slots=True)
class RowPlan:
    """One row's cache: how many tokens it may hold, how many its prompt brings, and where it is at home."""

    capacity_tokens: int
    prompt_tokens: int
    home: Tier


@dataclass(frozen=True)
class CachePlan:
    """Homes and slots of a block's caches. In every group, rows at home on the device come first.

    `far` is True if decode attention over a cache that is not on the device is computed on the host: such a cache
    crosses the link in the prefill only, outward.
    """

    layout: RecordLayout
    layers: int
    groups: tuple[tuple[RowPlan, ...], ...]
    far: bool
    slots: int

    @cached_property
    def row_offsets(self) -> tuple[tuple[int, ...], ...]:
        """Where a row's records start among those of one layer on its home tier."""
        used = dict.fromkeys(Tier, 0)
        offsets = []
        for group in self.groups:
            starts = []
            for row in group:
                starts.append(used[row.home])
                used[row.home] += row.capacity_tokens * self.layout.record_bytes
            offsets.append(tuple(starts))
        return tuple(offsets)

    def layer_bytes(self, tier: Tier) -> int:
        """Bytes that one layer's caches of all rows at home on `tier` take."""
        rows = (row for group in self.groups for row in group if row.home is tier)
        return sum(row.capacity_tokens for row in rows) * self.layout.record_bytes

    def _largest(self, tokens: Mapping[Tier, str]) -> int:
        """Bytes of the largest group, counting for each home tier the named tokens of its rows."""
        sums = (sum(getattr(row, tokens[row.home]) for row in group if row.home in tokens) for group in self.groups)
        return max(sums, default=0) * self.layout.record_bytes

    @property
    def slot_bytes(self) -> int:
        """Device bytes of one slot: the caches of one group's rows that are at home elsewhere."""
        tokens = "prompt_tokens" if self.far else "capacity_tokens"
        return self._largest({Tier.HOST: tokens, Tier.DISK: tokens})

    @property
    def staging_in_bytes(self) -> int:
        """Host bytes of one slot for caches that come from disk."""
        return self._largest({Tier.DISK: "capacity_tokens"})

    @property
    def staging_out_bytes(self) -> int:
        """Host bytes of one slot for new records on their way to disk: at most a prompt's."""
        return self._largest({Tier.DISK: "prompt_tokens"})

    def needs(self) -> Iterator[tuple[Tier, str, int]]:
        """(tier, holder, bytes) of everything that `CacheStore` will take."""
        for tier in Tier:
            if self.layer_bytes(tier):
                yield tier, "KV cache", self.layers * self.layer_bytes(tier)
        if self.slot_bytes:
            yield Tier.DEVICE, "KV cache slots", self.slots * self.slot_bytes
        if self.staging_in_bytes:
            yield Tier.HOST, "KV cache staging in", self.slots * self.staging_in_bytes
            yield Tier.HOST, "KV cache staging out", self.slots * self.staging_out_bytes


@dataclass(frozen=True, slots=True)
class RowTurn:
    """One live row in one pass: which row of its group's plan, tokens in its cache, and new ones."""

    row: int
    past: int
    new: int


@dataclass(slots=True)
class CacheStore:
    """A block's caches: allocates, lists the copies of each visit, and hands out the rows that operators work on."""

    plan: CachePlan
    backend: Backend
    _homes: dict[Tier, Region] = field(default_factory=dict)
    _slots: list[Region] = field(default_factory=list)
    _staging_in: list[Region] = field(default_factory=list)
    _staging_out: list[Region] = field(default_factory=list)
    _taken: list[tuple[Arena, str, Region]] = field(default_factory=list)
    _handles: dict[tuple[Any, ...], Any] = field(default_factory=dict)

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

    def attends_far(self, turns: Sequence[RowTurn]) -> bool:
        """Whether this visit's rows off the device are attended to where they are: in decode, if the plan says so."""
        return self.plan.far and all(turn.past for turn in turns)

    def fetch(self, layer: int, group: int, turns: Sequence[RowTurn], slot: int) -> list[Copy]:
        """disk -> host: what rows at home on disk hold so far."""
        return [
            self._copy(layer, self._home(layer, group, turn.row), self._staged(group, turn.row, slot), 0, turn.past)
            for turn in turns
            if turn.past and self._row(group, turn.row).home is Tier.DISK
        ]

    def load(self, layer: int, group: int, turns: Sequence[RowTurn], slot: int) -> list[Copy]:
        """host -> device: what rows at home on host or disk hold so far, unless it is attended to where it is."""
        if self.attends_far(turns):
            return []
        copies = []
        for turn in turns:
            tier = self._row(group, turn.row).home
            if turn.past and tier is not Tier.DEVICE:
                source = (
                    self._home(layer, group, turn.row) if tier is Tier.HOST else self._staged(group, turn.row, slot)
                )
                copies.append(self._copy(layer, source, self._in_slot(group, turn.row, slot), 0, turn.past))
        return copies

    def store(self, layer: int, group: int, turns: Sequence[RowTurn], slot: int) -> list[Copy]:
        """device -> host: the new records of rows at home on host or disk."""
        if self.attends_far(turns):
            return []
        copies, record = [], self.plan.layout.record_bytes
        for turn in turns:
            tier = self._row(group, turn.row).home
            if tier is Tier.DEVICE:
                continue
            fresh = self._in_slot(group, turn.row, slot).part(turn.past * record, turn.new * record)
            if tier is Tier.HOST:
                target = self._home(layer, group, turn.row).part(turn.past * record, turn.new * record)
            else:
                target = self._leaving(group, turn.row, slot).part(0, turn.new * record)
            copies.append(Copy("cache", f"layer {layer} cache", fresh, target))
        return copies

    def spill(self, layer: int, group: int, turns: Sequence[RowTurn], slot: int) -> list[Copy]:
        """host -> disk: the new records of rows at home on disk."""
        copies, record = [], self.plan.layout.record_bytes
        for turn in turns:
            if self._row(group, turn.row).home is not Tier.DISK:
                continue
            if self.attends_far(turns):
                source = self._staged(group, turn.row, slot).part(turn.past * record, turn.new * record)
            else:
                source = self._leaving(group, turn.row, slot).part(0, turn.new * record)
            target = self._home(layer, group, turn.row).part(turn.past * record, turn.new * record)
            copies.append(Copy("cache", f"layer {layer} cache", source, target))
        return copies

    def handles(self, layer: int, group: int, turns: Sequence[RowTurn], slot: int) -> tuple[Any, Any, int]:
        """(rows for the device, rows for the host or None, live rows of the former) of a visit.

        Handles are kept: they change only with the rows that are alive, and a port may have uploaded them.
        """
        far = self.attends_far(turns)
        rows = tuple(turn.row for turn in turns)
        key = (layer, group, slot, rows, far)
        if key not in self._handles:
            near_rows = [row for row in rows if not far or self._row(group, row).home is Tier.DEVICE]
            near = [self._view(self._near(layer, group, row, slot)) for row in near_rows]
            away = [self._view(self._away(layer, group, row, slot)) for row in rows[len(near_rows) :]]
            layout = self.plan.layout
            self._handles[key] = (
                self.backend.cache_rows(near, layout) if near else None,
                self.backend.cache_rows(away, layout) if away else None,
                len(near),
            )
        return self._handles[key]  # type: ignore[no-any-return]

    def forget(self, group: int) -> None:
        """A row of the group has retired: its handles are of no more use."""
        for key in [key for key in self._handles if key[1] == group]:
            del self._handles[key]

    def _row(self, group: int, row: int) -> RowPlan:
        return self.plan.groups[group][row]

    def _row_bytes(self, group: int, row: int) -> int:
        return self._row(group, row).capacity_tokens * self.plan.layout.record_bytes

    def _home(self, layer: int, group: int, row: int) -> Region:
        tier = self._row(group, row).home
        start = layer * self.plan.layer_bytes(tier) + self.plan.row_offsets[group][row]
        return self._homes[tier].part(start, self._row_bytes(group, row))

    def _sum(self, group: int, row: int, tokens: str, tiers: tuple[Tier, ...]) -> int:
        """Bytes of the rows of the group before `row` whose home is among `tiers`: where a slot holds the row."""
        before = (other for other in self.plan.groups[group][:row] if other.home in tiers)
        return sum(int(getattr(other, tokens)) for other in before) * self.plan.layout.record_bytes

    def _in_slot(self, group: int, row: int, slot: int) -> Region:
        tokens = "prompt_tokens" if self.plan.far else "capacity_tokens"
        start = self._sum(group, row, tokens, (Tier.HOST, Tier.DISK))
        return self._slots[slot].part(start, getattr(self._row(group, row), tokens) * self.plan.layout.record_bytes)

    def _staged(self, group: int, row: int, slot: int) -> Region:
        start = self._sum(group, row, "capacity_tokens", (Tier.DISK,))
        return self._staging_in[slot].part(start, self._row_bytes(group, row))

    def _leaving(self, group: int, row: int, slot: int) -> Region:
        start = self._sum(group, row, "prompt_tokens", (Tier.DISK,))
        size = self._row(group, row).prompt_tokens * self.plan.layout.record_bytes
        return self._staging_out[slot].part(start, size)

    def _near(self, layer: int, group: int, row: int, slot: int) -> Region:
        at_home = self._row(group, row).home is Tier.DEVICE
        return self._home(layer, group, row) if at_home else self._in_slot(group, row, slot)

    def _away(self, layer: int, group: int, row: int, slot: int) -> Region:
        on_host = self._row(group, row).home is Tier.HOST
        return self._home(layer, group, row) if on_host else self._staged(group, row, slot)

    def _view(self, region: Region) -> Any:
        return view(self.backend, region, (region.nbytes,), "uint8")

    def _copy(self, layer: int, source: Region, target: Region, first: int, tokens: int) -> Copy:
        record = self.plan.layout.record_bytes
        part = (first * record, tokens * record)
        return Copy("cache", f"layer {layer} cache", source.part(*part), target.part(*part))
