"""One block of a job before it runs: its memory and the shape of its schedule; it has no rows and runs nothing."""

from dataclasses import dataclass

from flexref.block.memory_plan import BlockPlan
from flexref.schedule.zigzag import Shape
from flexref.tiers.weights_plan import WeightsPlan


@dataclass(frozen=True, slots=True)
class PlannedBlock:
    """The places of a block, and every byte that they will hold beside the weights.

    Of a row a pass reads `prompt_chunk_tokens` at most; None: as much as there is room for. replays: whether visits are
    recorded and replayed, where the port can.
    """

    memory: BlockPlan
    weights: WeightsPlan
    prompt_chunk_tokens: int | None = None
    replays: bool = False

    @property
    def shape(self) -> Shape:
        """What the schedule must know of the block. How many passes it takes nobody knows yet."""
        weights = self.weights
        return Shape(
            passes=None,
            stages=len(weights.stages),
            groups=len(self.memory.cache.groups),
            slots=weights.slots,
            kinds=self.memory.moving(weights),
            fetched=weights.fetched,
            fetch_slots=weights.staging_slots,
        )

    @property
    def places(self) -> int:
        """Rows that may be in the block at a time."""
        return sum(group.rows for group in self.memory.cache.groups)
