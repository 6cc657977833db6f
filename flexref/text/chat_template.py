"""A model's chat template: messages to the text of a prompt; it knows no tokenizer and no file."""

import reprlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, UndefinedError

from flexref.errors import CheckpointError, PromptError
from flexref.text.chat_calls import METER, StepMeter, TemplateRefusal
from flexref.text.chat_sandbox import Sandbox, counted

MOST_STEPS, MESSAGE_STEPS = 2_000_000, 2_000
"""Steps of a rendering, and more for every message; each character of a message is another."""

FAILURES = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a template can raise that is its own fault, or that of messages which it does not expect."""


class ChatTemplate:
    """A template in jinja2's language, as `transformers` has it, rendered within bounds.

    `special_tokens`: texts by the names that templates call them by (`bos_token`, `eos_token`).
    The rendered text spells out all special tokens: it is encoded without adding them again. As in `transformers`, a
    message that spells one is that token. Nothing in it depends on the clock: `strftime_now` is not defined, and a
    template that asks whether it is takes the date that it has for that case.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], where: str = "chat template") -> None:
        """Raises `CheckpointError`, which begins with `where`, for what is no template or cannot be bounded."""
        self.source, self.special_tokens = source, dict(special_tokens)
        sandbox = Sandbox()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # Python's, for what will fail when it is rendered
                code = sandbox.compile(counted(sandbox, source))
        except TemplateSyntaxError as error:
            raise CheckpointError(f"{where}: line {error.lineno} of the chat template: {one_line(error)}") from error
        except (TemplateError, SyntaxError, RecursionError, MemoryError, ValueError) as error:
            # Python has bounds of its own for what is nested, and these are the errors that it has for them.
            raise CheckpointError(f"{where}: the chat template cannot be compiled: {one_line(error)}") from error
        self._template = Template.from_code(sandbox, code, sandbox.globals)

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """The text of `messages`, up to where the model's answer begins if `add_generation_prompt`.

        A message has a `role` and a `content`: text, or a list of `{"type": "text", "text": ...}`, whose texts are
        joined by line feeds. Other names are not given if they are null. Raises `PromptError` for anything else, for
        messages that the template refuses or cannot write, and where it takes too many steps or makes too much text.
        """
        plain = _checked(messages)
        characters = sum(len(message["content"]) for message in plain)
        meter = StepMeter(MOST_STEPS + MESSAGE_STEPS * len(plain) + characters)
        given = {"messages": plain, "tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
        try:
            # A filter over a block may have written what is no text: that fails here.
            return "".join(self._template.generate({**self.special_tokens, **given, METER: meter}))
        except TemplateRefusal as error:
            raise PromptError(f"the chat template refuses the messages: {one_line(error)}") from error
        except UndefinedError as error:
            clock = "strftime_now" in str(error)
            why = "it asks for today's date, and no result depends on the clock" if clock else one_line(error)
            raise PromptError(f"the chat template cannot write the messages: {why}") from error
        except FAILURES as error:
            raise PromptError(f"the chat template cannot write the messages: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """What an error says, or its type, in a line that is not too long."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _checked(messages: Any) -> list[dict[str, str]]:
    """The messages with their contents as text."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise PromptError(f"messages must be a list of at least one message, found {reprlib.repr(messages)}")
    return [_message(message, f"message {number}") for number, message in enumerate(messages, start=1)]


def _message(message: Any, place: str) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise PromptError(f"{place} must be an object with role and content, found {reprlib.repr(message)}")
    for name, value in message.items():
        if name not in ("role", "content") and value is not None:
            raise PromptError(f"{place}: {reprlib.repr(name)} is not served, only role and content are")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise PromptError(f"{place}: role must be text, found {reprlib.repr(role)}")
    checked = {"role": role, "content": _content(message.get("content"), place)}
    return {name: checked[name] for name in message if name in checked}  # a template may write a message as it stands


def _content(content: Any, place: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes) or not content:
        raise PromptError(f"{place}: content must be text, or a list of texts, found {reprlib.repr(content)}")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            raise PromptError(f"{place}: content of type {reprlib.repr(kind)} is not served, only text is")
        text = part.get("text")
        if not isinstance(text, str) or set(part) != {"type", "text"}:
            raise PromptError(f"{place}: a part of type text must have its text and no more")
        texts.append(text)
    return "\n".join(texts)
