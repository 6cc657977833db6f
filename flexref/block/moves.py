"""What a block has to move: gives every movement of the schedule its copies; it starts none and computes nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flexref.architecture.stages import StageKind
from flexref.block.group import Group
from flexref.block.state import BlockState
from flexref.schedule.zigzag import Hop, Movement
from flexref.tiers.activations import ActivationStore
from flexref.tiers.cache import CacheStore
from flexref.tiers.cache_plan import RowPass
from flexref.tiers.transfer import Copy, Gather, Transfer, host_bytes
from flexref.units import DTYPE_BYTES, Kind, Tier

CACHE_MOVES: Mapping[Hop, Callable[[CacheStore, int, int, Sequence[RowPass], int], list[Copy]]] = {
    Hop.FETCH: CacheStore.fetch,
    Hop.LOAD: CacheStore.load,
    Hop.STORE: CacheStore.store,
    Hop.SPILL: CacheStore.spill,
}
"""What a store of caches is asked for each hop."""

ACTIVATION_MOVES: Mapping[Hop, Callable[[ActivationStore, int, int, int], list[Copy]]] = {
    Hop.FETCH: ActivationStore.fetch,
    Hop.LOAD: ActivationStore.load,
    Hop.STORE: ActivationStore.store,
    Hop.SPILL: ActivationStore.spill,
}
"""What a store of activations is asked for each hop."""

INWARD = (Hop.FETCH, Hop.LOAD)
"""The hops that bring what a visit computes on; the others take its results away."""


@dataclass(eq=False)
class BlockMoves(BlockState):
    """The moves of one block that leaves logits. One that scores moves other activations in the head."""

    def transfers(self, movement: Movement) -> Sequence[Transfer]:
        """What the movement has to move now (see `executor.Work`).

        It is asked once per movement, when the movement is started, in the order of the beats, and answers for the rows
        as they are then: a group without a live row moves nothing, and a cache is as long as before the visit. A load
        that is started one visit early still finds the rows that its visit will find. Rows change when tokens are
        chosen, in the head's last visit of a group; the only movements of the next pass that are started before that
        are those of weights, which belong to no row. Then, too, rows come and leave (`BlockRows`). Nothing here starts
        a copy or changes data, and nothing waits, but for weights whose home is the host while they still load.
        """
        visit = movement.visit
        if movement.kind is Kind.WEIGHTS:
            staged = self.shape.fetch_slot(visit)
            if movement.hop is Hop.FETCH:
                return self.weights.fetch(visit.stage, staged)
            self.weights.ready(visit.stage)
            return self.weights.load_slot(visit.stage, self.shape.weights_slot(visit), staged)
        if not self.groups[visit.group].fed:
            return []
        if movement.kind is Kind.CACHE:
            return self._cache_transfers(movement)
        return self._activation_transfers(movement)

    def _cache_transfers(self, movement: Movement) -> Sequence[Transfer]:
        visit, stage = movement.visit, self._stages[movement.visit.stage]
        if stage.kind is not StageKind.LAYER:
            return []
        rows, slot = self.groups[visit.group].in_pass, self.shape.data_slot(visit)
        return CACHE_MOVES[movement.hop](self._cache, stage.index, visit.group, rows, slot)

    def _activation_transfers(self, movement: Movement) -> Sequence[Transfer]:
        visit, stage = movement.visit, self._stages[movement.visit.stage]
        group, slot = self.groups[visit.group], self.shape.data_slot(visit)
        inward = movement.hop in INWARD
        if stage.kind is StageKind.EMBED and inward:
            return self._token_row_transfers(movement.hop, group, slot)
        if stage.kind is StageKind.HEAD and not (inward and stage.index == 0):
            return []
        nbytes = self._values_bytes(group.tokens * self.weights.plan.file.spec.width)
        return ACTIVATION_MOVES[movement.hop](self._activations, visit.group, nbytes, slot)

    def _token_row_transfers(self, hop: Hop, group: Group, slot: int) -> Sequence[Transfer]:
        if not self.plan.activations.token_rows_bytes:
            return []
        row_bytes = self.weights.plan.file.spec.embed_width * DTYPE_BYTES[self.weights.plan.file.dtype]
        if hop is Hop.LOAD:
            return self._activations.load_token_rows(group.tokens * row_bytes, slot)
        self.weights.ready(0)
        target = self._activations.token_rows(Tier.HOST, slot).part(0, group.tokens * row_bytes)
        reads = self.weights.table_reads(group.token_ids(), self._first_rows)
        from_disk = sum(len(read.tokens) for read in reads if read.from_disk) * row_bytes

        def gather() -> None:
            rows = host_bytes(self.backend, target).reshape(-1, row_bytes)
            for read in reads:
                for piece in read.pieces(row_bytes):
                    rows[piece.tokens] = self.weights.read_table_rows(piece)

        return [Gather(Kind.WEIGHTS, "token rows", from_disk, target.nbytes, gather)]
