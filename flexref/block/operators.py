"""Calls the operators of one visit of a block, on operands that have arrived; it knows no schedule and no replay."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from flexref.architecture.program import ModelProgram, program_of
from flexref.architecture.stages import token_tiles
from flexref.backend.protocol import Array
from flexref.block.group import FedRows, Group
from flexref.block.memory_plan import BlockRoom
from flexref.block.replays import FedLengths
from flexref.block.state import BlockState
from flexref.block.workspace import HostAttention, StageOperands
from flexref.model.cache import LayerCache
from flexref.model.layers import decoder_layer
from flexref.model.stages import EmbedInputs, embed_visit
from flexref.model.weights import StageWeights
from flexref.schedule.zigzag import Visit
from flexref.tiers.transfer import view
from flexref.units import SLOTS_SERIAL, Kind, Tier


@dataclass(eq=False)
class VisitOperators(BlockState):
    """The operators of visits to the embedding and to layers, for rows whose `_lengths` are known."""

    _program: ModelProgram = field(init=False)
    _tables: list[tuple[int, Array]] = field(init=False)
    _operands: StageOperands | None = field(init=False, default=None)
    _on_host: HostAttention | None = field(init=False, default=None)
    _lengths: dict[int, FedLengths] = field(init=False, default_factory=dict)
    """Of each group, in its pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        file = self.weights.plan.file
        self._program = program_of(file.spec)
        tiles = token_tiles(file.spec, file.tile_rows)
        found = [self.weights.device_table(tile.name) for tile in tiles]
        self._tables = [
            (first, table) for first, table in zip(self._first_rows, found, strict=True) if table is not None
        ]

    def _x(self, visit: Visit, group: Group | FedRows) -> Array:
        """The group's hidden states (T, E), where they lie for this visit."""
        region = self._activations.on_device(visit.group, self._data_slot(visit))
        shape = (group.tokens, self.weights.plan.file.spec.width)
        return view(self.backend, region, shape, self.backend.caps.compute_dtype)  # type: ignore[return-value]

    def _data_slot(self, visit: Visit) -> int:
        """The slot of the visit's cache and activations; 0 where none of them moves, so that there is one place."""
        moves = Kind.CACHE in self.shape.kinds or Kind.ACTIVATIONS in self.shape.kinds
        return self.shape.data_slot(visit) if moves else 0

    def _weights_slot(self, visit: Visit) -> int:
        """The slot of the stage's weights; 0 where none of them is streamed."""
        return self.shape.weights_slot(visit) if self.weights.plan.stages[visit.stage].streamed_bytes else 0

    def _stage_weights(self, visit: Visit, tokens: int) -> StageWeights:
        """The stage's tensors on the device, for a product of so many tokens."""
        if self._operands is None:
            place = self._regions.get(BlockRoom.EXPANDED)
            self._operands = StageOperands(self.backend, self.weights, self.plan.expanded, place)
        return self._operands.weights(visit.stage, self._weights_slot(visit), self.shape.stage_number(visit), tokens)

    def _embed_operators(self, visit: Visit, group: Group | FedRows, ids: Any) -> None:
        file, be, tokens = self.weights.plan.file, self.backend, group.tokens
        shape, dtype = (tokens, file.spec.embed_width), file.dtype
        with be.frame():  # operators that are recorded are called several times
            if self.plan.activations.token_rows_bytes:
                rows: Any = view(be, self._activations.token_rows(Tier.DEVICE, self._data_slot(visit)), shape, dtype)
            else:
                rows = be.empty(shape, dtype)
            inputs = EmbedInputs(ids[:tokens], ids[tokens:], self._tables, rows)
            embed_visit(be, self._program.embed, self._stage_weights(visit, tokens), inputs, self._x(visit, group))

    def _layer_operators(self, visit: Visit, group: Group | FedRows) -> None:
        """Rows whose cache is on the device (`near`) come first; attention for the others runs on the host (`away`),
        beside that.
        """
        stage, lengths = self._stages[visit.stage], self._lengths[visit.group]
        near, away = self._cache.handles(stage.index, visit.group, group.in_pass, self._data_slot(visit))
        far = partial(self._attends_on_host.begin, away, lengths.away) if away is not None else None
        cache = LayerCache(near, lengths.near, lengths.near_tokens, far)
        weights = self._stage_weights(visit, group.tokens)
        decoder_layer(self.backend, self._program.layer, weights, self._x(visit, group), cache)

    @property
    def _attends_on_host(self) -> HostAttention:
        """Attention for rows that are away."""
        if self._on_host is None:
            one_by_one = self.shape.slots == SLOTS_SERIAL
            region = self._regions[BlockRoom.ATTENTION_ON_HOST]
            self._on_host = HostAttention(self.mover, self._program.attention, region, one_by_one)
        return self._on_host
