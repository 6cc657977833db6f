"""One block that generates: what the head's logits become, and whose tokens they are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.architecture.stages import Stage
from flexref.backend.protocol import Array
from flexref.block.compute import BlockComputation
from flexref.block.group import FedRows, Group
from flexref.block.memory_plan import BlockRoom
from flexref.block.moves import BlockMoves
from flexref.block.rows import Judge, Row, TokenEvent
from flexref.model.stages import final_hidden, head_tile
from flexref.sampling.sampler import alike, choose, choose_ahead
from flexref.schedule.zigzag import Visit
from flexref.tiers.transfer import view
from flexref.units import LOGITS_DTYPE

Chosen = Callable[[], npt.NDArray[np.int64]]
"""Waits for the ids of tokens that are being chosen."""

MOST_MAY_STOP = 2
"""Rows of a group that may end with any token, up to which its next pass is called ahead: if one ends, it was in vain.
What is gained is a tenth of a pass at most, so more of them would cost more than they gain."""


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
            self._take_tokens(visit, group)

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

    def _take_tokens(self, visit: Visit, group: Group) -> None:
        number, logits = visit.group, self._logits(visit.group, len(group.ready))[0]
        fed = self._foresee(number, group) if number in self._at_once else None
        chosen = None if fed is None else self._choose_ahead(visit, group, fed, logits)
        self._chosen = self._choose(group, logits) if chosen is None else chosen().tolist()

    def _foresee(self, number: int, group: Group) -> FedRows | None:
        """Work out the group's next pass as it is if no row ends, while the device is still computing this one.

        What this writes on the device is in order with the operators, and so after the pass that reads it. If the next
        pass is another one, it is worked out as if nothing had been foreseen.
        """
        fed = group.foresee()
        if fed is None:
            return None
        self._cache.near_rows(number, fed.in_pass)
        renewed = self._lengths[number].renewed(self.backend, fed.in_pass)
        if renewed is None:
            return None
        self._lengths[number] = renewed
        return fed

    def _choose_ahead(self, visit: Visit, group: Group, fed: FedRows, logits: Array) -> Chosen | None:
        """Call the choice of the tokens and the next pass, which feeds them, before the host knows them.

        None, and nothing is called, where somebody looks at the logits, or the pass may well be another one.
        """
        rows = group.ready_rows
        settings = [row.sampling for row in rows]
        watched = self.watch.on_logits is not None or any(row.logprobs for row in rows)
        if watched or not alike(settings) or sum(row.may_stop for row in rows) > MOST_MAY_STOP:
            return None
        choose_into = partial(choose_ahead, self.backend, logits, settings, *_draws_and_steps(rows))
        return self._run_ahead(visit.pass_number + 1, visit.group, fed, choose_into)

    def _end_pass(self, visit: Visit, group: Group) -> None:
        chosen, self._chosen = self._chosen, ()
        self.events += self.rows.end_pass(visit.group, chosen, self.judge)

    def _choose(self, group: Group, logits: Array) -> Sequence[int]:
        rows = group.ready_rows
        numbers = np.array([row.number for row in rows], np.int64)
        draws, steps = _draws_and_steps(rows)
        watch = self.watch
        recorded = watch.on_choice is not None and any(row.logprobs for row in rows)
        seen = self.backend.download(logits) if watch.on_logits is not None or recorded else None
        if watch.on_logits is not None and seen is not None:
            watch.on_logits(numbers, steps, seen)
        chosen = choose(self.backend, logits, [row.sampling for row in rows], draws, steps)
        if recorded and seen is not None and watch.on_choice is not None:
            watch.on_choice(numbers, seen, chosen)
        return chosen.tolist()  # type: ignore[no-any-return]


def _draws_and_steps(rows: Sequence[Row]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(B,) numbers that the rows draw by, and how many tokens each has."""
    draws = np.array([row.draw_number for row in rows], np.int64)
    return draws, np.array([len(row.tokens) for row in rows], np.int64)
