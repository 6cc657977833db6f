"""One block that generates: what the head's logits become, and whose tokens they are."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flexref.architecture.stages import Stage
from flexref.backend.protocol import Array
from flexref.block.compute import BlockComputation
from flexref.block.memory_plan import BlockRoom
from flexref.block.moves import BlockMoves
from flexref.block.rows import Group, Judge, TokenEvent
from flexref.block.visits import hidden_visit
from flexref.model.stages import head_tile
from flexref.sampling.sampler import Sampler
from flexref.schedule.zigzag import Visit
from flexref.tiers.transfer import view
from flexref.units import LOGITS_DTYPE


@dataclass(eq=False)
class GenerateBlock(BlockMoves, BlockComputation):
    """The `executor.Work` of one block. `events` collects new tokens until they are taken."""

    sampler: Sampler
    judge: Judge
    events: list[TokenEvent] = field(init=False, default_factory=list)

    def take_events(self) -> list[TokenEvent]:
        """The tokens that are new since the last call."""
        events, self.events = self.events, []
        return events

    def _head(self, visit: Visit, stage: Stage, group: Group) -> None:
        be, spec = self.backend, self.weights.plan.file.spec
        rows = len(group.alive)
        start = visit.group * (self.plan.logits_bytes + self.plan.hidden_bytes)
        region = self._regions[BlockRoom.LOGITS]
        logits: Any = view(be, region, (rows, spec.vocabulary), LOGITS_DTYPE, start)
        hidden: Any = view(be, region, (rows, spec.embed_width), be.caps.compute_dtype, start + self.plan.logits_bytes)
        steps, weights = self._program.head, self._stage_weights(visit, rows)
        if stage.index == 0:
            hidden_visit(be, steps, weights, self._x(visit, group), group.last_tokens(), hidden)
        head_tile(be, steps, weights, hidden, self._first_rows[stage.index], logits)
        if visit.stage == len(self._stages) - 1:
            self._choose(visit, group, logits)

    def _choose(self, visit: Visit, group: Group, logits: Array) -> None:
        alive = [row for _, row in group.alive]
        numbers = np.array([row.number for row in alive], np.int64)
        steps = np.array([len(row.tokens) for row in alive], np.int64)
        watch = self.watch
        seen = self.backend.download(logits) if watch.on_logits is not None or watch.on_choice is not None else None
        if watch.on_logits is not None and seen is not None:
            watch.on_logits(numbers, steps, seen)
        chosen = self.sampler.choose(self.backend, logits, numbers, steps)
        if watch.on_choice is not None and seen is not None:
            watch.on_choice(numbers, seen, chosen)
        events = group.accept(chosen, self.judge)
        if any(event.finish_reason for event in events):
            self._cache.forget(visit.group)
        self.events += events
