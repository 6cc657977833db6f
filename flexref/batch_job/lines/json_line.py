"""A line as a JSON object, or why it is none; it knows no field.

Beyond JSON itself: no key twice in an object, nothing nested deeper than `LEVELS_MOST`, no half of a surrogate pair, no
number beyond the range of floats.
"""

import json
import re
from collections import Counter
from typing import Any

import msgspec
import numpy as np

from flexref.batch_job.lines.wrong_line import INVALID_LINE, WrongLine
from flexref.json_types.values import shown

LEVELS_MOST = 32
"""Levels of lists and objects in each other. Nothing that is served needs more than seven, and the decoder would stop
at a depth that depends on its caller."""

TEXT = re.compile(rb'"[^"]*"(\s*:)?')
"""A text in JSON without escaped quotation marks, which is a key if a colon follows."""

HALF_PAIR = re.compile(rb"\\u[dD][89abAB]\w\w(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]\w\w)\\u[dD][c-fC-F]\w\w")
"""One half of a surrogate pair in JSON in which no backslash is escaped."""

OPENING, CLOSING = np.frombuffer(b"[{", np.uint8), np.frombuffer(b"]}", np.uint8)

DECODER = msgspec.json.Decoder()


def object_in(data: bytes) -> dict[str, Any]:
    """The object that is the line. Raises `WrongLine`."""
    if data.count(b"[") + data.count(b"{") > LEVELS_MOST and _levels(data) > LEVELS_MOST:
        raise WrongLine(f"its JSON is nested more than {LEVELS_MOST} levels deep", INVALID_LINE)
    try:
        found = DECODER.decode(data)
    except UnicodeDecodeError as error:
        raise WrongLine(f"it is not UTF-8: {error.reason}", INVALID_LINE) from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        half = HALF_PAIR.search(data.replace(rb"\\", b""))
        why = str(error) if half is None else f"{half[0].decode()} is half of a surrogate pair"
        raise WrongLine(f"it is not JSON: {' '.join(why.split())}", INVALID_LINE) from error
    if not isinstance(found, dict):
        raise WrongLine("it must be a JSON object", INVALID_LINE)
    # Every key has a colon after it; only where texts have some, too, it takes a look at the keys themselves.
    keys = _keys(found)
    if (
        data.count(b":") != keys
        and sum(match[1] is not None for match in TEXT.finditer(_without_escapes(data))) != keys
    ):
        raise WrongLine(f"the key {shown(_twice(data))} stands twice in one of its JSON objects", INVALID_LINE)
    return found


def _twice(data: bytes) -> str:
    """A key that stands twice in one of the objects of a line of JSON, one of which has such a key."""
    found: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        found.extend(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)

    json.loads(data, object_pairs_hook=look)
    return found[0]


def _keys(value: dict[str, Any] | list[Any]) -> int:
    """Keys of all objects in a value."""
    if type(value) is list:
        kinds = set(map(type, value))
        if dict not in kinds and list not in kinds:
            return 0
    own, parts = (len(value), value.values()) if type(value) is dict else (0, value)
    for part in parts:
        if type(part) is dict or type(part) is list:
            own += _keys(part)
    return own


def _levels(data: bytes) -> int:
    """How deep lists and objects lie in each other, as far as brackets outside of texts say."""
    letters = np.frombuffer(TEXT.sub(b"", _without_escapes(data)), np.uint8)
    steps = np.isin(letters, OPENING).astype(np.int32) - np.isin(letters, CLOSING)
    return int(np.cumsum(steps, dtype=np.int32).max(initial=0))


def _without_escapes(data: bytes) -> bytes:
    """JSON without the backslashes and quotation marks that are escaped in its texts."""
    return data.replace(rb"\\", b"").replace(rb"\"", b"")
