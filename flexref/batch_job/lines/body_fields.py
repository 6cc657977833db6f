"""The fields of a request's body in the OpenAI format: which are served, with what values, and which are not.

It knows no model. A field that is null is not given. Fields of other engines whose value asks for nothing are taken.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from flexref.batch_job.lines.wrong_line import INVALID_VALUE, UNKNOWN_FIELD, UNSUPPORTED_FIELD, WrongLine
from flexref.errors import PromptError
from flexref.json_types.containers import ListOf
from flexref.json_types.values import Either, JsonType, Number, Text, Truth, Whole, shown
from flexref.sampling.settings import MAX_SEED, MAX_TOP_K

MOST_CHOICES = 128
"""Bounds `n`, as OpenAI does."""

MOST_LOGPROBS = 128
"""Bounds the tokens of which a place's probabilities are told: an answer holds them for all its tokens."""

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"

URLS = (COMPLETIONS, CHAT)
"""What is served."""

SERVED: Mapping[str, JsonType] = MappingProxyType(
    {
        "model": Text(),
        "max_tokens": Whole(1),
        "max_completion_tokens": Whole(1),
        "temperature": Number(0),
        "top_p": Number(0, 1),
        "top_k": Whole(-1, MAX_TOP_K),
        "seed": Whole(-(1 << 63), MAX_SEED),
        "stop": Either((Text(), ListOf(Text()))),
        "n": Whole(1, MOST_CHOICES),
        "ignore_eos": Truth(),
    }
)
"""Of both urls."""

SERVED_BY_URL: Mapping[str, Mapping[str, JsonType]] = MappingProxyType(
    {
        COMPLETIONS: MappingProxyType(
            {
                **SERVED,
                "prompt": Either((Text(), ListOf(Whole(0)), ListOf(Text()), ListOf(ListOf(Whole(0))))),
                "echo": Truth(),
                "logprobs": Whole(0, MOST_LOGPROBS),
                "best_of": Whole(1, MOST_CHOICES),
            }
        ),
        CHAT: MappingProxyType(
            {
                **SERVED,
                "messages": ListOf(Text()),
                "logprobs": Truth(),
                "top_logprobs": Whole(0, MOST_LOGPROBS),
            }
        ),
    }
)
"""`prompt` and `messages` are looked at by who knows the model."""

UNREAD = ("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier", "priority")
"""Taken whatever they are: they say nothing of the answer."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "stream": (False,),
        "presence_penalty": (0,),
        "frequency_penalty": (0,),
        "repetition_penalty": (1,),
        "length_penalty": (1,),
        "min_p": (0,),
        "min_tokens": (0,),
        "typical_p": (1,),
        "logit_bias": ({},),
        "suffix": ("",),
        "use_beam_search": (False,),
        "early_stopping": (False,),
        "skip_special_tokens": (True,),
        "spaces_between_special_tokens": (True,),
        "include_stop_str_in_output": (False,),
        "detokenize": (True,),
        "stop_token_ids": ([],),
        "bad_words": ([],),
        "prompt_logprobs": (),
        "truncate_prompt_tokens": (),
        "return_token_ids": (False,),
        "return_tokens_as_token_ids": (False,),
        "response_format": ({"type": "text"},),
        "structured_outputs": (),
        "guided_json": (),
        "guided_regex": (),
        "guided_choice": (),
        "guided_grammar": (),
        "stream_options": (),
        "reasoning_effort": (),
        "verbosity": (),
    }
)
"""The values with which each is taken, beside null: it asks for nothing then."""

NEUTRAL_BY_URL: Mapping[str, Mapping[str, tuple[Any, ...]]] = MappingProxyType(
    {
        COMPLETIONS: MappingProxyType({**NEUTRAL, "add_special_tokens": (True,)}),
        CHAT: MappingProxyType(
            {
                **NEUTRAL,
                "add_special_tokens": (False,),
                "add_generation_prompt": (True,),
                "continue_final_message": (False,),
                "echo": (False,),
                "chat_template": (),
                "chat_template_kwargs": ({},),
                "documents": ([],),
                "tools": ([],),
                "tool_choice": ("none", "auto"),
                "functions": ([],),
                "function_call": ("none", "auto"),
                "parallel_tool_calls": (True, False),
                "modalities": (["text"],),
                "audio": (),
                "prediction": (),
                "web_search_options": (),
            }
        ),
    }
)


def given_fields(body: Mapping[str, Any], url: str) -> dict[str, Any]:
    """The served fields that a body gives, each of the type that it must have. Raises `WrongLine` for any other."""
    served, neutral = SERVED_BY_URL[url], NEUTRAL_BY_URL[url]
    found = {}
    for name, value in body.items():
        kind = served.get(name)
        if value is None and (kind is not None or name in neutral or name in UNREAD):
            continue
        if kind is None:
            if name not in UNREAD:
                _check_neutral(name, value, neutral, url)
        elif name in {"prompt", "messages"}:
            found[name] = value
        else:
            try:
                found[name] = kind.read(f"`{name}`", value, PromptError)
            except PromptError as error:
                raise WrongLine(str(error), INVALID_VALUE, name) from error
    return found


def _check_neutral(name: str, value: Any, neutral: Mapping[str, tuple[Any, ...]], url: str) -> None:
    """Refuse a field that is not served, unless it asks for nothing."""
    if name not in neutral:
        raise WrongLine(f"unknown field {shown(name)} in `body`{_meant(name, url)}", UNKNOWN_FIELD, name[:100])
    values = neutral[name]
    if any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in values):
        return
    served = f"; only {' or '.join(map(_json, values))} is" if values else ""
    raise WrongLine(f"`{name}` is not served: found {shown(value)}{served}", UNSUPPORTED_FIELD, name)


def _json(value: Any) -> str:
    """A neutral value as JSON has it."""
    return str(value).lower() if isinstance(value, bool) else str(value).replace("'", '"') or '""'


def _meant(name: str, url: str) -> str:
    """What a field that is not known may have been."""
    for other in URLS:
        if other != url and name in SERVED_BY_URL[other]:
            return f": it belongs to {other}, this line's url is {url}"
    near = get_close_matches(name, SERVED_BY_URL[url], n=1)
    return f"; did you mean `{near[0]}`?" if near else f"; served: {', '.join(SERVED_BY_URL[url])}"
