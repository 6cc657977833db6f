"""One block that scores: one pass, and of every token that is asked for the logits of all that may come next.

They exist for some tokens and one tile of the head at a time, and go to the host, where they are summed up.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.architecture.stages import Stage, StageKind
from flexref.backend.protocol import Array, Ticket
from flexref.block.compute import BlockComputation
from flexref.block.group import Group
from flexref.block.memory_plan import LOGITS_SLOTS, SCORED_AT_ONCE, BlockRoom
from flexref.block.moves import ACTIVATION_MOVES, INWARD, BlockMoves
from flexref.model.stages import final_hidden, head_tile
from flexref.model.weights import StageWeights
from flexref.schedule.zigzag import Movement, Visit
from flexref.tiers.transfer import Crossing, Region, Transfer, host_bytes, view
from flexref.units import DTYPE_BYTES, LOGITS_DTYPE, Kind

OnTile = Callable[[int, int, npt.NDArray[np.float32]], None]
"""Lent logits (C, N) of the scored tokens from number `first` of all on, for the token ids from `first_id` on."""


@dataclass(frozen=True, slots=True)
class Sent:
    """Logits on their way to the host, and the tokens and ids that they are of."""

    ticket: Ticket
    region: Region
    shape: tuple[int, int]
    first: int
    first_id: int


@dataclass(eq=False)
class ScoreBlock(BlockMoves, BlockComputation):
    """The `executor.Work` of one block. `first_scored`: of every row by its number, that of its first scored token.

    Rows enter in the order of the input. Where those of a group follow each other, so do their scored tokens.
    """

    first_scored: Sequence[int]
    on_tile: OnTile
    on_rows: Callable[[int], None]
    _sent: int = field(init=False, default=0)
    _under_way: Sent | None = field(init=False, default=None)

    def _activation_transfers(self, movement: Movement) -> Sequence[Transfer]:
        """In the head, the first tile makes scored tokens of hidden states, in their place; the others find them."""
        visit, stage = movement.visit, self._stages[movement.visit.stage]
        inward = movement.hop in INWARD
        if stage.kind is not StageKind.HEAD or (stage.index == 0 and inward):
            return super()._activation_transfers(movement)
        tiles = len(self._first_rows)
        if not inward and (stage.index > 0 or tiles == 1):
            return []
        nbytes = self._hidden_bytes(len(self.groups[visit.group].scored_tokens()))
        slot = self.shape.data_slot(visit)
        return ACTIVATION_MOVES[movement.hop](self._activations, visit.group, nbytes, slot)

    def _hidden_bytes(self, scored: int) -> int:
        """Bytes of what the head's table is multiplied with."""
        return self._values_bytes(scored * self.weights.plan.file.spec.embed_width)

    def _head(self, visit: Visit, stage: Stage, group: Group) -> None:
        be, spec = self.backend, self.weights.plan.file.spec
        scored = group.scored_tokens()
        if not len(scored):
            return  # all of the pass is a prefix
        region = self._activations.on_device(visit.group, self.shape.data_slot(visit))
        region = region.part(0, self._hidden_bytes(len(scored)))
        hidden: Any = view(be, region, (len(scored), spec.embed_width), be.caps.compute_dtype)
        weights = self._stage_weights(visit, len(scored))
        if stage.index == 0:
            with be.frame():
                which = be.upload(scored)
                final_hidden(be, self._program.head, weights, self._x(visit, group), which, hidden)
        for first, last, number in self._pieces(group):
            self._send(weights, hidden[first:last], number, self._first_rows[stage.index])

    def _pieces(self, group: Group) -> Iterator[tuple[int, int, int]]:
        """(first, last, number) of the group's scored tokens in pieces whose numbers, from `number` on, have no gap."""
        first, runs = 0, list[tuple[int, int, int]]()
        for row in group.fed:
            if row.scored:
                number, last = self.first_scored[row.number], first + row.scored
                if runs and runs[-1][2] + first - runs[-1][0] == number:
                    runs[-1] = runs[-1][0], last, runs[-1][2]
                else:
                    runs.append((first, last, number))
                first = last
        for start, end, number in runs:
            for piece in range(start, end, SCORED_AT_ONCE):
                yield piece, min(end, piece + SCORED_AT_ONCE), number + piece - start

    def _end_pass(self, visit: Visit, group: Group) -> None:
        if visit.group == len(self.groups) - 1:
            self._deliver()
        group.advance()
        for row in group.ready_rows:
            row.finish_reason = "length"
        if group.ready:
            self.on_rows(len(group.ready))
        self.rows.renew(visit.group)

    def _send(self, weights: StageWeights, hidden: Array, first: int, first_id: int) -> None:
        """Compute logits and start them on their way to the host, which meanwhile takes those before them."""
        steps = self._program.head
        shape = (hidden.shape[0], weights[steps.table.role].weight.shape[0])
        start = self._sent % LOGITS_SLOTS * self.plan.tile_logits_bytes
        nbytes = shape[0] * shape[1] * DTYPE_BYTES[LOGITS_DTYPE]
        logits: Any = view(self.backend, self._regions[BlockRoom.LOGITS], shape, LOGITS_DTYPE, start)
        head_tile(self.backend, steps, weights, hidden, 0, logits)
        region = self._regions[BlockRoom.LOGITS_ON_HOST].part(start, nbytes)
        target: Any = view(self.backend, region, shape, LOGITS_DTYPE)
        self.mover.carry(Crossing(Kind.ACTIVATIONS, "logits", nbytes, "device->host"), logits, target)
        on_its_way = Sent(self.backend.mark(), region, shape, first, first_id)
        self._deliver()
        self._under_way = on_its_way
        self._sent += 1

    def _deliver(self) -> None:
        """Wait for the logits that are on their way and hand them over."""
        sent, self._under_way = self._under_way, None
        if sent is not None:
            sent.ticket.wait()
            logits = host_bytes(self.backend, sent.region).view(np.float32).reshape(sent.shape)
            self.on_tile(sent.first, sent.first_id, logits)
