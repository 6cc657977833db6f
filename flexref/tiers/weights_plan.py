"""Where a model's weights are to lie: every tensor's home, the bytes of homes and slots; it moves nothing."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flexref.architecture.stages import Stage, StageKind, stages, token_tiles
from flexref.policy import Policy, Shares
from flexref.storage.weightfile import StoredTensor, WeightFile
from flexref.tiers.disk import CHUNK_BYTES
from flexref.tiers.placement import place_stages
from flexref.units import ALIGNMENT_BYTES, GIB, Tier, aligned, slots_of

LOADING_PLACES = 4
"""Places that weights pass through while they are loaded: one is filled by the disk, others are checked, or copied to
the device, or asked for."""

LOADING_PIECES = 1024
"""Pieces of what has its home on the device that staging slots are used for: each takes the host half a millisecond,
however small it is. Tiny slots, where the disk is the home of some biases alone, would make loading many times as long.
"""

STAGING, LOADING = "weight staging", "loading"
"""What host memory is held for through which weights come from disk: in every pass, and once."""


@dataclass(frozen=True, slots=True)
class Run:
    """Tensors that lie next to each other in the file: one range of it, one range of wherever it is copied to."""

    tensors: tuple[StoredTensor, ...]
    file_offset: int
    nbytes: int

    @classmethod
    def of(cls, tensors: Sequence[StoredTensor]) -> "Run":
        """The bytes from the first tensor's start to the last one's end, alignment gaps included."""
        extents = [part.extent for tensor in tensors for part in tensor.parts]
        start = min(extent.offset for extent in extents)
        return cls(tuple(tensors), start, max(extent.offset + extent.nbytes for extent in extents) - start)

    def joined(self, other: "Run") -> "Run":
        """This one and another as one."""
        start = min(self.file_offset, other.file_offset)
        end = max(run.file_offset + run.nbytes for run in (self, other))
        return Run((*self.tensors, *other.tensors), start, end - start)


def runs_of(tensors: Iterable[StoredTensor]) -> list[Run]:
    """Tensors in file order as the fewest runs: two are of one run if nothing but an alignment gap is between them."""
    runs: list[Run] = []
    for tensor in tensors:
        single = Run.of([tensor])
        if runs:
            end = runs[-1].file_offset + runs[-1].nbytes
            if 0 <= single.file_offset - end < ALIGNMENT_BYTES:
                runs[-1] = runs[-1].joined(single)
                continue
        runs.append(single)
    return runs


@dataclass(frozen=True, slots=True)
class Layout:
    """Runs one after another in memory, each aligned as it is in the file, so that a direct read can fill it."""

    runs: tuple[Run, ...]
    nbytes: int = field(init=False, compare=False)
    """Bytes of all runs with their alignment: asked in every visit, so worked out once."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "nbytes", sum(aligned(run.nbytes, ALIGNMENT_BYTES) for run in self.runs))

    def offsets(self) -> Iterator[tuple[int, Run]]:
        """Every run with where it starts in memory."""
        offset = 0
        for run in self.runs:
            yield offset, run
            offset += aligned(run.nbytes, ALIGNMENT_BYTES)


@dataclass(frozen=True, slots=True)
class StagePlan:
    """The homes of one stage's tensors, as one layout per tier."""

    stage: Stage
    homes: Mapping[Tier, Layout]

    @property
    def streamed_bytes(self) -> int:
        """Bytes that cross the link to the device each time the stage is fetched."""
        return self.homes[Tier.HOST].nbytes + self.homes[Tier.DISK].nbytes


@dataclass(frozen=True, slots=True)
class WeightsPlan:
    """The homes of all weights. `gathered` are the tiles of a token table that no stage streams (an untied one).

    `slots` stages may be under way to the device; for what comes from disk there are places on the host for as many, or
    for as many more as `read_ahead_bytes` hold, but never for more than stages have weights on disk.
    """

    file: WeightFile
    stages: tuple[StagePlan, ...]
    gathered: tuple[tuple[StoredTensor, Tier], ...]
    slots: int
    read_ahead_bytes: int = 0

    @classmethod
    def under(cls, file: WeightFile, policy: Policy) -> "WeightsPlan":
        """The homes of a file's weights as a policy has them. Without overlap nothing is read ahead."""
        ahead = policy.read_ahead_gib if policy.overlap else None
        return cls.of(file, policy.weights, slots_of(policy.overlap), int((ahead or 0) * GIB))

    @classmethod
    def of(cls, file: WeightFile, shares: Shares, slots: int, read_ahead_bytes: int = 0) -> "WeightsPlan":
        """Place every unit so that totals follow `shares`.

        The token table, the positions and the head come to the device first (see `placement`).
        """
        all_stages = stages(file.spec, file.tile_rows)
        tiles = () if file.spec.tied_head else token_tiles(file.spec, file.tile_rows)
        units = [[[file.tensors[tensor.name] for tensor in unit] for unit in stage.units] for stage in all_stages]
        single = [[[file.tensors[tile.name]]] for tile in tiles]
        sizes = [[sum(tensor.nbytes for tensor in unit) for unit in stage] for stage in units + single]
        ends = {number for number, stage in enumerate(all_stages) if stage.kind is not StageKind.LAYER}
        ends.update(range(len(all_stages), len(sizes)))
        placed = place_stages(sizes, shares, ends)
        plans = []
        for stage, stage_units, tiers in zip(all_stages, units, placed, strict=False):
            homes = {
                tier: Layout(
                    tuple(
                        runs_of(
                            tensor
                            for unit, unit_tier in zip(stage_units, tiers, strict=True)
                            if unit_tier is tier
                            for tensor in unit
                        )
                    )
                )
                for tier in Tier
            }
            plans.append(StagePlan(stage, homes))
        gathered = tuple((stage[0][0], tiers[0]) for stage, tiers in zip(single, placed[len(units) :], strict=True))
        return cls(file, tuple(plans), gathered, slots, read_ahead_bytes)

    def bytes_at_home(self, tier: Tier) -> int:
        """Bytes of weights whose home is `tier`, alignment included."""
        tiles = (aligned(tensor.nbytes, ALIGNMENT_BYTES) for tensor, home in self.gathered if home is tier)
        return sum(plan.homes[tier].nbytes for plan in self.stages) + sum(tiles)

    @property
    def slot_bytes(self) -> int:
        """Device bytes of one streaming slot: the largest streamed part of a stage."""
        return max(plan.streamed_bytes for plan in self.stages)

    @property
    def loading_bytes(self) -> int:
        """Host bytes that loading needs for a while, for what passes through the host.

        Staging slots do as well, if they are not so small that it would take more than `LOADING_PIECES` pieces.
        """
        slot = self.staging_slot_bytes
        if slot and (slot >= CHUNK_BYTES or self.bytes_at_home(Tier.DEVICE) <= LOADING_PIECES * slot):
            return 0
        return self.loading_beside_bytes

    @property
    def loading_beside_bytes(self) -> int:
        """Host bytes that loading needs for a while beside passes, which have need of the staging slots."""
        most = max((run.nbytes for plan in self.stages for tier in Tier for run in plan.homes[tier].runs), default=0)
        return LOADING_PLACES * min(CHUNK_BYTES, aligned(most, ALIGNMENT_BYTES))

    @property
    def staging_slot_bytes(self) -> int:
        """Host bytes of one staging slot for what comes from disk."""
        return max(plan.homes[Tier.DISK].nbytes for plan in self.stages)

    @property
    def fetched(self) -> tuple[int, ...]:
        """The stages of which something comes from disk in every pass."""
        return tuple(number for number, plan in enumerate(self.stages) if plan.homes[Tier.DISK].nbytes)

    @property
    def staging_slots(self) -> int:
        """Places on the host for what comes from disk, of one stage each."""
        if not self.staging_slot_bytes:
            return self.slots
        return max(self.slots, min(self.read_ahead_bytes // self.staging_slot_bytes, len(self.fetched)))

    def needs(self) -> Iterator[tuple[Tier, str, int]]:
        """(tier, holder, bytes) of everything that `WeightStore` will take."""
        for tier in Tier:
            if self.bytes_at_home(tier):
                yield tier, "weights", self.bytes_at_home(tier)
        if self.slot_bytes:
            yield Tier.DEVICE, "weight slots", self.slots * self.slot_bytes
        if self.staging_slot_bytes:
            yield Tier.HOST, STAGING, self.staging_slots * self.staging_slot_bytes


@dataclass(frozen=True, slots=True)
class Needed:
    """A run that is read before the first pass is over; its home: on disk only what rows are gathered from.

    `stage`: the number of the first one that needs it.
    """

    run: Run
    tier: Tier
    stage: int


def runs_to_load(plan: WeightsPlan) -> list[Needed]:
    """Every run that is read before the first pass is over, in the order in which that needs it.

    The token table comes with the stage that it is gathered for, which is the first.
    """
    tied = plan.file.spec.tied_head
    tables: list[Needed] = []
    others: list[Needed] = []
    for number, each in enumerate(plan.stages):
        gathered = tied and each.stage.kind is StageKind.HEAD
        for tier in (Tier.HOST, Tier.DEVICE, *((Tier.DISK,) if gathered else ())):
            where = tables if gathered or not number else others
            where += [Needed(run, tier, 0 if gathered else number) for run in each.homes[tier].runs]
    tables += [Needed(Run.of([tensor]), tier, 0) for tensor, tier in plan.gathered]
    return tables + others
