"""One block that generates: what the head's logits become, and whose tokens they are."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from flexref.architecture.stages import Stage
from flexref.backend.protocol import Array
from flexref.block.compute import BlockComputation
from flexref.block.group import FedRows, Group
from flexref.block.memory_plan import BlockRoom
from flexref.block.moves import BlockMoves
from flexref.block.rows import Judge, TokenEvent
from flexref.model.stages import final_hidden, head_tile
from flexref.sampling.sampler import choose
from flexref.schedule.zigzag import Visit
from flexref.tiers.transfer import view
from flexref.units import LOGITS_DTYPE


@dataclass(eq=False)
class GenerateBlock(BlockMoves, BlockComputation):
    """The `executor.Work` of one block. `events` collects new tokens until they are taken."""

    REPLAYS = True
    judge: Judge
    events: list[TokenEvent] = field(init=False, default_factory=list)
    _chosen: Sequence[int] = field(init=False, default=())

    def take_events(self) -> list[TokenEvent]:
        """The tokens that are new since the last call."""
        events, self.events = self.events, []
        return events

    def _head(self, visit: Visit, stage: Stage, group: Group) -> None:
        be = self.backend
        if not group.ready:
            return  # all of them are still reading
        with be.frame():
            last = be.upload(group.last_tokens()) if stage.index == 0 else None
            self._call(visit, group, (), partial(self._head_operators, visit, group, last))
        if visit.stage == len(self._stages) - 1:
            self._take_tokens(visit.group, group)

    def _head_operators(self, visit: Visit, group: Group | FedRows, last: Array | None) -> None:
        be, stage = self.backend, self._stages[visit.stage]
        logits, hidden = self._logits(visit.group, len(group.ready))
        steps, weights = self._program.head, self._stage_weights(visit, len(group.ready))
        if last is not None:
            final_hidden(be, steps, weights, self._x(visit, group), last, hidden)
        head_tile(be, steps, weights, hidden, self._first_rows[stage.index], logits)

    def _logits(self, number: int, rows: int) -> tuple[Any, Any]:
        """Logits (B, V) of a group, and its hidden states (B, W) before the head."""
        be, spec, start = (
            self.backend,
            self.weights.plan.file.spec,
            number * (self.plan.logits_bytes + self.plan.hidden_bytes),
        )
        region = self._regions[BlockRoom.LOGITS]
        return (
            view(be, region, (rows, spec.vocabulary), LOGITS_DTYPE, start),
            view(be, region, (rows, spec.embed_width), be.caps.compute_dtype, start + self.plan.logits_bytes),
        )

    def _take_tokens(self, number: int, group: Group) -> None:
        if number in self._at_once:
            self._foresee(number, group)
        self._chosen = self._choose(group, self._logits(number, len(group.ready))[0])

    def _foresee(self, number: int, group: Group) -> None:
        """Work out the group's next pass as it is if no row ends, while the device is still computing this one.

        What this writes on the device is in order with the operators, and so after the pass that reads it. If the next
        pass is another one, it is worked out as if nothing had been foreseen.
        """
        fed = group.foresee()
        if fed is None:
            return
        self._cache.near_rows(number, fed.in_pass)
        renewed = self._lengths[number].renewed(self.backend, fed.in_pass)
        if renewed is not None:
            self._lengths[number] = renewed

    def _end_pass(self, visit: Visit, group: Group) -> None:
        chosen, self._chosen = self._chosen, ()
        self.events += self.rows.end_pass(visit.group, chosen, self.judge)

    def _choose(self, group: Group, logits: Array) -> Sequence[int]:
        rows = group.ready_rows
        numbers = np.array([row.number for row in rows], np.int64)
        steps = np.array([len(row.tokens) for row in rows], np.int64)
        watch = self.watch
        recorded = watch.on_choice is not None and any(row.logprobs for row in rows)
        seen = self.backend.download(logits) if watch.on_logits is not None or recorded else None
        if watch.on_logits is not None and seen is not None:
            watch.on_logits(numbers, steps, seen)
        draws = np.array([row.draw_number for row in rows], np.int64)
        chosen = choose(self.backend, logits, [row.sampling for row in rows], draws, steps)
        if recorded and seen is not None and watch.on_choice is not None:
            watch.on_choice(numbers, seen, chosen)
        return chosen.tolist()  # type: ignore[no-any-return]
