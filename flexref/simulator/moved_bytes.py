"""Counts what a job moves over every link, to the byte, from what its passes feed and find; it runs nothing.

What a pass moves is linear in its tokens and records, so what all passes move follows from their sums.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from flexref.architecture.program import program_of
from flexref.architecture.stages import StageKind
from flexref.block.planned_block import PlannedBlock
from flexref.simulator.job_walk import PassSums, Walk
from flexref.tiers.weights import WeightStore
from flexref.units import DTYPE_BYTES, LINK_OF, LOGITS_BYTES, Kind, Tier

TO_DEVICE, TO_HOST = LINK_OF[Tier.HOST, Tier.DEVICE], LINK_OF[Tier.DEVICE, Tier.HOST]
FROM_DISK, TO_DISK = LINK_OF[Tier.DISK, Tier.HOST], LINK_OF[Tier.HOST, Tier.DISK]

Flows = Counter[tuple[str, str]]
"""Bytes by (link, kind)."""


@dataclass(frozen=True)
class MovedBytes:
    """What the passes of a planned block move, which computes in `compute_dtype`."""

    planned: PlannedBlock
    weights: WeightStore
    compute_dtype: str

    def of(self, walk: Walk) -> Flows:
        """Of all passes together."""
        sums = PassSums(*(int(total) for total in walk.sums.sum(axis=0)))
        flows: Flows = Counter()
        for part in (
            self._weights(walk.passes),
            self._token_rows(sums),
            self._cache(sums),
            self._activations(sums),
            self._scored(sums),
            self._crossings(sums),
        ):
            flows.update(part)
        return flows

    def _weights(self, passes: int) -> Flows:
        """Every pass streams every stage once; the gaps between tensors are not read from disk."""
        plan = self.weights.plan
        if not plan.slot_bytes:
            return Counter()
        streamed = sum(stage.homes[tier].nbytes for stage in plan.stages for tier in (Tier.HOST, Tier.DISK))
        read = sum(run.nbytes for stage in plan.stages for run in stage.homes[Tier.DISK].runs)
        return Counter(
            {
                (TO_DEVICE, Kind.WEIGHTS.value): passes * streamed,
                (FROM_DISK, Kind.WEIGHTS.value): passes * read,
            }
        )

    def _token_rows(self, sums: PassSums) -> Flows:
        """Rows of the token table that are not on the device; all of them as those of the first token are."""
        if not self.planned.memory.activations.token_rows_bytes:
            return Counter()
        file = self.weights.plan.file
        row_bytes = file.spec.embed_width * DTYPE_BYTES[file.dtype]
        nbytes = (sums.read + sums.generated) * row_bytes
        reads = self.weights.table_reads(np.zeros(1, np.int32), range(0, file.spec.vocabulary, file.tile_rows))
        from_disk = nbytes if any(read.from_disk for read in reads) else 0
        return Counter({(TO_DEVICE, Kind.WEIGHTS.value): nbytes, (FROM_DISK, Kind.WEIGHTS.value): from_disk})

    def _cache(self, sums: PassSums) -> Flows:
        """Records of rows whose home is not the device: the past ones come, the new ones go.

        Of a row for which attention runs on the host only the first pass's cross, to the host.
        """
        cache = self.planned.memory.cache
        if cache.transient:
            return Counter()
        past = sums.past_on_host + sums.past_on_disk - sums.past_away
        records = {
            TO_DEVICE: past,
            FROM_DISK: sums.past_on_disk,
            TO_HOST: sums.new_on_host + sums.new_on_disk - sums.away,
            TO_DISK: sums.new_on_disk,
        }
        record = cache.layers * cache.layout.record_bytes
        return Counter({(link, Kind.CACHE.value): count * record for link, count in records.items()})

    def _activations(self, sums: PassSums) -> Flows:
        """Hidden states go after the embedding and every layer, and come for every layer and the head."""
        spec = self.weights.plan.file.spec
        token = (spec.layers + 1) * spec.width * DTYPE_BYTES[self.compute_dtype]
        over_link, over_disk = (sums.waits_on_host + sums.waits_on_disk) * token, sums.waits_on_disk * token
        return _both_ways(over_link, over_link, over_disk, over_disk)

    def _scored(self, sums: PassSums) -> Flows:
        """What the head makes of scored tokens goes after its first tile and comes for each other one; logits go."""
        file = self.weights.plan.file
        spec, tiles = file.spec, sum(stage.stage.kind is StageKind.HEAD for stage in self.weights.plan.stages)
        token = spec.embed_width * DTYPE_BYTES[self.compute_dtype]
        goes, comes = token * min(1, tiles - 1), token * (tiles - 1)
        over_link, over_disk = sums.scored_on_host + sums.scored_on_disk, sums.scored_on_disk
        flows = _both_ways(over_link * comes, over_link * goes, over_disk * comes, over_disk * goes)
        flows[TO_HOST, Kind.ACTIVATIONS.value] += sums.scored * spec.vocabulary * LOGITS_BYTES
        return flows

    def _crossings(self, sums: PassSums) -> Flows:
        """Queries, keys and values of tokens for which attention runs on the host, and what it makes of them."""
        spec = self.weights.plan.file.spec
        step = program_of(spec).attention
        token = sums.away * spec.layers * DTYPE_BYTES[self.compute_dtype]
        return _both_ways(token * step.width, token * step.inputs, 0, 0)


def _both_ways(to_device: int, to_host: int, from_disk: int, to_disk: int) -> Flows:
    """Activations over every link."""
    moved = {TO_DEVICE: to_device, TO_HOST: to_host, FROM_DISK: from_disk, TO_DISK: to_disk}
    return Counter({(link, Kind.ACTIVATIONS.value): nbytes for link, nbytes in moved.items()})
