"""The hidden states between stages over the tiers, by group, and the token rows that a pass starts from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flexref.backend.protocol import Backend
from flexref.tiers.pool import Arena
from flexref.tiers.transfer import Copy, Region, Tier

KIND = "activations"


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

    def needs(self) -> Iterator[tuple[Tier, str, int]]:
        """(tier, holder, bytes) of everything that `ActivationStore` will take."""
        for tier in Tier:
            if self.bytes_at_home(tier):
                yield tier, "activations", self.bytes_at_home(tier)
        if self._largest((Tier.HOST, Tier.DISK)):
            yield Tier.DEVICE, "activation slots", self.slots * self._largest((Tier.HOST, Tier.DISK))
        if self._largest((Tier.DISK,)):
            yield Tier.HOST, "activation staging in", self.slots * self._largest((Tier.DISK,))
            yield Tier.HOST, "activation staging out", self.slots * self._largest((Tier.DISK,))
        if self.token_rows_bytes:
            yield Tier.DEVICE, "token row slots", self.slots * self.token_rows_bytes
            yield Tier.HOST, "token row staging", self.slots * self.token_rows_bytes


@dataclass(slots=True)
class ActivationStore:
    """A block's hidden states: allocates, lists the copies of each visit, and says where the operators find them."""

    plan: ActivationsPlan
    backend: Backend
    _homes: list[Region] = field(default_factory=list)
    _regions: dict[tuple[Tier, str], list[Region]] = field(default_factory=dict)
    _taken: list[tuple[Arena, str, Region]] = field(default_factory=list)

    def allocate(self, arenas: Mapping[Tier, Arena]) -> None:
        """Take all memory that the plan names."""
        homes: dict[Tier, Region] = {}
        for tier, holder, nbytes in self.plan.needs():
            region = arenas[tier].take(holder, nbytes)
            self._taken.append((arenas[tier], holder, region))
            if holder == KIND:
                homes[tier] = region
            else:
                size = nbytes // self.plan.slots
                self._regions[tier, holder] = [region.part(slot * size, size) for slot in range(self.plan.slots)]
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
        return self._regions[Tier.DEVICE, "activation slots"][slot]

    def fetch(self, group: int, nbytes: int, slot: int) -> list[Copy]:
        """disk -> host."""
        if self.plan.groups[group].home is not Tier.DISK:
            return []
        return [self._copy(group, self._homes[group], self._regions[Tier.HOST, "activation staging in"][slot], nbytes)]

    def load(self, group: int, nbytes: int, slot: int) -> list[Copy]:
        """host -> device."""
        home = self.plan.groups[group].home
        if home is Tier.DEVICE:
            return []
        source = self._homes[group]
        if home is Tier.DISK:
            source = self._regions[Tier.HOST, "activation staging in"][slot]
        return [self._copy(group, source, self._regions[Tier.DEVICE, "activation slots"][slot], nbytes)]

    def store(self, group: int, nbytes: int, slot: int) -> list[Copy]:
        """device -> host."""
        home = self.plan.groups[group].home
        if home is Tier.DEVICE:
            return []
        target = self._homes[group]
        if home is Tier.DISK:
            target = self._regions[Tier.HOST, "activation staging out"][slot]
        return [self._copy(group, self._regions[Tier.DEVICE, "activation slots"][slot], target, nbytes)]

    def spill(self, group: int, nbytes: int, slot: int) -> list[Copy]:
        """host -> disk."""
        if self.plan.groups[group].home is not Tier.DISK:
            return []
        return [self._copy(group, self._regions[Tier.HOST, "activation staging out"][slot], self._homes[group], nbytes)]

    def token_rows(self, tier: Tier, slot: int) -> Region:
        """Where the gathered rows of the token table are on host or device."""
        holder = "token row staging" if tier is Tier.HOST else "token row slots"
        return self._regions[tier, holder][slot]

    def load_token_rows(self, nbytes: int, slot: int) -> list[Copy]:
        """host -> device of what was gathered; the rows are weights."""
        source, target = self.token_rows(Tier.HOST, slot), self.token_rows(Tier.DEVICE, slot)
        return [Copy("weights", "token rows", source.part(0, nbytes), target.part(0, nbytes))]

    def _copy(self, group: int, source: Region, target: Region, nbytes: int) -> Copy:
        return Copy(KIND, f"group {group} activations", source.part(0, nbytes), target.part(0, nbytes))
