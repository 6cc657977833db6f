"""A text as the JSON value that it is, strictly read; it knows no type and no file."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from flexref.errors import FlexrefError
from flexref.json_types.values import shown


def as_json(text: str, where: str | Path, wrong: type[FlexrefError]) -> Any:
    """The value that `text` is in JSON; `wrong` says what is the matter in `where`.

    Beyond JSON itself: no key twice in an object, no half of a surrogate pair, no number beyond the range of floats.
    """

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
            raise wrong(f"{where}: the key {shown(twice)} stands twice in one of its JSON objects")
        return found

    try:
        value = json.loads(text, object_pairs_hook=members, parse_float=_finite, parse_constant=_no_number)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode("unicode_escape").decode()
        raise wrong(f"{where}: not JSON: {half} is half of a surrogate pair") from error
    except (ValueError, RecursionError) as error:
        raise wrong(f"{where}: not JSON: {error}") from error
    return value


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{shown(digits)} is beyond the range of floats")
    return number


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")
