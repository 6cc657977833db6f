"""Generates tokens and their text from prompts, block by block, on a session; it knows no file and no device."""

import logging
import reprlib
import time
from collections.abc import Generator, Iterable, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from flexref.block import executor
from flexref.block.generate_block import GenerateBlock
from flexref.block.planned_block import PlannedBlock
from flexref.block.rows import Row
from flexref.block.trace import Trace
from flexref.block.watch import OnLogits, OnVisit, Watch
from flexref.engine.account import Account
from flexref.engine.block_log import logged
from flexref.engine.events import Notice
from flexref.engine.logprobs import LogprobRecorder
from flexref.engine.results import Generation, Output, Stats, StreamedToken
from flexref.engine.row_text import RowText
from flexref.engine.session import Session
from flexref.errors import PromptError, how_many
from flexref.policy import Policy
from flexref.sampling.sampler import Sampler
from flexref.sampling.settings import SamplingSettings
from flexref.text.prompts import Prompt, all_token_ids, new_token_room
from flexref.units import is_integer, plain_integers

LOG = logging.getLogger(__name__)

AnyPrompt = str | Sequence[int] | Prompt
"""Text, token ids, or either as a `Prompt`."""

NO_IDS = (bytes, bytearray, Mapping, Set)
"""What gives whole numbers, or may, and is no list of token ids: the bytes of a text, an object, a set."""

EVENTS_AFTER_STAGES = 4
"""The tokens of a pass are yielded when the next pass has begun this many stages, so that the device has work while the
caller handles them."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to do with every prompt of a job: how many new tokens, how they are chosen, and what ends a row.

    `stops`: strings that end a row, also if several tokens make one up. `ignore_eos`: rows go on after the end token.
    `logprobs`: for every new token, the log-probabilities of the chosen token and of so many of the most probable ones,
    before temperature, top-k and top-p; 0: none. Raises `PromptError` for values that are not possible.
    """

    max_new_tokens: int = 32
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    stops: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int = 0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "logprobs"):
            object.__setattr__(self, name, plain_integers((getattr(self, name),))[0])
        if not is_integer(self.max_new_tokens):
            raise PromptError(f"max_new_tokens must be a number of tokens from 1 on, found {self.max_new_tokens!r}")
        if not isinstance(self.sampling, SamplingSettings):
            raise PromptError(f"sampling must be a SamplingSettings, found {self.sampling!r}")
        if not isinstance(self.ignore_eos, bool):
            raise PromptError(f"ignore_eos must be True or False, found {self.ignore_eos!r}")
        if not is_integer(self.logprobs) or self.logprobs < 0:
            raise PromptError(f"logprobs must be a number of tokens from 0 (none) on, found {self.logprobs!r}")
        if isinstance(self.stops, str):
            raise PromptError(f"stops must be a tuple of strings, found one string: ({self.stops!r},)")
        stops: Any = self.stops
        if not isinstance(stops, Sequence) or not all(isinstance(stop, str) for stop in stops):
            raise PromptError(f"stops must be a tuple of strings, found {reprlib.repr(self.stops)}")


NEAR = 0.5
"""An unknown argument as similar as this to a known one, from 0 to 1 by `difflib`, is answered with `did you mean`."""

FIELDS = tuple(entry.name for entry in fields(Request))
SAMPLING_FIELDS = tuple(entry.name for entry in fields(SamplingSettings))


def request_of(request: Request | None, given: Mapping[str, Any]) -> Request:
    """`request`, or a request of the fields in `given`. Raises `TypeError` for both, and for an unknown field."""
    for name in given:
        if name in SAMPLING_FIELDS:
            raise TypeError(f"{name} is a field of SamplingSettings: sampling=SamplingSettings({name}=...)")
        if name not in FIELDS:
            near = get_close_matches(name, FIELDS, 1, NEAR)
            known = f"did you mean {near[0]}?" if near else f"the fields of a request are {', '.join(FIELDS)}"
            raise TypeError(f"unknown argument {name!r}; {known}")
    if request is None:
        return Request(**given)
    if given:
        raise TypeError(f"give a Request or its fields ({', '.join(given)}), not both")
    if not isinstance(request, Request):
        raise TypeError(f"the second argument must be a Request, found {request!r}")
    return request


class GenerationJob:
    """One call of `generate`: its rows, their texts, its policy and its account.

    Raises `PromptError` where there is no prompt, or one that the model cannot take, and what choosing a policy raises.
    """

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
        self.prompts = _as_prompts(prompts)
        if not self.prompts:
            raise PromptError("there is no prompt")
        spec, tokenizer = session.file.spec, session.tokenizer
        if request.stops and tokenizer is None:
            raise PromptError("stop strings need a tokenizer, and the model has none")
        self.session, self.request, self.trace = session, request, trace
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
        """Send one notice if rows reach the model's last position before they have all the tokens asked for."""
        limits = [row.limit for row in self.rows if row.limit < self.request.max_new_tokens]
        if limits:
            least, most = min(limits), max(limits)
            room = f"{most}" if least == most else f"{least} to {most}"
            self.session.on_event(
                Notice(
                    f"{len(limits)} of {how_many(len(self.rows), 'row')} may have at most {room} new tokens, not "
                    f"{self.request.max_new_tokens}: the model has {self.session.file.spec.positions} positions"
                )
            )

    def run(self) -> Generator[StreamedToken, None, None]:
        """Run every block in order and yield its tokens. `stats` is complete after the last one.

        Raises `EngineError` if the engine has another job or is closed, and `KeyboardInterrupt` only where no operation
        is half done.
        """
        return self.session.gate.stream(self._passes())

    def _passes(self) -> Generator[list[StreamedToken], None, None]:
        with self.session.job(self.stats, self.rows, self.trace) as account:
            for planned in account.blocks:
                yield from self._block(planned, account)

    def result(self) -> Generation:
        """The outputs, in the order of the prompts, and the account."""
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
        """Run one block; yields its new tokens some stages after each pass, and adds its figures to `stats`."""
        mover, stats = self.session.mover, self.stats
        shape = planned.shape(passes=max(row.limit for row in planned.rows))
        sampler = Sampler(self.request.sampling)
        block = GenerateBlock(
            planned.memory, account.weights, mover, planned.groups, shape, sampler, self._judge, watch=self.watch
        )
        with account.memory_of(block), logged(planned, account, mover.traffic):
            before = mover.traffic.snapshot()
            start = marked = time.perf_counter()
            prefill_s = 0.0
            told_at = min(EVENTS_AFTER_STAGES, shape.stages - 1)
            with closing(executor.run(mover, block, shape, overlap=self.policy.overlap)) as visits:
                for visit in visits:
                    if shape.ends_pass(visit):
                        account.check_weights()
                        now, fed = time.perf_counter(), block.take_fed()
                        stats.prompt_tokens += fed.prompt_tokens
                        if fed.prompt_tokens:
                            prefill_s += now - marked
                            add_bytes(stats.prefill_link_bytes, mover.traffic.since(before))
                        said = visit.pass_number, fed.prompt_tokens, now - marked
                        LOG.debug("pass %d ends: prompt tokens %d, %.4f s", *said)
                        marked, before = now, mover.traffic.snapshot()
                        block.tell_watch()
                    if visit.stage == told_at and visit.group == 0:
                        yield self._streamed(block)
            yield self._streamed(block)
            stats.prefill_s += prefill_s
            stats.decode_s += time.perf_counter() - start - prefill_s
            stats.blocks += 1

    def _judge(self, row: Row) -> str | None:
        """Why a row ends with its latest token; None if it does not."""
        return self.texts[row.number].push(row.tokens[-1])

    def _streamed(self, block: GenerateBlock) -> list[StreamedToken]:
        """The tokens since the last call, each with the text that it adds to its row."""
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


def _as_prompts(prompts: Any) -> list[Prompt]:
    """`prompts` of whatever type the caller gave, each as a `Prompt`."""
    if isinstance(prompts, str | bytes | Prompt):
        shown = reprlib.repr(prompts)
        raise PromptError(f"prompts must be a list, found a single one: write [{shown}] for {shown}")
    if not isinstance(prompts, Iterable) or isinstance(prompts, Mapping | Set):
        raise PromptError(f"prompts must be a list of texts, or of lists of token ids, found {prompts!r}")
    return [_as_prompt(prompt, number) for number, prompt in enumerate(prompts, start=1)]


def _as_prompt(prompt: Any, number: int) -> Prompt:
    if isinstance(prompt, Prompt):
        return prompt
    if isinstance(prompt, str):
        return Prompt(text=prompt)
    if not isinstance(prompt, Iterable) or isinstance(prompt, NO_IDS):
        raise PromptError(f"prompt {number}: it is neither text nor token ids, found {prompt!r}")
    return Prompt(token_ids=tuple(prompt))
