"""Generation on a session: prompts in, tokens and their text out, block by block; it knows no file and no device."""

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from flexref.block import executor
from flexref.block.generate_block import GenerateBlock
from flexref.block.planned_block import PlannedBlock
from flexref.block.rows import Row
from flexref.block.trace import Trace
from flexref.block.watch import OnLogits, OnVisit, Watch
from flexref.engine.account import Account
from flexref.engine.events import Notice
from flexref.engine.logprobs import LogprobRecorder
from flexref.engine.results import Generation, Output, Stats, StreamedToken
from flexref.engine.row_text import RowText
from flexref.engine.session import Session
from flexref.errors import PromptError
from flexref.policy import Policy
from flexref.sampling.sampler import Sampler
from flexref.sampling.settings import SamplingSettings
from flexref.text.prompts import Prompt, all_token_ids, new_token_room
from flexref.units import is_integer

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


class GenerationJob:
    """One call of `generate`: its rows, their text, and the blocks they run in."""

    def __init__(
        self,
        session: Session,
        prompts: Sequence[AnyPrompt],
        request: Request,
        policy: Policy | None = None,
        trace: Trace | None = None,
        on_logits: OnLogits | None = None,
        on_visit: OnVisit | None = None,
    ) -> None:
        if not prompts:
            raise PromptError("there is no prompt")
        spec, tokenizer = session.file.spec, session.tokenizer
        if request.stops and tokenizer is None:
            raise PromptError("stop strings need a tokenizer, and the model has none")
        self.session, self.request, self.trace = session, request, trace
        self.prompts = [_as_prompt(prompt) for prompt in prompts]
        most = request.max_new_tokens
        ids = all_token_ids(self.prompts, tokenizer, spec.vocabulary, spec.positions, most)
        self.rows = [Row(number, row, new_token_room(len(row), spec.positions, most)) for number, row in enumerate(ids)]
        self._tell_of_cut_rows()
        ends = () if request.ignore_eos else spec.eos_token_ids
        self.texts = [RowText(tokenizer, request.stops, ends) for _ in self.rows]
        self.recorder = LogprobRecorder(len(self.rows), request.logprobs, tokenizer) if request.logprobs else None
        on_choice = None if self.recorder is None else self.recorder.on_choice
        self.watch = Watch(None if trace is None else trace.on_computed, on_logits, on_visit, on_choice)
        self.policy = session.settled([row.lengths for row in self.rows], policy)
        self.stats = Stats(session.backend.name, self.policy, rows=len(self.rows))

    def _tell_of_cut_rows(self) -> None:
        """Say once that rows may not have as many new tokens as were asked for, because the positions end before."""
        limits = [row.limit for row in self.rows if row.limit < self.request.max_new_tokens]
        if limits:
            least, most = min(limits), max(limits)
            room = f"{most}" if least == most else f"{least} to {most}"
            self.session.on_event(
                Notice(
                    f"{len(limits)} of {len(self.rows)} rows may have at most {room} new tokens, not "
                    f"{self.request.max_new_tokens}: the model has {self.session.file.spec.positions} positions"
                )
            )

    def run(self) -> Generator[StreamedToken, None, None]:
        """Every block in order; the account is complete when the last token has come.

        Raises `EngineError` if the engine cannot take it, and `KeyboardInterrupt` where nothing is half done.
        """
        return self.session.gate.stream(self._passes())

    def _passes(self) -> Generator[list[StreamedToken], None, None]:
        with self.session.job(self.stats, self.rows, self.trace) as account:
            for planned in account.blocks:
                yield from self._block(planned, account)

    def result(self) -> Generation:
        """Outputs in the order of the prompts."""
        outputs = []
        for prompt, row, text in zip(self.prompts, self.rows, self.texts, strict=True):
            given = prompt.text if prompt.text is not None else list(prompt.token_ids or ())
            shown = None if self.session.tokenizer is None else text.text
            known = None if self.recorder is None else self.recorder.tokens[row.number]
            reason = row.finish_reason or "length"
            cut = reason == "length" and row.limit < self.request.max_new_tokens
            output = Output(given, shown, row.tokens, reason, len(row.prompt), known, prompt.record_id, cut)
            outputs.append(output)
        return Generation(outputs, self.stats)

    def _block(self, planned: PlannedBlock, account: Account) -> Generator[list[StreamedToken], None, None]:
        mover, stats = self.session.mover, self.stats
        shape = planned.shape(passes=max(row.limit for row in planned.rows))
        sampler = Sampler(self.request.sampling)
        block = GenerateBlock(
            planned.memory, account.weights, mover, planned.groups, shape, sampler, self._judge, watch=self.watch
        )
        with account.memory_of(block):
            before = mover.traffic.snapshot()
            start = marked = time.perf_counter()
            prefill_s = 0.0
            told_at = min(EVENTS_BEHIND_STAGES, shape.stages - 1)
            with closing(executor.run(mover, block, shape, overlap=self.policy.overlap)) as visits:
                for visit in visits:
                    if shape.ends_pass(visit):
                        account.check_weights()
                        now, fed = time.perf_counter(), block.take_fed()
                        stats.prompt_tokens += fed.prompt_tokens
                        if fed.prompt_tokens:
                            prefill_s += now - marked
                            add_bytes(stats.prefill_link_bytes, mover.traffic.since(before))
                        marked, before = now, mover.traffic.snapshot()
                        block.tell_watch()
                    if visit.stage == told_at and visit.group == 0:
                        yield self._streamed(block)
            yield self._streamed(block)
            stats.prefill_s += prefill_s
            stats.decode_s += time.perf_counter() - start - prefill_s
            stats.blocks += 1

    def _judge(self, row: Row) -> str | None:
        return self.texts[row.number].push(row.tokens[-1])

    def _streamed(self, block: GenerateBlock) -> list[StreamedToken]:
        """The tokens that are new since the last call, with what they add to their rows' texts."""
        tokens = []
        for event in block.take_events():
            self.stats.generated_tokens += 1
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


def _as_prompt(prompt: AnyPrompt) -> Prompt:
    if isinstance(prompt, Prompt):
        return prompt
    return Prompt(text=prompt) if isinstance(prompt, str) else Prompt(token_ids=tuple(prompt))
