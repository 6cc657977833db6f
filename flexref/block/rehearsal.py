"""Calls the operators that a block will call, on a port that computes nothing: what is compiled for them is known then.

A port chooses among its kernels by shapes, types and layouts, so that some passes of each length tell of all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from flexref.architecture.program import program_of
from flexref.architecture.stages import Stage, StageKind, TensorSpec, stages, token_tiles
from flexref.backend.compiling import compile_time
from flexref.backend.protocol import Array, Backend, Matrix
from flexref.block.memory_plan import SCORED_AT_ONCE, BlockPlan
from flexref.block.planned_block import PlannedBlock
from flexref.block.workspace import array_of_its_own
from flexref.model.cache import LayerCache
from flexref.model.layers import decoder_layer
from flexref.model.stages import EmbedInputs, embed_visit, final_hidden, head_tile
from flexref.model.weights import StageWeights, by_role
from flexref.tiers.transfer import Region
from flexref.tiers.weights import Located, operand
from flexref.tiers.weights_plan import Run
from flexref.units import LOGITS_DTYPE, Tier


def rehearse(be: Backend, planned: PlannedBlock, apart: bool) -> None:
    """Play passes of `planned` on `be`: those that read prompts first, then those that give every row a token.

    apart: whether rows have bits of their own.
    """
    be.keep_rows_apart(apart)
    rehearsal = _Rehearsal(be, planned)
    for fed in dict.fromkeys(_passes(planned)):
        rehearsal.play(fed)


@dataclass(frozen=True, slots=True)
class _FedPass:
    """What a pass feeds of a group: `tokens` of one prompt, or one of each of `rows` rows; `ends` come to the head."""

    tokens: int
    rows: int
    ends: int


def _passes(planned: PlannedBlock) -> Iterator[_FedPass]:
    """The longest passes of the groups; then, if rows generate, passes of all rows of a group, and of fewer."""
    memory = planned.memory
    for room in memory.cache.groups:
        yield _FedPass(room.pass_tokens, 1, min(room.pass_tokens, SCORED_AT_ONCE) if _scores(planned) else room.rows)
    rows = 0 if _scores(planned) else memory.rows_most
    while rows:
        yield _FedPass(rows, rows, rows)
        rows //= 2


def _scores(planned: PlannedBlock) -> bool:
    return bool(planned.memory.tile_logits_bytes)


class _Rehearsal:
    """The operands of a block, in memory that need not exist."""

    def __init__(self, be: Backend, planned: PlannedBlock) -> None:
        file = planned.weights.file
        self._be, self._planned, self._file, self._spec = be, planned, file, file.spec
        self._program, self._dtype = program_of(file.spec), be.caps.compute_dtype
        alike = {_form(stage): stage for stage in reversed(stages(file.spec, file.tile_rows))}
        self._stages = [(stage, self._weights(stage)) for stage in reversed(alike.values())]
        tile = token_tiles(file.spec, file.tile_rows)[0]
        self._tables: Any = [] if planned.memory.activations.token_rows_bytes else [(0, self._tensor(tile))]

    def play(self, fed: _FedPass) -> None:
        """Call the operators of one pass of one group: of all stages that differ, in their order."""
        be, spec = self._be, self._spec
        x = self._array((fed.tokens, spec.width), self._dtype)
        for stage, weights in self._stages:
            if stage.kind is StageKind.EMBED:
                ids = be.upload(np.zeros(fed.tokens, np.int32))
                rows = self._array((fed.tokens, spec.embed_width), self._file.dtype)
                embed_visit(be, self._program.embed, weights, EmbedInputs(ids, ids, self._tables, rows), x)
            elif stage.kind is StageKind.LAYER:
                decoder_layer(be, self._program.layer, weights, x, self._cache(fed))
            else:
                self._head(stage, weights, x, fed.ends)

    def _head(self, stage: Stage, weights: StageWeights, x: Array, ends: int) -> None:
        be, steps, spec = self._be, self._program.head, self._spec
        hidden = self._array((ends, spec.embed_width), self._dtype)
        if stage.index == 0:
            final_hidden(be, steps, weights, x, be.upload(np.zeros(ends, np.int32)), hidden)
        width = weights[steps.table.role].weight.shape[0] if _scores(self._planned) else spec.vocabulary
        logits = self._array((ends, width), LOGITS_DTYPE)
        head_tile(be, steps, weights, hidden, 0, logits)
        if not _scores(self._planned):
            be.sample(logits, 0.0, 0, 1.0, np.zeros(ends))

    def _cache(self, fed: _FedPass) -> LayerCache:
        """Caches in which all rows have one token more than the pass feeds of them."""
        be, layout, new = self._be, self._planned.memory.cache.layout, fed.tokens // fed.rows
        records = [self._array(((new + 1) * layout.record_bytes,), "uint8") for _ in range(fed.rows)]
        past = [0 if new > 1 else 1] * fed.rows
        return LayerCache(be.cache_rows(records, layout), be.segments(past, [new] * fed.rows), fed.tokens)

    def _weights(self, stage: Stage) -> StageWeights:
        """A stage's operands as they are stored: where they are expanded first, the same kernels do it."""
        return by_role(stage, {tensor.name: self._tensor(tensor) for tensor in stage.tensors})

    def _tensor(self, tensor: TensorSpec) -> Matrix:
        """A tensor in the form in which the file has it."""
        stored = self._file.tensors[tensor.name]
        run = Run.of([stored])
        region = Region(Tier.DEVICE, self._be.allocate("device", run.nbytes), 0, run.nbytes)
        return operand(self._be, stored, Located(region, run.file_offset))

    def _array(self, shape: tuple[int, ...], dtype: str) -> Any:
        return array_of_its_own(self._be, shape, dtype)


def _form(stage: Stage) -> tuple[StageKind, tuple[tuple[int, ...], ...]]:
    """What stages that call the same operators have in common."""
    return stage.kind, tuple(tensor.shape for tensor in stage.tensors)


class Rehearsals:
    """Those of one session: a block like the latest one needs none."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._latest: tuple[BlockPlan, bool] | None = None

    def of(self, planned: PlannedBlock, apart: bool) -> None:
        """The port begins to compile what `planned` will call, beside all that comes before its first pass.

        apart: whether rows have bits of their own.
        """
        if self._latest != (planned.memory, apart):
            self._latest = planned.memory, apart
            compile_time(self._backend).rehearse(lambda port: rehearse(port, planned, apart))
