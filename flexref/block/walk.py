"""One block on its way through a model: gives the schedule's operations their meaning on the stores and the stages.

What becomes of the last hidden states, tokens or scores, is not known here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from flexref.architecture.spec import Stage, stages, token_tiles
from flexref.backend.protocol import ALIGNMENT_BYTES, Array, Backend, Matrix, Ticket
from flexref.backend.records import DTYPE_BYTES, aligned
from flexref.block.memory_plan import BlockPlan, expandable
from flexref.block.rows import Group
from flexref.block.visits import embed_visit
from flexref.block.watch import Watch
from flexref.model import opt
from flexref.model.cache import LayerCache
from flexref.model.weights import LayerWeights, embed_weights, layer_weights
from flexref.schedule.zigzag import Hop, Kind, Movement, Shape, Visit
from flexref.tiers.activations import ActivationStore
from flexref.tiers.cache import CacheStore, RowPass
from flexref.tiers.mover import Mover
from flexref.tiers.pool import Arena
from flexref.tiers.transfer import Copy, Crossing, Gather, Region, Tier, Transfer, host_bytes, view
from flexref.tiers.weights import WeightStore

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
class Walk:
    """The `executor.Work` of one block, but for the head's visits (`_head`)."""

    plan: BlockPlan
    weights: WeightStore
    mover: Mover
    groups: Sequence[Group]
    shape: Shape
    watch: Watch = field(default_factory=Watch, kw_only=True)
    _cache: CacheStore = field(init=False)
    _activations: ActivationStore = field(init=False)
    _regions: dict[str, Region] = field(init=False, default_factory=dict)
    _taken: list[tuple[Arena, str, Region]] = field(init=False, default_factory=list)
    _stages: tuple[Stage, ...] = field(init=False)
    _first_rows: list[int] = field(init=False)
    _tables: list[tuple[int, Array]] = field(init=False)
    _operands: dict[tuple[int, int], dict[str, Matrix]] = field(init=False, default_factory=dict)
    _layers: dict[tuple[int, int], tuple[dict[str, Matrix], LayerWeights]] = field(init=False, default_factory=dict)
    _expanded: tuple[int, dict[str, Matrix]] = field(init=False, default=(-1, {}))
    _segments: dict[int, tuple[Sequence[RowPass], Any, Any, int]] = field(init=False, default_factory=dict)
    _spans: list[tuple[Stage, int, Ticket, Ticket]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        file = self.weights.plan.file
        self._cache = CacheStore(self.plan.cache, self.backend)
        self._activations = ActivationStore(self.plan.activations, self.backend)
        self._stages = stages(file.spec, file.tile_rows)
        names = [tile.name for tile in token_tiles(file.spec, file.tile_rows)]
        self._first_rows = [tile * file.tile_rows for tile in range(len(names))]
        found = ((first, self.weights.device_table(name)) for first, name in zip(self._first_rows, names, strict=True))
        self._tables = [(first, table) for first, table in found if table is not None]

    @property
    def backend(self) -> Backend:
        """The port that computes."""
        return self.mover.backend

    def allocate(self, arenas: Mapping[Tier, Arena]) -> None:
        """Take everything that the plan needs."""
        for store in (self._cache, self._activations):
            store.allocate(arenas)
            self.mover.check()
        for tier, holder, nbytes in self.plan.own_needs():
            self._regions[holder] = arenas[tier].take(holder, nbytes)
            self._taken.append((arenas[tier], holder, self._regions[holder]))
            self.mover.check()
        self.backend.workspace(self._regions["workspace"].place)  # type: ignore[arg-type]

    def release(self) -> None:
        """Give everything back."""
        self.backend.workspace(None)
        for arena, holder, region in reversed(self._taken):
            arena.give_back(holder, region)
        self._taken.clear()
        self._activations.release()
        self._cache.release()

    def alive(self) -> bool:
        """Whether any row goes on."""
        return any(group.alive for group in self.groups)

    # Moves

    def transfers(self, movement: Movement) -> Sequence[Transfer]:
        """What the movement has to move now (see `executor.Work`).

        Asked once per movement, when it is started, in the order of the beats. It looks at rows as they are at that
        time: a group without a live row moves nothing, a cache's length is that before the visit. So a load that is
        started a visit ahead finds the same rows as its visit will: tokens are chosen in the head's last visit of a
        pass, and what is started ahead of it into the next pass are weights, which belong to no row, and moves whose
        group's tokens have been chosen. Nothing here starts, waits or changes what is at home anywhere.
        """
        visit = movement.visit
        if movement.kind is Kind.WEIGHTS:
            slot = self.shape.weights_slot(visit)
            move = self.weights.fetch if movement.hop is Hop.FETCH else self.weights.load_slot
            return move(visit.stage, slot)
        if not self.groups[visit.group].alive:
            return []
        if movement.kind is Kind.CACHE:
            return self._cache_transfers(movement)
        return self._activation_transfers(movement)

    def _cache_transfers(self, movement: Movement) -> Sequence[Transfer]:
        visit, stage = movement.visit, self._stages[movement.visit.stage]
        if stage.kind != "layer":
            return []
        rows, slot = self.groups[visit.group].in_pass, self.shape.data_slot(visit)
        return CACHE_MOVES[movement.hop](self._cache, stage.index, visit.group, rows, slot)

    def _activation_transfers(self, movement: Movement) -> Sequence[Transfer]:
        visit, stage = movement.visit, self._stages[movement.visit.stage]
        group, slot = self.groups[visit.group], self.shape.data_slot(visit)
        inward = movement.hop in INWARD
        if stage.kind == "embed" and inward:
            return self._token_row_transfers(movement.hop, group, slot)
        if stage.kind == "head" and not (inward and stage.index == 0):
            return []
        return ACTIVATION_MOVES[movement.hop](self._activations, visit.group, self._x_bytes(group), slot)

    def _x_bytes(self, group: Group) -> int:
        return group.tokens * self.weights.plan.file.spec.width * DTYPE_BYTES[self.backend.caps.compute_dtype]

    def _token_row_transfers(self, hop: Hop, group: Group, slot: int) -> Sequence[Transfer]:
        if not self.plan.activations.token_rows_bytes:
            return []
        row_bytes = self.weights.plan.file.spec.embed_width * DTYPE_BYTES[self.weights.plan.file.dtype]
        if hop is Hop.LOAD:
            return self._activations.load_token_rows(group.tokens * row_bytes, slot)
        target = self._activations.token_rows(Tier.HOST, slot).part(0, group.tokens * row_bytes)
        reads = self.weights.table_reads(group.token_ids(), self._first_rows)
        from_disk = sum(len(read.tokens) for read in reads if read.from_disk) * row_bytes

        def gather() -> None:
            rows = host_bytes(self.backend, target).reshape(-1, row_bytes)
            for read in reads:
                for piece in read.pieces(row_bytes):
                    rows[piece.tokens] = self.weights.read_table_rows(piece)

        return [Gather("weights", "token rows", from_disk, target.nbytes, gather)]

    # Computation

    def compute(self, visit: Visit) -> None:
        """Call the visit's operators (see `executor.Work`)."""
        group, stage = self.groups[visit.group], self._stages[visit.stage]
        if not group.alive:
            return
        if self.watch.on_visit is not None:
            self.watch.on_visit(stage, visit.group, visit.pass_number)
        # Marks are passed when the operators before them are done: where a port is asynchronous, the host's clock says
        # when they were called.
        begin = self.backend.mark() if self.watch.on_computed is not None else None
        if stage.kind == "embed":
            self._embed(visit, group)
        elif stage.kind == "layer":
            self._layer(visit, stage, group)
        else:
            self._head(visit, stage, group)
        if self.watch.on_hidden is not None and stage.kind != "head":
            self.watch.on_hidden(stage, group.row_numbers(), self.backend.download(self._x(visit, group)))
        if begin is not None:
            self._spans.append((stage, visit.group, begin, self.backend.mark()))

    def tell_watch(self) -> None:
        """Tell who watches of the visits that were computed since the last call; waits for them."""
        spans, self._spans = self._spans, []
        for stage, group, begin, end in spans:
            assert self.watch.on_computed is not None
            self.watch.on_computed(stage, group, begin.times()[0][0], end.times()[0][0])

    def _x(self, visit: Visit, group: Group) -> Array:
        region = self._activations.on_device(visit.group, self.shape.data_slot(visit))
        shape = (group.tokens, self.weights.plan.file.spec.width)
        return view(self.backend, region, shape, self.backend.caps.compute_dtype)  # type: ignore[return-value]

    def _stage_operands(self, visit: Visit, tokens: int) -> dict[str, Matrix]:
        """The stage's operands where they are now; expanded by the first group that wants them so."""
        slot = self.shape.weights_slot(visit)
        key = (visit.stage, slot)
        if key not in self._operands:
            self._operands[key] = self.weights.operands(visit.stage, slot)
        stored = self._operands[key]
        if "expanded weights" not in self._regions or tokens <= self.backend.caps.fused_rows:
            return stored
        if self._expanded[0] != self.shape.stage_number(visit):
            self._expanded = (self.shape.stage_number(visit), self._expand(self._stages[visit.stage], stored))
        return self._expanded[1]

    def _layer_weights(self, visit: Visit, stage: Stage, tokens: int) -> LayerWeights:
        """A layer's operands by their roles; kept as long as the tensors are those they were made from."""
        tensors = self._stage_operands(visit, tokens)
        key = (visit.stage, self.shape.weights_slot(visit))
        known = self._layers.get(key)
        if known is None or known[0] is not tensors:
            known = self._layers[key] = tensors, layer_weights(tensors, stage.index)
        return known[1]

    def _expand(self, stage: Stage, stored: dict[str, Matrix]) -> dict[str, Matrix]:
        expanded, offset, file = dict(stored), 0, self.weights.plan.file
        dtype = self.backend.caps.compute_dtype
        for tensor in stage.tensors:
            if expandable(tensor, file.tensors[tensor.name], dtype):
                out = view(self.backend, self._regions["expanded weights"], tensor.shape, dtype, offset)
                expanded[tensor.name] = self.backend.expand(stored[tensor.name], out)  # type: ignore[arg-type]
                offset += aligned(tensor.elements * DTYPE_BYTES[dtype], ALIGNMENT_BYTES)
        return expanded

    def _embed(self, visit: Visit, group: Group) -> None:
        file, be = self.weights.plan.file, self.backend
        shape, dtype = (group.tokens, file.spec.embed_width), file.dtype
        weights = embed_weights(self._stage_operands(visit, group.tokens))
        inputs = (group.token_ids(), group.position_ids())
        with be.frame():
            if self.plan.activations.token_rows_bytes:
                region = self._activations.token_rows(Tier.DEVICE, self.shape.data_slot(visit))
                rows: Any = view(be, region, shape, dtype)
            else:
                rows = be.empty(shape, dtype)
            embed_visit(be, weights, self._tables, rows, inputs, self._x(visit, group))

    def _layer(self, visit: Visit, stage: Stage, group: Group) -> None:
        rows, slot = group.in_pass, self.shape.data_slot(visit)
        near, away, near_rows = self._cache.handles(stage.index, visit.group, rows, slot)
        known = self._segments.get(visit.group)
        if known is None or known[0] is not rows:
            near_part, away_part = rows[:near_rows], rows[near_rows:]
            handles = (self._segments_handle(near_part), self._segments_handle(away_part))
            known = self._segments[visit.group] = (rows, *handles, sum(row.new for row in near_part))
        _, segments, away_segments, near_tokens = known
        far = partial(self._attend_far, away, away_segments) if away is not None else None
        weights = self._layer_weights(visit, stage, group.tokens)
        cache = LayerCache(near, segments, near_tokens, far)
        opt.decoder_layer(self.backend, self.weights.plan.file.spec, weights, self._x(visit, group), cache)

    def _segments_handle(self, rows: Sequence[RowPass]) -> Any:
        return self.backend.segments([row.past for row in rows], [row.new for row in rows]) if rows else None

    def _attend_far(self, rows: Any, segments: Any, qkv: Array, context: Array) -> None:
        """Queries, keys and values cross to the host, attention runs where the cache is, its result crosses back."""
        be, spec = self.backend, self.weights.plan.file.spec
        dtype, tokens, width = be.caps.compute_dtype, qkv.shape[0], spec.width
        item = DTYPE_BYTES[dtype]
        region = self._regions["attention on host"]
        there = region.part(0, tokens * 3 * width * item)
        back = region.part(there.nbytes, tokens * width * item)
        host_qkv: Any = view(be, there, (tokens, 3 * width), dtype)
        host_context: Any = view(be, back, (tokens, width), dtype)
        self.mover.carry(Crossing("activations", "queries, keys, values", there.nbytes, "device->host"), qkv, host_qkv)
        be.append(rows, segments, host_qkv[:, width : 2 * width], host_qkv[:, 2 * width :])
        be.attend(rows, segments, host_qkv[:, :width], spec.head_width**-0.5, host_context)
        self.mover.carry(Crossing("activations", "attention", back.nbytes, "host->device"), host_context, context)

    def _head(self, visit: Visit, stage: Stage, group: Group) -> None:
        """Compute one tile of the head for one group."""
        raise NotImplementedError
