"""The block of a job that is simulated: one that generates, or one that scores and reads nothing of its logits."""

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
    """A block that scores, on a port whose memory holds nothing: logits are waited for, and that is all."""

    def _deliver(self) -> None:
        sent, self._under_way = self._under_way, None
        if sent is not None:
            sent.ticket.wait()


def simulated_block(
    planned: PlannedBlock, weights: WeightStore, mover: Mover, shape: Shape, watch: Watch
) -> GenerateBlock | ScoreBlock:
    """The planned block, as the job that it stands for would make it."""
    memory, groups = planned.memory, planned.groups
    scored = [sum(row.scored for row in group.rows) for group in groups]
    if any(scored):
        firsts = tuple(accumulate(scored, initial=0))[:-1]
        return UnreadScores(memory, weights, mover, groups, shape, firsts, lambda *_: None, watch=watch)
    sampler = Sampler(SamplingSettings())
    return GenerateBlock(memory, weights, mover, groups, shape, sampler, lambda row: None, watch=watch)
