"""What a block's moves and its computation share: rows, stores and memory; it moves nothing and computes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flexref.architecture.stages import Stage, stages
from flexref.backend.protocol import Backend
from flexref.block.admission import Waiting
from flexref.block.block_rows import BlockRows
from flexref.block.group import Group
from flexref.block.memory_plan import BlockPlan, BlockRoom
from flexref.block.planned_block import PlannedBlock
from flexref.block.watch import Watch
from flexref.schedule.zigzag import Shape, Visit
from flexref.tiers.activations import ActivationStore
from flexref.tiers.cache import CacheStore
from flexref.tiers.mover import Mover
from flexref.tiers.pool import Arena
from flexref.tiers.transfer import Region
from flexref.tiers.weights import WeightStore
from flexref.units import DTYPE_BYTES, Tier


@dataclass(eq=False)
class BlockState:
    """The rows of one block in their groups, who waits to come in, and where everything that they need lies."""

    planned: PlannedBlock
    weights: WeightStore
    mover: Mover
    waiting: Waiting
    watch: Watch = field(default_factory=Watch, kw_only=True)
    plan: BlockPlan = field(init=False)
    shape: Shape = field(init=False)
    groups: Sequence[Group] = field(init=False)
    rows: BlockRows = field(init=False)
    _cache: CacheStore = field(init=False)
    _activations: ActivationStore = field(init=False)
    _regions: dict[BlockRoom, Region] = field(init=False, default_factory=dict)
    _taken: list[tuple[Arena, str, Region]] = field(init=False, default_factory=list)
    _stages: tuple[Stage, ...] = field(init=False)
    _first_rows: tuple[int, ...] = field(init=False)
    """The first vocabulary row of every tile of the token table, and of the head."""

    def __post_init__(self) -> None:
        file = self.weights.plan.file
        self.plan, self.shape = self.planned.memory, self.planned.shape
        self._cache = CacheStore(self.plan.cache, self.backend)
        self._activations = ActivationStore(self.plan.activations, self.backend)
        self._stages = stages(file.spec, file.tile_rows)
        self._first_rows = tuple(range(0, file.spec.vocabulary, file.tile_rows))
        self.rows = BlockRows(self.plan.cache, self.waiting, self.planned.prompt_chunk_tokens)
        self.groups = self.rows.groups

    @property
    def backend(self) -> Backend:
        """The port that computes."""
        return self.mover.backend

    def alive(self) -> bool:
        """Whether any row is in the block (see `executor.Work`)."""
        return self.rows.alive()

    def prepare(self, visit: Visit) -> None:
        """Wait for the stage's weights, if they still load (see `executor.Work`)."""
        self.weights.ready(visit.stage)

    def goes_on(self, pass_number: int) -> bool:
        """Whether a pass may follow this one (see `executor.Work`)."""
        return self.rows.goes_on(pass_number)

    def allocate(self, arenas: Mapping[Tier, Arena]) -> None:
        """Take everything that the plan needs."""
        for store in (self._cache, self._activations):
            store.allocate(arenas)
            self.mover.check()
        for tier, room, nbytes in self.plan.own_needs():
            self._regions[room] = arenas[tier].take(room, nbytes)
            self._taken.append((arenas[tier], room, self._regions[room]))
            self.mover.check()
        self.backend.workspace(self._regions[BlockRoom.WORKSPACE].place)  # type: ignore[arg-type]

    def release(self) -> None:
        """Give everything back."""
        self.backend.workspace(None)
        self.rows.admission.prefixes.release()
        for arena, room, region in reversed(self._taken):
            arena.give_back(room, region)
        self._taken.clear()
        self._activations.release()
        self._cache.release()

    def _values_bytes(self, values: int) -> int:
        """Bytes of so many values in the type that the port computes in."""
        return values * DTYPE_BYTES[self.backend.caps.compute_dtype]
