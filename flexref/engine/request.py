"""What a caller asks of every row: its prompt, how many new tokens, how they are chosen; it knows no engine."""

import reprlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any

from flexref.errors import PromptError
from flexref.sampling.settings import SamplingSettings
from flexref.text.prompt_settings import Settings
from flexref.text.prompts import Prompt
from flexref.units import is_integer, plain_integers

AnyPrompt = str | Sequence[int] | Prompt
"""Text, token ids, or either as a `Prompt`."""

NO_IDS = (bytes, bytearray, Mapping, Set)
"""What gives whole numbers, or may, and is no list of token ids: the bytes of a text, an object, a set."""


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


def own_request(request: Request, prompt: Prompt, number: int) -> Request:
    """`request` with the settings of prompt number `number` in place of its own; `PromptError` for what cannot be."""
    if not prompt.settings:
        return request
    try:
        return with_settings(request, prompt.settings)
    except PromptError as error:
        raise PromptError(f"prompt {number}: {error}") from error


def with_settings(request: Request, settings: Settings) -> Request:
    """`request` with some things otherwise; `PromptError` for what is not possible."""
    sampling = {name: value for name, value in settings.items() if name in SAMPLING_FIELDS}
    most, stops = settings.get("max_new_tokens", request.max_new_tokens), settings.get("stop", request.stops)
    return replace(request, sampling=replace(request.sampling, **sampling), max_new_tokens=most, stops=stops)


@dataclass(frozen=True, slots=True)
class RowRequest:
    """One row of a stream: its prompt, and what to do with it, but for what the prompt itself says.

    `generated`: the tokens that it has already, if it was interrupted. It goes on after them as if it had not been.
    `draw_number`: with the seed it decides what is drawn, from 0 to 2**63 - 1; None: the row's place in the stream.
    """

    prompt: AnyPrompt
    request: Request = field(default_factory=Request)
    generated: tuple[int, ...] = ()
    draw_number: int | None = None


def as_prompts(prompts: Any) -> list[Prompt]:
    """`prompts` of whatever type the caller gave, each as a `Prompt`."""
    if isinstance(prompts, str | bytes | Prompt):
        shown = reprlib.repr(prompts)
        raise PromptError(f"prompts must be a list, found a single one: write [{shown}] for {shown}")
    if not isinstance(prompts, Iterable) or isinstance(prompts, Mapping | Set):
        raise PromptError(f"prompts must be a list of texts, or of lists of token ids, found {prompts!r}")
    return [as_prompt(prompt, number) for number, prompt in enumerate(prompts, start=1)]


def as_prompt(prompt: Any, number: int) -> Prompt:
    if isinstance(prompt, Prompt):
        return prompt
    if isinstance(prompt, str):
        return Prompt(text=prompt)
    if not isinstance(prompt, Iterable) or isinstance(prompt, NO_IDS):
        raise PromptError(f"prompt {number}: it is neither text nor token ids, found {prompt!r}")
    return Prompt(token_ids=tuple(prompt))


def alike(prompts: Any, request: Request) -> list[RowRequest]:
    """The same request for each of a list of prompts. Raises `PromptError` where there is none."""
    rows = [RowRequest(prompt, request) for prompt in as_prompts(prompts)]
    if not rows:
        raise PromptError("there is no prompt")
    return rows
