"""What lines get that do not say themselves what they want; it knows no format and no model."""

from dataclasses import dataclass

from flexref.engine.request import Request
from flexref.errors import BatchError, FlexrefError
from flexref.sampling.settings import SamplingSettings
from flexref.units import is_integer

OPENAI_MAX_TOKENS = 16
"""New tokens of a completion whose body does not say how many, in that format."""

PLAIN_MAX_TOKENS = 32
"""The same of a prompt alone, as `flexref generate` has it."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a job's options say of all lines; None where the line's own format says it.

    That is for OpenAI lines temperature 1 and 16 new tokens for a completion, for a chat as many as the model has
    positions; for prompts alone it is greedy and 32 new tokens. `seed` is the job's. `model` is the name of the model
    in the answers of lines that name none, `created` the time in answers. Raises `BatchError` for values that cannot
    be.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stops: tuple[str, ...] = ()
    ignore_eos: bool = False
    model: str = ""
    created: int = 0

    def __post_init__(self) -> None:
        try:
            request = self.request(plain=True)
        except FlexrefError as error:
            raise BatchError(str(error)) from error
        for text in (*self.stops, self.model):
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise BatchError(f"stops and the model's name must be UTF-8, found {text!a}") from error
        if "" in self.stops:
            raise BatchError("a stop must be a text that is not empty, found ''")
        if request.max_new_tokens < 1:
            raise BatchError(f"the number of new tokens must be at least 1, found {request.max_new_tokens}")
        if not is_integer(self.created) or self.created < 0:
            raise BatchError(f"created must be a number of seconds from 0 on, found {self.created!r}")

    def request(self, *, plain: bool, chat_max_tokens: int | None = None) -> Request:
        """What is done with a line that says nothing; `chat_max_tokens` is for a chat in place of a completion."""
        own = PLAIN_MAX_TOKENS if plain else chat_max_tokens or OPENAI_MAX_TOKENS
        warm = 0.0 if plain else 1.0
        sampling = SamplingSettings(
            warm if self.temperature is None else self.temperature, self.top_k, self.top_p, self.seed
        )
        return Request(own if self.max_tokens is None else self.max_tokens, sampling, self.stops, self.ignore_eos)
