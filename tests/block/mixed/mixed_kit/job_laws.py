"""What a job on an engine may tell of each row, and must have told in the end, beside what the rows have alone."""

from typing import Any

import numpy as np
import pytest

from flexref.block.budgets import lasting_needs, loading_need, totals
from flexref.block.planned_block import PlannedBlock
from flexref.block.rows import Row
from flexref.block.state import BlockState
from flexref.engine.engine import Engine
from flexref.engine.generation import GenerationJob
from flexref.engine.results import RowResult, StreamedToken
from flexref.errors import CapacityError, PromptError
from flexref.tiers.weights_plan import LOADING
from flexref.units import Tier
from mixed_kit.alone import ENDS, Alone, Asked


class JobLaws:
    """One job after another, from `begin_to_look` on.

    `told`, `reasons`, `results`: what has been heard of each row, by its number. `arrived`: those that were taken from
    the caller; `cancelled` inside a block, `dropped` while they waited: rows that nobody wants any more.
    """

    alone: Alone
    right: tuple[Any, str, Any] | None = None
    """What a wrong part stands for: rows are computed alone with the right one."""
    engine: Engine
    port: Any
    job: GenerationJob
    asked: list[Asked]
    scheme: str
    blocks: list[BlockState]

    def begin_to_look(self, window: int) -> None:
        """A job of `asked` begins, of which nothing has been heard yet."""
        self.window = window
        self.told = {number: each.begun for number, each in enumerate(self.asked)}
        self.reasons, self.results = dict[int, str](), dict[int, RowResult]()
        self.arrived, self.cancelled, self.dropped = list[int](), set[int](), set[int]()
        self.blocks.clear()
        self.held = {tier: arena.held_bytes for tier, arena in self.engine.session.arenas.items()}

    def expected(self, asked: Asked) -> tuple[list[int], list[Any]]:
        """Tokens and logits of a row alone, without an end."""
        with pytest.MonkeyPatch.context() as patch:
            if self.right is not None:
                patch.setattr(*self.right)
            return self.alone(asked, self.scheme)

    def tokens_of(self, number: int) -> list[int]:
        """What a row has when it has ended."""
        asked = self.asked[number]
        return asked.tokens_of(self.expected(asked)[0])

    def hear(self, token: StreamedToken) -> None:
        """The next token of a row, and why it is the last one, if it is."""
        asked, place, tokens = self.asked[token.row], self.told[token.row], self.tokens_of(token.row)
        assert token.row not in self.reasons
        assert place < len(tokens), f"row {token.row} goes on after its end"
        assert token.token_id == tokens[place], f"row {token.row}, token {place}"
        self.told[token.row] = place + 1
        if token.finish_reason is not None:
            self.reasons[token.row] = token.finish_reason
        if token.row not in self.cancelled:
            last = place + 1 == len(tokens)
            reason = "stop" if tokens[-1] in ENDS and not asked.ignore_eos else "length"
            assert token.finish_reason == (reason if last else None), f"row {token.row}, token {place}"

    def take_results(self) -> None:
        """What the job says of rows that have ended."""
        for result in self.job.take_results():
            assert result.number not in self.results
            self.results[result.number] = result
            if result.output is not None:
                found, tokens = result.output.token_ids, self.tokens_of(result.number)
                assert found == (tokens[: len(found)] if result.number in self.cancelled else tokens)
            elif result.number not in self.dropped:
                self.look_at_failure(result)

    def look_at_failure(self, result: RowResult) -> None:
        """Only what cannot be served fails: without a position, or too large to be there even alone."""
        asked = self.asked[result.number]
        if not asked.can_be_served:
            assert isinstance(result.error, PromptError)
            return
        assert isinstance(result.error, CapacityError)
        with pytest.raises(CapacityError):
            self.engine.session.planned(self.job.policy, [Row(0, asked.prompt, asked.most).lengths])

    def look_at_logits(self, numbers: Any, steps: Any, found: Any) -> None:
        """Those that tokens are chosen from are the row's own."""
        for number, step, logits in zip(numbers.tolist(), steps.tolist(), found, strict=True):
            known = self.expected(self.asked[number])[1][step]
            np.testing.assert_array_equal(logits, known, err_msg=f"row {number}, step {step}")

    def look_at_who_waits(self) -> None:
        """No row is overtaken by more than the window, and nobody is taken from the caller beyond it."""
        waits = [row.number for row in self.job._waiting.rows]
        assert len(waits) <= self.window
        gone = {number for number in self.arrived if number in self.dropped or not self.asked[number].can_be_served}
        failed = {number for number, result in self.results.items() if result.output is None}
        entered = [number for number in self.arrived if number not in {*waits, *gone, *failed}]
        for number in waits:
            assert sum(later > number for later in entered) <= self.window

    def look_at_the_results(self) -> None:
        """The job has ended: every row has one, but for those that were cancelled before they had a token."""
        assert self.arrived == list(range(len(self.asked)))
        silent = set(self.arrived) - self.results.keys()
        assert silent <= self.cancelled, "a row has no result"
        for number, result in self.results.items():
            output = result.output
            if output is not None:
                assert (self.told[number], self.reasons[number]) == (len(output.token_ids), output.finish_reason)

    def look_at_the_account(self) -> None:
        """Counts are those of what was heard, and peaks those of the plans."""
        stats, served = self.job.stats, [n for n, result in self.results.items() if result.output is not None]
        assert stats.generated_tokens == sum(self.told[n] - self.asked[n].begun for n in self.told)
        assert stats.rows_admitted == stats.rows_retired == len({*served, *self.cancelled})
        if not self.cancelled:
            given = sum(len(self.asked[n].prompt) + self.asked[n].begun for n in served)
            assert stats.prompt_tokens + stats.shared_prefix_tokens == given
        if not self.blocks:
            return
        for tier in Tier:
            most, others = 0, [self.held[tier]]
            for block in self.blocks:
                of_block, *beside = (totals(needs)[tier] for needs in self.needs_of(block.planned))
                most = max(most, of_block)
                others += beside
            peak = stats.peak_bytes[tier.value]
            assert peak == most or (peak > most and peak in others), f"{tier}: {peak}, not {most} or one of {others}"

    def needs_of(self, planned: PlannedBlock) -> Any:
        """What is held by whoever has weights and a block, has weights that load, or a block beside such."""
        weights, block = planned.weights, planned.memory.needs()
        lasting = lasting_needs(weights, self.port.caps)
        whole, beside = [*lasting, *block], (Tier.HOST, LOADING, weights.loading_beside_bytes)
        return whole, [*lasting, loading_need(weights)], [*whole, beside]
