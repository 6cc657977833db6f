"""Calls the operators of a block's visits, on operands that have arrived; it starts no streaming between tiers.

What the head computes, tokens or scores, is left to the blocks that derive from it.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from flexref.architecture.program import ModelProgram, program_of
from flexref.architecture.stages import Stage, StageKind, token_tiles
from flexref.backend.protocol import Array, Matrix, Ticket
from flexref.block.group import Group
from flexref.block.memory_plan import BlockRoom
from flexref.block.rows import Fed
from flexref.block.state import BlockState
from flexref.block.visits import EmbedInputs, embed_visit
from flexref.block.watch import Computed
from flexref.block.workspace import expandable
from flexref.model.cache import LayerCache
from flexref.model.layers import decoder_layer
from flexref.model.weights import StageWeights, by_role
from flexref.schedule.zigzag import Visit
from flexref.tiers.cache_plan import RowPass
from flexref.tiers.transfer import Crossing, view
from flexref.units import ALIGNMENT_BYTES, DTYPE_BYTES, Kind, Tier, aligned


@dataclass(frozen=True, slots=True)
class TimedVisit:
    """A visit whose operators have been called, with a mark before and after them; `fed`: its rows and tokens."""

    stage: Stage
    visit: Visit
    fed: tuple[int, int]
    begin: Ticket
    end: Ticket


@dataclass(eq=False)
class BlockComputation(BlockState):
    """The computation of one block, without the head's visits (`_head`)."""

    _program: ModelProgram = field(init=False)
    _tables: list[tuple[int, Array]] = field(init=False)
    _operands: dict[tuple[int, int], dict[str, Matrix]] = field(init=False, default_factory=dict)
    _weights: dict[tuple[int, int], tuple[dict[str, Matrix], StageWeights]] = field(init=False, default_factory=dict)
    _expanded: tuple[int, dict[str, Matrix]] = field(init=False, default=(-1, {}))
    _kept: dict[int, dict[str, Matrix]] = field(init=False, default_factory=dict)
    _segments: dict[int, tuple[Sequence[RowPass], Any, Any, int]] = field(init=False, default_factory=dict)
    _spans: deque[TimedVisit] = field(init=False, default_factory=deque)
    _fed: Fed = field(init=False, default_factory=Fed)

    def __post_init__(self) -> None:
        super().__post_init__()
        file = self.weights.plan.file
        self._program = program_of(file.spec)
        tiles = token_tiles(file.spec, file.tile_rows)
        found = [self.weights.device_table(tile.name) for tile in tiles]
        self._tables = [
            (first, table) for first, table in zip(self._first_rows, found, strict=True) if table is not None
        ]

    def compute(self, visit: Visit) -> None:
        """Call the visit's operators (see `executor.Work`)."""
        group, stage = self.groups[visit.group], self._stages[visit.stage]
        if group.fed:
            self._compute(visit, stage, group)
        if visit.stage == len(self._stages) - 1:
            self._end_pass(visit, group)

    def _compute(self, visit: Visit, stage: Stage, group: Group) -> None:
        if self.watch.on_visit is not None:
            self.watch.on_visit(stage, visit.group, visit.pass_number)
        # On an asynchronous port operators run later than they are called, so marks are timed, and not the calls.
        begin = self._begin(visit) if self.watch.on_computed is not None else None
        fed = len(group.fed), group.tokens
        if stage.kind is StageKind.EMBED:
            self._embed(visit, group)
        elif stage.kind is StageKind.LAYER:
            self._layer(visit, stage, group)
        else:
            self._head(visit, stage, group)
        if self.watch.on_hidden is not None and stage.kind is not StageKind.HEAD:
            self.watch.on_hidden(stage, group.row_numbers(), self.backend.download(self._x(visit, group)))
        if begin is not None:
            self._spans.append(TimedVisit(stage, visit, fed, begin, self.backend.mark()))

    def take_fed(self) -> Fed:
        """What was fed since the last call, usually one pass."""
        fed, self._fed = self._fed, Fed()
        return fed

    def tell_watch(self, *, wait: bool = True) -> None:
        """Tell the watch of visits that have ended since the last call; with `wait`, wait for all that were called."""
        while self._spans and (wait or self._spans[0].end.done()):
            span = self._spans.popleft()
            assert self.watch.on_computed is not None
            times = span.begin.times()[0][0], span.end.times()[0][0]
            self.watch.on_computed(Computed(span.stage, span.visit, *span.fed, *times))

    def release(self) -> None:
        """Release all memory. Before that, tell the watch of the visits that have ended, for an interrupted run."""
        try:
            self.tell_watch(wait=False)
        finally:
            super().release()

    def _begin(self, visit: Visit) -> Ticket:
        """A mark before the visit's operators; the watch is told of visits and copies that have ended by now."""
        if visit.group == 0:
            self.mover.harvest()
        self.tell_watch(wait=False)
        return self.backend.mark()

    def _x(self, visit: Visit, group: Group) -> Array:
        """The group's hidden states (T, E), where they lie for this visit."""
        region = self._activations.on_device(visit.group, self.shape.data_slot(visit))
        shape = (group.tokens, self.weights.plan.file.spec.width)
        return view(self.backend, region, shape, self.backend.caps.compute_dtype)  # type: ignore[return-value]

    def _stage_operands(self, visit: Visit, tokens: int) -> dict[str, Matrix]:
        """The stage's tensors on the device by name, for a product of so many tokens.

        With more than `fused_rows` tokens matrices are expanded first, if the plan has room: once for the whole block
        (`kept`), or once per pass, for all groups (`shared_bytes`).
        """
        slot = self.shape.weights_slot(visit)
        key = (visit.stage, slot)
        if key not in self._operands:
            self._operands[key] = self.weights.operands(visit.stage, slot)
        stored = self._operands[key]
        places = self.plan.expanded
        if tokens <= self.backend.caps.fused_rows:
            return stored
        if visit.stage in places.kept:
            if visit.stage not in self._kept:
                offset = places.kept[visit.stage]
                self._kept[visit.stage] = self._expand(self._stages[visit.stage], stored, offset)
            return self._kept[visit.stage]
        if not places.shared_bytes:
            return stored
        if self._expanded[0] != self.shape.stage_number(visit):
            self._expanded = (self.shape.stage_number(visit), self._expand(self._stages[visit.stage], stored, 0))
        return self._expanded[1]

    def _stage_weights(self, visit: Visit, tokens: int) -> StageWeights:
        """The same by role. The result is reused as long as the tensors are the same objects."""
        tensors = self._stage_operands(visit, tokens)
        key = (visit.stage, self.shape.weights_slot(visit))
        known = self._weights.get(key)
        if known is None or known[0] is not tensors:
            known = self._weights[key] = tensors, by_role(self._stages[visit.stage], tensors)
        return known[1]

    def _expand(self, stage: Stage, stored: dict[str, Matrix], offset: int) -> dict[str, Matrix]:
        """The stage's tensors, with its matrices expanded into the block's memory from `offset` on."""
        expanded, file = dict(stored), self.weights.plan.file
        dtype = self.backend.caps.compute_dtype
        for tensor in stage.tensors:
            if expandable(stage, file.tensors[tensor.name], dtype):
                out = view(self.backend, self._regions[BlockRoom.EXPANDED], tensor.shape, dtype, offset)
                expanded[tensor.name] = self.backend.expand(stored[tensor.name], out)  # type: ignore[arg-type]
                offset += aligned(tensor.elements * DTYPE_BYTES[dtype], ALIGNMENT_BYTES)
        return expanded

    def _embed(self, visit: Visit, group: Group) -> None:
        """Write the hidden states of the group's new tokens."""
        file, be = self.weights.plan.file, self.backend
        shape, dtype = (group.tokens, file.spec.embed_width), file.dtype
        weights = self._stage_weights(visit, group.tokens)
        self._fed = self._fed + group.fed_in_pass
        with be.frame():
            if self.plan.activations.token_rows_bytes:
                region = self._activations.token_rows(Tier.DEVICE, self.shape.data_slot(visit))
                rows: Any = view(be, region, shape, dtype)
            else:
                rows = be.empty(shape, dtype)
            inputs = EmbedInputs(group.token_ids(), group.position_ids(), self._tables, rows)
            embed_visit(be, self._program.embed, weights, inputs, self._x(visit, group))

    def _layer(self, visit: Visit, stage: Stage, group: Group) -> None:
        """Compute one decoder layer in place.

        Rows whose cache is on the device (`near`) come first; attention for the others runs on the host (`away`).
        """
        rows, slot = group.in_pass, self.shape.data_slot(visit)
        near, away, near_rows = self._cache.handles(stage.index, visit.group, rows, slot)
        known = self._segments.get(visit.group)
        if known is None or known[0] is not rows:
            near_part, away_part = rows[:near_rows], rows[near_rows:]
            handles = (self._segments_handle(near_part), self._segments_handle(away_part))
            known = self._segments[visit.group] = (rows, *handles, sum(row.new for row in near_part))
        _, segments, away_segments, near_tokens = known
        far = partial(self._attend_far, away, away_segments) if away is not None else None
        weights = self._stage_weights(visit, group.tokens)
        cache = LayerCache(near, segments, near_tokens, far)
        decoder_layer(self.backend, self._program.layer, weights, self._x(visit, group), cache)

    def _segments_handle(self, rows: Sequence[RowPass]) -> Any:
        return self.backend.segments([row.past for row in rows], [row.new for row in rows]) if rows else None

    def _attend_far(self, rows: Any, segments: Any, qkv: Array, context: Array) -> None:
        """Attention on the host: qkv (T, 3E) is copied there, attention runs beside the cache, and context (T, E) is
        copied back."""
        be, step = self.backend, self._program.attention
        dtype, tokens, width = be.caps.compute_dtype, qkv.shape[0], step.width
        item = DTYPE_BYTES[dtype]
        region = self._regions[BlockRoom.ATTENTION_ON_HOST]
        there = region.part(0, tokens * step.inputs * item)
        back = region.part(there.nbytes, tokens * width * item)
        host_qkv: Any = view(be, there, (tokens, step.inputs), dtype)
        host_context: Any = view(be, back, (tokens, width), dtype)
        self.mover.carry(
            Crossing(Kind.ACTIVATIONS, "queries, keys, values", there.nbytes, "device->host"), qkv, host_qkv
        )
        be.append(rows, segments, host_qkv[:, width : 2 * width], host_qkv[:, 2 * width :])
        be.attend(rows, segments, host_qkv[:, :width], step.scale, host_context)
        self.mover.carry(Crossing(Kind.ACTIVATIONS, "attention", back.nbytes, "host->device"), host_context, context)

    def _head(self, visit: Visit, stage: Stage, group: Group) -> None:
        """Compute one tile of the head for one group."""
        raise NotImplementedError

    def _end_pass(self, visit: Visit, group: Group) -> None:
        """The pass is over for one group, which may be empty: its rows go on, and others come in."""
        raise NotImplementedError
