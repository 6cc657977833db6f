"""What a request's body asks for, in an engine's words; it knows of the model how many positions it has, no more."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from flexref.batch_job.lines.body_fields import CHAT, given_fields
from flexref.batch_job.lines.defaults import Defaults
from flexref.batch_job.lines.wrong_line import (
    INVALID_VALUE,
    MISSING_FIELD,
    UNKNOWN_FIELD,
    UNSUPPORTED_FIELD,
    WrongLine,
)
from flexref.engine.request import Request, with_settings
from flexref.errors import PromptError
from flexref.sampling.settings import MAX_SEED, SamplingSettings
from flexref.text.prompt_lines import KNOWN_KEYS, unknown_key
from flexref.text.prompt_settings import SETTINGS, checked_settings


@dataclass(frozen=True, slots=True)
class AskedBody:
    """What a body asks for: of every prompt `choices` rows, all alike but for what they draw.

    `seeded`: the request's seed is the body's own. `logprobs`: of how many tokens at every place the answer tells the
    probabilities beside the chosen one's; None: of none, nor of that. `prompt` is text, token ids or a list of either;
    of a chat its messages.
    """

    chat: bool
    prompt: object
    request: Request
    model: str
    choices: int = 1
    seeded: bool = False
    echo: bool = False
    logprobs: int | None = None


REQUESTS_KEPT = 1 << 10
"""Of the latest different requests."""

OPTIONS_OF_ALL = ("ignore_eos",)
"""What a plain line cannot say for itself, but an option of the job says for all."""

KEPT_STOPS = 1 << 10
"""Bounds the characters of the stops of a request that is kept."""


class BodyReader:
    """Reads bodies, for what they do not say with a job's defaults."""

    def __init__(self, defaults: Defaults, positions: int) -> None:
        """`positions`: a chat may have as many new tokens, if nobody says how many."""
        self._model = defaults.model
        # The lines of a job say much the same: what checks itself is made once for all of them.
        self._made = lru_cache(REQUESTS_KEPT)(_request)
        self._plain = defaults.request(plain=True)
        self._completion = defaults.request(plain=False)
        self._chat = defaults.request(plain=False, chat_max_tokens=positions)

    def plain(self, record: Mapping[str, Any]) -> AskedBody:
        """What an object with a `prompt` asks for, which may have `id` and settings of its own. Raises `WrongLine`."""
        settings = {}
        for name, value in record.items():
            if name in SETTINGS.members:
                if value is not None:
                    settings[name] = value
            elif name not in KNOWN_KEYS:
                words = unknown_key(name, (*KNOWN_KEYS, *SETTINGS.members), OPTIONS_OF_ALL)
                raise WrongLine(words, UNKNOWN_FIELD, name[:100])
        if record.get("prompt") is None:
            raise WrongLine("`prompt` is missing", MISSING_FIELD, "prompt")
        if not settings:
            return AskedBody(False, record["prompt"], self._plain, self._model)
        try:
            request = with_settings(self._plain, checked_settings(settings))
        except PromptError as error:
            raise _wrong_value(error) from error
        return AskedBody(False, record["prompt"], request, self._model, seeded="seed" in settings)

    def read(self, body: Mapping[str, Any], url: str) -> AskedBody:
        """What the body of a request for `url` asks for. Raises `WrongLine`."""
        given, chat = given_fields(body, url), url == CHAT
        prompt = "messages" if chat else "prompt"
        if prompt not in given:
            raise WrongLine(f"`{prompt}` is missing in `body`", MISSING_FIELD, prompt)
        choices = given.get("n", 1)
        if given.get("best_of", choices) != choices:
            words = f"`best_of` is not served but where it equals `n`: found {given['best_of']}, `n` is {choices}"
            raise WrongLine(words, UNSUPPORTED_FIELD, "best_of")
        top, echo = _logprobs(given, chat), given.get("echo", False)
        if echo and top is not None:
            raise WrongLine(
                "`echo` with `logprobs` is not served: of the prompt's tokens none are told", UNSUPPORTED_FIELD, "echo"
            )
        try:
            request = self._request(given, self._chat if chat else self._completion, top)
        except PromptError as error:
            raise _wrong_value(error) from error
        model = given.get("model", self._model)
        return AskedBody(chat, given[prompt], request, model, choices, "seed" in given, echo, top)

    def _request(self, given: Mapping[str, Any], base: Request, top: int | None) -> Request:
        """What is done with every row. Raises `PromptError`."""
        own, stops = base.sampling, _stops(given, base)
        # What is kept is as small as most requests are, however long a line's stops may be.
        made = self._made if sum(map(len, stops)) <= KEPT_STOPS else _request
        return made(
            _max_tokens(given, base),
            given.get("temperature", own.temperature),
            max(0, given.get("top_k", own.top_k)),
            given.get("top_p", own.top_p),
            given.get("seed", own.seed) & MAX_SEED,
            stops,
            given.get("ignore_eos", base.ignore_eos),
            # A place's probabilities come with at least one token; `logprobs` 0 tells the chosen one's alone.
            base.logprobs if top is None else max(1, top),
        )


def _wrong_value(error: PromptError) -> WrongLine:
    """What settings say of themselves, which begins with the field's name."""
    name, _, words = str(error).partition(" ")
    return WrongLine(f"`{name}` {words}", INVALID_VALUE, name)


def _request(  # noqa: PLR0913, PLR0917 -- all that tells requests apart
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    stops: tuple[str, ...],
    ignore_eos: bool,
    logprobs: int,
) -> Request:
    sampling = SamplingSettings(temperature, top_k, top_p, seed)
    return Request(max_new_tokens, sampling, stops, ignore_eos, logprobs)


def _max_tokens(given: Mapping[str, Any], base: Request) -> int:
    most = {given[name] for name in ("max_tokens", "max_completion_tokens") if name in given}
    if len(most) > 1:
        words = f"`max_tokens` is {given['max_tokens']} and `max_completion_tokens` {given['max_completion_tokens']}"
        raise WrongLine(f"{words}; give one of them", INVALID_VALUE, "max_completion_tokens")
    return int(most.pop()) if most else base.max_new_tokens


def _stops(given: Mapping[str, Any], base: Request) -> tuple[str, ...]:
    if "stop" not in given:
        return base.stops
    stops = (given["stop"],) if isinstance(given["stop"], str) else tuple(given["stop"])
    if "" in stops:
        raise WrongLine("`stop` must be a text or a list of texts, none of them empty", INVALID_VALUE, "stop")
    return stops


def _logprobs(given: Mapping[str, Any], chat: bool) -> int | None:
    """Of how many tokens at every place probabilities are told beside the chosen one's; None: of none."""
    if not chat:
        return given.get("logprobs")
    top = given.get("top_logprobs")
    if given.get("logprobs"):
        return top or 0
    if top:
        raise WrongLine("`top_logprobs` needs `logprobs` true", INVALID_VALUE, "top_logprobs")
    return None
