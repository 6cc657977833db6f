"""How the rows of a group lie in one pass: which are neighbours off the device, and what the operators find; it copies
nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from flexref.backend.parts import Parts
from flexref.tiers.cache_plan import CachePlan, RowPass, RowPlace
from flexref.units import Tier


@dataclass(frozen=True, slots=True)
class Stretch:
    """Neighbouring rows off the device with caches of one size, equal past and new: one copy of `rows` equal pieces.

    past: how many records they have of their own. place: the first one's. in_slot, leaving: where its records start in
    a slot, and its new ones on their way to disk. stride: from one row to the next in a slot: all records of a row
    there, or the new ones alone; 0 for rows that are away, which have none there.
    """

    rows: int
    place: RowPlace
    past: int
    new: int
    in_slot: int
    leaving: int
    stride: int

    @property
    def away(self) -> bool:
        """Whether attention for the rows runs on the host."""
        return not self.stride

    def goes_on(self, other: "Stretch") -> bool:
        """Whether `other`, a single row, is the next piece."""
        mine, its = self.place, other.place
        return (
            (mine.home, mine.in_place, mine.capacity_tokens, self.past, self.new)
            == (its.home, its.in_place, its.capacity_tokens, other.past, other.new)
            and its.start == mine.start + self.rows * mine.capacity_tokens
            and other.leaving == self.leaving + (self.rows * self.new if its.home is Tier.DISK else 0)
            and (other.in_slot, other.stride) == (self.in_slot + self.rows * self.stride, self.stride)
        )


@dataclass(frozen=True, slots=True)
class Arrangement:
    """A group's rows in one pass: stretches off the device, and what the operators find of each row.

    `near`: (place, where in a slot, records there) of those whose cache the operators of the device reach; None in
    place of a slot for those at home there. `away`: the others', for which attention runs on the host. `prefixes`: what
    the near ones share, if any of them does.
    """

    rows: Sequence[RowPass]
    stretches: Sequence[Stretch]
    near: tuple[tuple[RowPlace, int | None, int], ...]
    away: tuple[RowPlace, ...]
    prefixes: tuple[RowPlace | None, ...]
    parts: dict[tuple[Tier, bool], Parts] = field(default_factory=dict)
    """By home, and whether they go in: what moves between homes or staging and a slot; the same in every layer."""

    def may_stand_for(self, other: "Arrangement") -> bool:
        """Whether what leads from its rows to those of `other` is the same in every layer.

        It is if the rows of both are at home on the device, or those of both in a slot, or those of both are prefixes
        that are read, and share nothing. From one to the other it differs: every layer has a home of its own and, apart
        from that, a place of its own for prefixes; all of them have the same slots.
        """
        kinds = {(slot is not None, place.shared) for place, slot, _ in (*self.near, *other.near)}
        return len(kinds) == 1 and not (self.away or other.away or self.prefixes or other.prefixes)

    def lies_as(self, other: "Arrangement") -> bool:
        """Whether the operators find the same rows at the same places."""
        return (self.near, self.away, self.prefixes) == (other.near, other.away, other.prefixes)

    def after(self, rows: Sequence[RowPass]) -> "Arrangement | None":
        """The arrangement of a pass after this one, if all of its rows are at home on the device and stay in place."""
        if self.stretches or self.away or len(rows) != len(self.rows):
            return None
        for row, before in zip(rows, self.rows, strict=True):
            if row.place is not before.place or row.prefix is not before.prefix:
                return None
        return Arrangement(rows, (), self.near, (), self.prefixes)

    def off_device(self, home: Tier) -> list[Stretch]:
        """The stretches with that home."""
        return [stretch for stretch in self.stretches if stretch.place.home is home]


def arrange(plan: CachePlan, group: int, rows: Sequence[RowPass]) -> Arrangement:
    """How the rows of a group lie in one pass, in the order of the operators."""
    room = plan.groups[group]
    crossing = {tier: room.crossing_tokens(tier) for tier in (Tier.HOST, Tier.DISK)}
    near: list[tuple[RowPlace, int | None, int]] = []
    away: list[RowPlace] = []
    stretches: list[Stretch] = []
    leaving, compact = 0, crossing[Tier.HOST] + crossing[Tier.DISK]
    for row in rows:
        place = row.place
        if place.home is Tier.DEVICE:
            near.append((place, None, place.capacity_tokens))
            continue
        if row.is_away:
            in_slot = stride = 0
            away.append(place)
        elif place.in_place:
            in_slot, stride = compact, row.new
            compact += row.new
        else:
            in_slot = place.start + (crossing[Tier.HOST] if place.home is Tier.DISK else 0)
            stride = place.capacity_tokens
        if stride:
            near.append((place, in_slot, stride))
        single = Stretch(1, place, row.own_past, row.new, in_slot, leaving, stride)
        leaving += row.new if place.home is Tier.DISK else 0
        last = stretches[-1] if stretches else None
        if last is not None and last.goes_on(single):
            stretches[-1] = replace(last, rows=last.rows + 1)
        else:
            stretches.append(single)
    shared = tuple(row.prefix for row in rows[: len(near)])
    return Arrangement(rows, stretches, tuple(near), tuple(away), shared if any(shared) else ())
