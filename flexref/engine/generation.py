"""One job on an engine: its rows, their text, the blocks they run in, and the account of it all."""

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flexref.architecture.spec import is_integer
from flexref.block import executor
from flexref.block.generate_block import Block
from flexref.block.memory_plan import BlockPlan, Lengths, blocks_of, slots_of
from flexref.block.rows import Group, Row
from flexref.block.trace import Trace
from flexref.block.watch import OnLogits, OnVisit, Watch
from flexref.engine import account
from flexref.engine.logprobs import LogprobRecorder
from flexref.engine.results import Generation, Output, Stats, StreamedToken
from flexref.engine.row_text import RowText
from flexref.errors import PromptError
from flexref.sampling.sampler import Sampler
from flexref.sampling.settings import SamplingSettings
from flexref.schedule.zigzag import Shape
from flexref.simulator.simulate import RowLengths
from flexref.text.prompts import Prompt, all_token_ids, new_token_room
from flexref.tiers.weights import WeightStore
from flexref.tiers.weights_plan import WeightsPlan

if TYPE_CHECKING:
    from flexref.engine.engine import Engine

AnyPrompt = str | Sequence[int] | Prompt
"""Text, token ids, or either as a `Prompt`."""


EVENTS_BEHIND_STAGES = 4
"""The tokens of a pass are told when the next pass is so many stages under way: whoever listens does not keep the
device waiting."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to do with every prompt of a job: how many new tokens, how they are chosen, and what ends a row.

    `stops` are strings that end a row, wherever tokens divide them; `ignore_eos` lets rows run past the end token.
    `logprobs`: so many of the most probable tokens are told at every place, with the chosen one's log-probability; 0:
    none. They are of the model's own distribution, before temperature, top-k and top-p.
    """

    max_new_tokens: int = 32
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    stops: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int = 0

    def __post_init__(self) -> None:
        if not is_integer(self.logprobs) or self.logprobs < 0:
            raise PromptError(f"logprobs must be a number of tokens from 0 (none) on, found {self.logprobs!r}")


class Job:
    """One call of `generate`: its rows, their text, and the blocks they run in."""

    def __init__(
        self,
        engine: "Engine",
        prompts: Sequence[AnyPrompt],
        request: Request,
        trace: Trace | None = None,
        on_logits: OnLogits | None = None,
        on_visit: OnVisit | None = None,
    ) -> None:
        if not prompts:
            raise PromptError("there is no prompt")
        spec, tokenizer = engine.file.spec, engine.tokenizer
        if request.stops and tokenizer is None:
            raise PromptError("stop strings need a tokenizer, and the model has none")
        self.engine, self.request, self.trace = engine, request, trace
        self.prompts = [_as_prompt(prompt) for prompt in prompts]
        most = request.max_new_tokens
        ids = all_token_ids(self.prompts, tokenizer, spec.vocabulary, spec.positions, most)
        self.rows = [Row(number, row, new_token_room(len(row), spec.positions, most)) for number, row in enumerate(ids)]
        ends = () if request.ignore_eos else spec.eos_token_ids
        self.texts = [RowText(tokenizer, request.stops, ends) for _ in self.rows]
        self.recorder = LogprobRecorder(len(self.rows), request.logprobs, tokenizer) if request.logprobs else None
        on_choice = None if self.recorder is None else self.recorder.on_choice
        self.watch = Watch(None if trace is None else trace.on_computed, on_logits, on_visit, on_choice)
        self.policy = engine.policy_for([RowLengths(len(row.prompt), row.limit) for row in self.rows])
        engine.check_policy(self.policy)
        self.stats = Stats(engine.backend.name, self.policy, rows=len(self.rows))

    def run(self) -> Generator[StreamedToken, None, None]:
        """Every block in order; the account is complete when the last token has come.

        Raises `EngineError` if the engine cannot take it, and `KeyboardInterrupt` where nothing is half done.
        """
        return self.engine.gate.stream(self._steps())

    def _steps(self) -> Generator[list[StreamedToken], None, None]:
        engine, stats = self.engine, self.stats
        blocks = blocks_of(self.rows, self.policy)
        weights_plan = WeightsPlan.of(engine.file, self.policy.weights, slots_of(self.policy))
        # Every block is checked before the first token of any, and before weights are read.
        plans = [engine.plan_for(self.policy, weights_plan, [_lengths(row) for row in block]) for block in blocks]
        weights = engine.begin_job(self.policy)
        engine.listen(self.trace)
        try:
            for rows, plan in zip(blocks, plans, strict=True):
                yield from self._block(rows, plan, weights)
        finally:
            engine.listen(None)
            account.fill(stats, engine, engine.take_traffic().flows, plans, weights.plan)
            if self.trace is not None:
                stats.lane_busy = self.trace.busy_shares()
        stats.load_s = engine.load_s

    def result(self) -> Generation:
        """Outputs in the order of the prompts."""
        outputs = []
        for prompt, row, text in zip(self.prompts, self.rows, self.texts, strict=True):
            given = prompt.text if prompt.text is not None else list(prompt.token_ids or ())
            shown = None if self.engine.tokenizer is None else text.text
            known = None if self.recorder is None else self.recorder.tokens[row.number]
            outputs.append(Output(given, shown, row.tokens, row.finish_reason or "length", len(row.prompt), known))
        return Generation(outputs, self.stats)

    def _block(
        self, rows: Sequence[Row], plan: BlockPlan, weights: WeightStore
    ) -> Generator[list[StreamedToken], None, None]:
        engine, stats = self.engine, self.stats
        step = self.policy.rows_per_group
        groups = [Group(rows[first : first + step]) for first in range(0, len(rows), step)]
        turns = max(row.limit for row in rows)
        kinds = plan.moving(weights.plan)
        shape = Shape(turns, len(weights.plan.stages), len(groups), weights.plan.slots, kinds)
        block = Block(
            plan, weights, engine.mover, groups, shape, Sampler(self.request.sampling), self._judge, watch=self.watch
        )
        with account.memory_of(block, engine, stats):
            before = engine.mover.traffic.snapshot()
            start = time.perf_counter()
            prefill_end = None
            told_at = min(EVENTS_BEHIND_STAGES, shape.stages - 1)
            with closing(executor.run(engine.mover, block, shape, overlap=self.policy.overlap)) as visits:
                for visit in visits:
                    if visit.stage == shape.stages - 1 and visit.group == shape.groups - 1:
                        if visit.turn == 0:
                            prefill_end = time.perf_counter()
                            add_bytes(stats.prefill_link_bytes, engine.mover.traffic.since(before))
                        block.tell_watch()
                    if visit.stage == told_at and visit.group == 0:
                        yield self._streamed(block)
            yield self._streamed(block)
            end = time.perf_counter()
            stats.prefill_s += (prefill_end or end) - start
            stats.decode_s += end - (prefill_end or end)
            stats.blocks += 1
            stats.prompt_tokens += sum(len(row.prompt) for row in rows)
            stats.generated_tokens += sum(len(row.tokens) for row in rows)

    def _judge(self, row: Row) -> str | None:
        return self.texts[row.number].push(row.tokens[-1])

    def _streamed(self, block: Block) -> list[StreamedToken]:
        """The tokens that are new since the last call, with what they add to their rows' texts."""
        tokens = []
        for event in block.take_events():
            text = self.texts[event.row]
            if event.finish_reason is not None:
                text.finish()
            shown, text.shown = text.text[text.shown :], len(text.text)
            tokens.append(StreamedToken(event.row, event.token_id, shown, event.finish_reason))
        return tokens


def add_bytes(total: dict[str, dict[str, int]], more: dict[str, dict[str, int]]) -> None:
    """Add bytes per link and kind to a table of them."""
    for link, kinds in more.items():
        for kind, nbytes in kinds.items():
            total.setdefault(link, {})[kind] = total.get(link, {}).get(kind, 0) + nbytes


def _lengths(row: Row) -> Lengths:
    return Lengths(len(row.prompt), row.capacity_tokens)


def _as_prompt(prompt: AnyPrompt) -> Prompt:
    if isinstance(prompt, Prompt):
        return prompt
    return Prompt(text=prompt) if isinstance(prompt, str) else Prompt(token_ids=tuple(prompt))
