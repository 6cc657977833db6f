"""A line whose rows are known, and how its answer is made of what they become; it knows no file and no engine."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from flexref.batch_job.answers import Line, LineAnswer
from flexref.batch_job.lines.answer_lines import (
    AnswerIds,
    ChatChoice,
    ChatCompletion,
    ChatMessage,
    Completion,
    CompletionChoice,
    Usage,
    answered,
    failed,
)
from flexref.batch_job.lines.asked_body import AskedBody
from flexref.batch_job.lines.token_logprobs import chat_logprobs, completion_logprobs
from flexref.batch_job.lines.wrong_line import CANNOT_BE_SERVED, WrongLine
from flexref.engine.request import RowRequest
from flexref.engine.results import Output
from flexref.errors import FlexrefError
from flexref.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class AskedLine:
    """A line that can be served. `rows`: for every prompt, in order, one for every choice.

    `echoed`: for every prompt what stands before its completions: its text, or its token ids where the model has no
    tokenizer.
    """

    line: Line
    custom_id: str | int | None
    body: AskedBody
    rows: tuple[RowRequest, ...]
    echoed: tuple[str | tuple[int, ...], ...]
    tokenizer: Tokenizer | None
    created: int = 0

    @property
    def number(self) -> int:
        """The line's number, from 1 on."""
        return self.line.number

    @property
    def request_hash(self) -> int:
        """XXH3-64 of the line's bytes."""
        return self.line.request_hash

    def answer(self, outputs: Sequence[Output]) -> LineAnswer:
        """What becomes of it when its rows have become `outputs`, in their order."""
        own_id = AnswerIds(self.line)
        prompt_tokens = sum(output.prompt_tokens for output in outputs[:: self.body.choices])
        generated = sum(len(output.token_ids) for output in outputs)
        usage = Usage(prompt_tokens, generated, prompt_tokens + generated)
        if self.body.chat:
            chats = [self._chat_choice(index, output) for index, output in enumerate(outputs)]
            made = f"chatcmpl-{own_id.own}", "chat.completion", self.created, self.body.model, chats, usage
            return answered(self.line, self.custom_id, ChatCompletion(*made), own_id)
        texts = [self._completion_choice(index, output) for index, output in enumerate(outputs)]
        completion = Completion(f"cmpl-{own_id.own}", "text_completion", self.created, self.body.model, texts, usage)
        return answered(self.line, self.custom_id, completion, own_id)

    def refused(self, error: FlexrefError) -> LineAnswer:
        """What becomes of it if the engine cannot serve one of its rows."""
        return failed(self.line, self.custom_id, WrongLine(str(error), CANNOT_BE_SERVED))

    def _completion_choice(self, index: int, output: Output) -> CompletionChoice:
        text, top = output.text or "", self.body.logprobs
        known = None if top is None else completion_logprobs(output.logprobs or (), top, text, self.tokenizer)
        ids: Sequence[int] | msgspec.UnsetType = msgspec.UNSET if self.tokenizer is not None else output.token_ids
        if self.body.echo:
            echoed = self.echoed[index // self.body.choices]
            if isinstance(echoed, str):
                text = echoed + text
            else:
                ids = [*echoed, *output.token_ids]
        return CompletionChoice(text, index, known, output.finish_reason, ids)

    def _chat_choice(self, index: int, output: Output) -> ChatChoice:
        top = self.body.logprobs
        known = None if top is None else chat_logprobs(output.logprobs or (), top, self.tokenizer)
        return ChatChoice(index, ChatMessage("assistant", output.text or ""), known, output.finish_reason)
