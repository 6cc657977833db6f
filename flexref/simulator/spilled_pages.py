"""Counts what a disk writes for the spills of a pass: whole pages, whatever part of them is new; it runs nothing."""

from dataclasses import dataclass

from flexref.architecture.stages import StageKind
from flexref.block.group import Group
from flexref.block.planned_block import PlannedBlock
from flexref.units import DTYPE_BYTES, Tier, page_bytes


@dataclass(frozen=True)
class SpilledPages:
    """The spills of a planned block, which computes in `compute_dtype`.

    All layers of a cache begin with a page, so each has as many pages as the first. Hidden states go after the
    embedding and every layer, and what the head makes of scored tokens after its first tile, if there are others.
    """

    planned: PlannedBlock
    compute_dtype: str

    def of(self, number: int, group: Group) -> int:
        """Bytes that a pass of group `number` of the block writes."""
        return self._cache(number, group) + self._activations(number, group)

    def _cache(self, number: int, group: Group) -> int:
        cache = self.planned.memory.cache
        if cache.transient or not cache.groups[number].tokens[Tier.DISK]:
            return 0
        first, record = cache.first_bytes[number][Tier.DISK], cache.layout.record_bytes
        rows = [row for row in group.in_pass if row.place.home is Tier.DISK]
        return cache.layers * sum(
            page_bytes(first + (row.place.start + row.own_past) * record, row.new * record) for row in rows
        )

    def _activations(self, number: int, group: Group) -> int:
        groups = self.planned.memory.activations.groups
        if groups[number].home is not Tier.DISK:
            return 0
        start = sum(each.most_bytes for each in groups[:number] if each.home is Tier.DISK)
        spec, item = self.planned.weights.file.spec, DTYPE_BYTES[self.compute_dtype]
        tiles = sum(stage.stage.kind is StageKind.HEAD for stage in self.planned.weights.stages)
        scored = sum(row.scored for row in group.fed) if tiles > 1 else 0
        states = page_bytes(start, group.tokens * spec.width * item)
        return (spec.layers + 1) * states + page_bytes(start, scored * spec.embed_width * item)
