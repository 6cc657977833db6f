"""Makes the block of a simulated job, which generates or scores; it knows no clock."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from flexref.block.admission import Waiting
from flexref.block.compute import BlockComputation
from flexref.block.counted_rows import kinds_of
from flexref.block.generate_block import GenerateBlock
from flexref.block.group import FedRows, Group
from flexref.block.planned_block import PlannedBlock
from flexref.block.rows import JobRows, Row, SharedPrefix, each_of
from flexref.block.score_block import ScoreBlock
from flexref.block.watch import Watch
from flexref.schedule.zigzag import Visit
from flexref.tiers.mover import Mover
from flexref.tiers.weights import WeightStore


@dataclass(eq=False)
class TimedVisits(BlockComputation):
    """`after_visit` is told of the host's own work: of every visit, and of each time that its operators are called.

    A visit that is called, or replayed, is one. To record its operators they are called several times, each of which
    is one more but for the first. Of the visits of a pass that is run as a whole only those calls are: a replay of it
    goes through none.
    """

    after_visit: Callable[[], None] = field(init=False, default=lambda: None)

    def compute(self, visit: Visit) -> None:
        """See `executor.Work`."""
        fed = bool(self.groups[visit.group].fed)
        super().compute(visit)
        if fed and visit.group not in self._at_once:
            self.after_visit()

    def _call(self, visit: Visit, group: Group, held: Sequence[Any], operators: Callable[[], None]) -> None:
        calls = 0

        def counted() -> None:
            nonlocal calls
            if calls and visit.group not in self._at_once:
                self.after_visit()
            calls += 1
            operators()

        super()._call(visit, group, held, counted)

    def _whole_pass(self, visit: Visit, group: Group | FedRows, ids: Any) -> None:
        for _ in self._stages:
            self.after_visit()
        super()._whole_pass(visit, group, ids)


@dataclass(eq=False)
class UnreadTokens(TimedVisits, GenerateBlock):
    """A block that generates on a port without values."""


@dataclass(eq=False)
class UnreadScores(TimedVisits, ScoreBlock):
    """A block that scores on a port without values: it waits for its logits and does not read them."""

    def _deliver(self) -> None:
        sent, self._under_way = self._under_way, None
        if sent is not None:
            sent.ticket.wait()


SimulatedBlock = UnreadTokens | UnreadScores


def waiting_rows(rows: JobRows, window: int) -> Waiting:
    """The rows of a job as they would wait, with prompts of nothing."""
    waiting = Waiting(_made(rows), window, in_order=any(row.scored_tokens for row in kinds_of(rows)))
    waiting.refill()
    return waiting


def _made(rows: JobRows) -> Iterator[Row]:
    prefixes: dict[int, SharedPrefix] = {}
    for number, lengths in enumerate(each_of(rows)):
        row = Row(number, (0,) * lengths.prompt_tokens, lengths.new_tokens, scored=lengths.scored_tokens)
        if lengths.prefix:
            shared = SharedPrefix(lengths.prefix, (0,) * lengths.shared_tokens)
            row.share(prefixes.setdefault(lengths.prefix, shared))
        yield row


def simulated_block(
    planned: PlannedBlock, weights: WeightStore, mover: Mover, waiting: Waiting, rows: JobRows, watch: Watch
) -> SimulatedBlock:
    """Make the planned block as a real job would: one that scores if any of its rows is scored."""
    if any(row.scored_tokens for row in kinds_of(rows)):
        firsts = tuple(accumulate((row.scored_tokens for row in each_of(rows)), initial=0))
        return UnreadScores(planned, weights, mover, waiting, firsts, lambda *_: None, lambda rows: None, watch=watch)
    return UnreadTokens(planned, weights, mover, waiting, lambda row: None, watch=watch)
