"""Prompts and chats as the token ids that rows start with, checked against a model's sizes; it knows no engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from flexref.architecture.spec import ModelSpec
from flexref.batch_job.lines.asked_body import AskedBody
from flexref.batch_job.lines.wrong_line import (
    CONTEXT_LENGTH_EXCEEDED,
    INVALID_VALUE,
    NO_CHAT_TEMPLATE,
    NO_TOKENIZER,
    WrongLine,
)
from flexref.errors import FlexrefError, PromptError
from flexref.json_types.values import shown
from flexref.text.tokenizer import Tokenizer


class Template(Protocol):
    """How a model's chats become text."""

    def render(self, messages: Any, /) -> str:
        """The text of a chat, with its special tokens, up to where the model's answer begins. Raises `PromptError`."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a reader of requests must know of a model."""

    vocabulary: int
    positions: int
    tokenizer: Tokenizer | None = None
    chat_template: Template | None = None


def served_model(spec: ModelSpec, tokenizer: Tokenizer | None) -> ServedModel:
    """What a reader must know of a model with that tokenizer."""
    template = None if tokenizer is None else tokenizer.chat_template
    return ServedModel(spec.vocabulary, spec.positions, tokenizer, template)


class PromptLength(NamedTuple):
    """How long a prompt is: its tokens, None if they were not counted, and the bytes of its text; of token ids 0."""

    tokens: int | None
    nbytes: int


class PromptReader:
    """Makes token ids of what bodies have for prompts."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model

    def prompts_of(self, body: AskedBody) -> Sequence[object]:
        """The prompts of a body, each text or token ids, of which only the first is looked at; a chat is one.

        Raises `WrongLine`.
        """
        prompt = body.prompt
        if body.chat:
            return [self._rendered(prompt)]
        if isinstance(prompt, str):
            return [prompt]
        if not isinstance(prompt, list):
            raise _no_prompt(prompt)
        if not prompt:
            raise WrongLine("`prompt` is an empty list", INVALID_VALUE, "prompt")
        return prompt if isinstance(prompt[0], str | list) else [prompt]

    def token_ids(self, prompt: object, body: AskedBody) -> tuple[int, ...]:
        """The token ids of one prompt, which the positions of the model are enough for. Raises `WrongLine`."""
        model = self._model
        field = "messages" if body.chat else "prompt"
        ids = self._encoded(prompt, field) if isinstance(prompt, str) else self._checked(prompt)
        if len(ids) > model.positions:
            words = f"the prompt has {len(ids)} tokens; the model has {model.positions} positions"
            raise WrongLine(words, CONTEXT_LENGTH_EXCEEDED, field)
        return ids

    def length(self, prompt: object, body: AskedBody, counted: bool) -> PromptLength:
        """How long a prompt is. Raises `WrongLine` where `token_ids` does.

        Unless `counted`, no tokens are made of a text that is certainly short enough.
        """
        tokenizer = self._model.tokenizer
        if not counted and isinstance(prompt, str) and prompt and tokenizer is not None:
            nbytes = len(prompt.encode("utf-8"))
            if tokenizer.tokens_most(nbytes) <= self._model.positions:
                return PromptLength(None, nbytes)
        return PromptLength(len(self.token_ids(prompt, body)), len(prompt.encode()) if isinstance(prompt, str) else 0)

    def _checked(self, prompt: object) -> tuple[int, ...]:
        if not isinstance(prompt, list) or not set(map(type, prompt)) <= {int}:
            raise _no_prompt(prompt)
        if not prompt:
            raise WrongLine("`prompt` has no token", INVALID_VALUE, "prompt")
        if min(prompt) < 0 or max(prompt) >= self._model.vocabulary:
            wrong = next(token for token in prompt if not 0 <= token < self._model.vocabulary)
            words = f"`prompt` has the token {shown(wrong)}, needed ids from 0 to {self._model.vocabulary - 1}"
            raise WrongLine(words, INVALID_VALUE, "prompt")
        return tuple(prompt)

    def _encoded(self, text: str, field: str) -> tuple[int, ...]:
        """The token ids of a text; that of a chat has its special tokens already."""
        model, tokenizer = self._model, self._model.tokenizer
        if tokenizer is None:
            raise WrongLine(f"`{field}` is text, but the model has no tokenizer; give token ids", NO_TOKENIZER, field)
        if not text:
            raise WrongLine(f"`{field}` is empty", INVALID_VALUE, field)
        most, nbytes = tokenizer.token_bytes_most, len(text.encode("utf-8"))
        if most is not None and nbytes > most * model.positions:
            words = f"`{field}` has {nbytes} bytes of text, too many for the {model.positions} positions of the model"
            raise WrongLine(f"{words}: no token stands for more than {most} bytes", CONTEXT_LENGTH_EXCEEDED, field)
        try:
            ids = tokenizer.encode(text, add_special=field == "prompt")
        except FlexrefError as error:
            raise WrongLine(f"`{field}`: {error}", INVALID_VALUE, field) from error
        if not ids:
            raise WrongLine(f"`{field}` has no token", INVALID_VALUE, field)
        if max(ids) >= model.vocabulary:
            words = f"`{field}` has the token {max(ids)}; the model has {model.vocabulary} tokens"
            raise WrongLine(words, INVALID_VALUE, field)
        return tuple(ids)

    def _rendered(self, messages: object) -> str:
        """The text of a chat."""
        template = self._model.chat_template
        if template is None:
            raise WrongLine(
                "the model has no chat template; write its prompts for /v1/completions", NO_CHAT_TEMPLATE, "messages"
            )
        try:
            return template.render(messages)
        except PromptError as error:
            raise WrongLine(f"`messages`: {error}", INVALID_VALUE, "messages") from error


def _no_prompt(prompt: object) -> WrongLine:
    words = f"`prompt` must be text, token ids, or a list of either, found {shown(prompt)}"
    return WrongLine(words, INVALID_VALUE, "prompt")
