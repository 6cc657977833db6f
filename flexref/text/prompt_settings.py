"""What a prompt may ask for itself in place of its job: the names and types of settings; it serves none of them."""

from collections.abc import Mapping
from typing import Any

from flexref.errors import PromptError
from flexref.json_types.containers import ListOf, ReadBy
from flexref.json_types.objects import UNSAID, JsonField, JsonObject
from flexref.json_types.values import Either, Number, Text, Whole, shown

STOPS = Either((Text(), ListOf(Text())))


def _stops(what: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text for text in texts):
        raise PromptError(f"{what} must be a text or a list of texts, none of them empty, found {shown(value)}")
    return tuple(texts)


SETTINGS = JsonObject(
    "PromptSettings",
    "What a prompt asks for in place of its job.",
    {
        "max_new_tokens": JsonField(Whole(1), "The most new tokens.", UNSAID),
        "temperature": JsonField(Number(0), "0: greedy.", UNSAID),
        "top_k": JsonField(Whole(0), "Keep the k most probable tokens; 0: all.", UNSAID),
        "top_p": JsonField(Number(0, 1), "Keep the most probable tokens up to this probability.", UNSAID),
        "seed": JsonField(Whole(0), "Of what is drawn.", UNSAID),
        "stop": JsonField(ReadBy(STOPS, _stops), "Texts before which the row ends.", UNSAID),
    },
)

Settings = Mapping[str, Any]
"""Some of `SETTINGS` by name; `stop` is a tuple."""


def checked_settings(values: Mapping[str, Any], where: str = "") -> Settings:
    """`values` as settings; `PromptError`, which begins with `where`, if they are none.

    Of numbers only the type and the sign are checked: what more they must keep is known by who serves them.
    """
    return SETTINGS.read_members(where, values, PromptError, "setting")
