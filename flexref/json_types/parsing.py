"""A text as the JSON value that it is, strictly read; it knows no type and no file."""

import json
import math
from pathlib import Path
from typing import Any

from flexref.errors import FlexrefError
from flexref.files import members_once
from flexref.json_types.values import shown


def as_json(text: str, where: str | Path, wrong: type[FlexrefError]) -> Any:
    """The value that `text` is in JSON; `wrong` says what is the matter in `where`.

    Beyond JSON itself: no key twice in an object, no half of a surrogate pair, no number beyond the range of floats.
    """
    try:
        value = json.loads(text, object_pairs_hook=members_once, parse_float=_finite, parse_constant=_no_number)
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
