"""Makes the block of a simulated job, which generates or scores; it knows no clock."""

from dataclasses import dataclass
from itertools import accumulate

from flexref.block.generate_block import GenerateBlock
from flexref.block.planned_block import PlannedBlock
from flexref.block.score_block import ScoreBlock
from flexref.block.watch import Watch
from flexref.sampling.sampler import Sampler
from flexref.sampling.settings import SamplingSettings
from flexref.schedule.zigzag import Shape
from flexref.tiers.mover import Mover
from flexref.tiers.weights import WeightStore


@dataclass(eq=False)
class UnreadScores(ScoreBlock):
    """A block that scores on a port without values: it waits for its logits and does not read them."""

    def _deliver(self) -> None:
        sent, self._under_way = self._under_way, None
        if sent is not None:
            sent.ticket.wait()


def simulated_block(
    planned: PlannedBlock, weights: WeightStore, mover: Mover, shape: Shape, watch: Watch
) -> GenerateBlock | ScoreBlock:
    """Make the planned block as a real job would: one that scores if any of its rows is scored."""
    memory, groups = planned.memory, planned.groups
    scored = [sum(row.scored for row in group.rows) for group in groups]
    if any(scored):
        firsts = tuple(accumulate(scored, initial=0))[:-1]
        return UnreadScores(memory, weights, mover, groups, shape, firsts, lambda *_: None, watch=watch)
    sampler = Sampler(SamplingSettings())
    return GenerateBlock(memory, weights, mover, groups, shape, sampler, lambda row: None, watch=watch)
