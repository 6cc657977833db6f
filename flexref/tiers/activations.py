"""The hidden states between stages over the tiers, by group, and the token rows that a pass starts from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from flexref.backend.protocol import Backend
from flexref.tiers.pool import Arena
from flexref.tiers.transfer import Copy, Region, lend
from flexref.units import SPILL_BOUNCE_BYTES, Kind, Tier


class ActivationRoom(str, Enum):
    """What a block's hidden states and token rows take memory for, by the name that it is counted under."""

    HOME = "activations"
    SLOTS = "activation slots"
    STAGING_IN = "activation staging in"
    STAGING_OUT = "activation staging out"
    BOUNCE = "activation bounce"
    """What goes to disk, or comes from there, unaligned goes through it."""
    TOKEN_ROW_SLOTS = "token row slots"
    TOKEN_ROW_STAGING = "token row staging"

    __str__ = str.__str__


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """One group's hidden states: the most bytes they take in any pass, and where they wait between stages."""

    most_bytes: int
    home: Tier


@dataclass(frozen=True, slots=True)
class ActivationsPlan:
    """Homes and slots of a block's hidden states.

    `token_rows_bytes` are those of the largest group's rows of the token table, 0 if the whole table is on the device;
    they are gathered on the host and cross the link once per pass.
    """

    groups: tuple[GroupPlan, ...]
    token_rows_bytes: int
    slots: int

    def bytes_at_home(self, tier: Tier) -> int:
        """Bytes of the groups that wait on `tier`."""
        return sum(group.most_bytes for group in self.groups if group.home is tier)

    def _largest(self, tiers: Sequence[Tier]) -> int:
        return max((group.most_bytes for group in self.groups if group.home in tiers), default=0)

    def needs(self) -> Iterator[tuple[Tier, ActivationRoom, int]]:
        """(tier, room, bytes) of everything that `ActivationStore` will take."""
        for tier in Tier:
            if self.bytes_at_home(tier):
                yield tier, ActivationRoom.HOME, self.bytes_at_home(tier)
        if self._largest((Tier.HOST, Tier.DISK)):
            yield Tier.DEVICE, ActivationRoom.SLOTS, self.slots * self._largest((Tier.HOST, Tier.DISK))
        if self._largest((Tier.DISK,)):
            yield Tier.HOST, ActivationRoom.STAGING_IN, self.slots * self._largest((Tier.DISK,))
            yield Tier.HOST, ActivationRoom.STAGING_OUT, self.slots * self._largest((Tier.DISK,))
            yield Tier.HOST, ActivationRoom.BOUNCE, SPILL_BOUNCE_BYTES
        if self.token_rows_bytes:
            yield Tier.DEVICE, ActivationRoom.TOKEN_ROW_SLOTS, self.slots * self.token_rows_bytes
            yield Tier.HOST, ActivationRoom.TOKEN_ROW_STAGING, self.slots * self.token_rows_bytes


@dataclass(slots=True)
class ActivationStore:
    """A block's hidden states: allocates, lists the copies of each visit, and says where the operators find them."""

    plan: ActivationsPlan
    backend: Backend
    _homes: list[Region] = field(default_factory=list)
    _slots: dict[ActivationRoom, list[Region]] = field(default_factory=dict)
    _taken: list[tuple[Arena, str, Region]] = field(default_factory=list)

    def allocate(self, arenas: Mapping[Tier, Arena]) -> None:
        """Take all memory that the plan names."""
        homes: dict[Tier, Region] = {}
        for tier, room, nbytes in self.plan.needs():
            region = arenas[tier].take(room, nbytes)
            self._taken.append((arenas[tier], room, region))
            if room is ActivationRoom.HOME:
                homes[tier] = region
            elif room is ActivationRoom.BOUNCE:
                lend(self.backend, region, homes[Tier.DISK])
            else:
                size = nbytes // self.plan.slots
                self._slots[room] = [region.part(slot * size, size) for slot in range(self.plan.slots)]
        used = dict.fromkeys(Tier, 0)
        for group in self.plan.groups:
            self._homes.append(homes[group.home].part(used[group.home], group.most_bytes))
            used[group.home] += group.most_bytes

    def release(self) -> None:
        """Give all memory back."""
        for arena, holder, region in reversed(self._taken):
            arena.give_back(holder, region)
        self._taken.clear()

    def on_device(self, group: int, slot: int) -> Region:
        """Where the group's hidden states are while a visit computes on them."""
        if self.plan.groups[group].home is Tier.DEVICE:
            return self._homes[group]
        return self._slots[ActivationRoom.SLOTS][slot]

    def fetch(self, group: int, nbytes: int, slot: int) -> list[Copy]:
        """disk -> host."""
        if self.plan.groups[group].home is not Tier.DISK:
            return []
        return [self._copy(group, self._homes[group], self._slots[ActivationRoom.STAGING_IN][slot], nbytes)]

    def load(self, group: int, nbytes: int, slot: int) -> list[Copy]:
        """host -> device."""
        home = self.plan.groups[group].home
        if home is Tier.DEVICE:
            return []
        source = self._homes[group]
        if home is Tier.DISK:
            source = self._slots[ActivationRoom.STAGING_IN][slot]
        return [self._copy(group, source, self._slots[ActivationRoom.SLOTS][slot], nbytes)]

    def store(self, group: int, nbytes: int, slot: int) -> list[Copy]:
        """device -> host."""
        home = self.plan.groups[group].home
        if home is Tier.DEVICE:
            return []
        target = self._homes[group]
        if home is Tier.DISK:
            target = self._slots[ActivationRoom.STAGING_OUT][slot]
        return [self._copy(group, self._slots[ActivationRoom.SLOTS][slot], target, nbytes)]

    def spill(self, group: int, nbytes: int, slot: int) -> list[Copy]:
        """host -> disk."""
        if self.plan.groups[group].home is not Tier.DISK:
            return []
        return [self._copy(group, self._slots[ActivationRoom.STAGING_OUT][slot], self._homes[group], nbytes)]

    def token_rows(self, tier: Tier, slot: int) -> Region:
        """Where the gathered rows of the token table are on host or device."""
        room = ActivationRoom.TOKEN_ROW_STAGING if tier is Tier.HOST else ActivationRoom.TOKEN_ROW_SLOTS
        return self._slots[room][slot]

    def load_token_rows(self, nbytes: int, slot: int) -> list[Copy]:
        """host -> device of what was gathered; the rows are weights."""
        source, target = self.token_rows(Tier.HOST, slot), self.token_rows(Tier.DEVICE, slot)
        return [Copy(Kind.WEIGHTS, "token rows", source.part(0, nbytes), target.part(0, nbytes))]

    def _copy(self, group: int, source: Region, target: Region, nbytes: int) -> Copy:
        return Copy(Kind.ACTIVATIONS, f"group {group} activations", source.part(0, nbytes), target.part(0, nbytes))
