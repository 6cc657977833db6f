"""The lines of a file of prompts, as prompts: text as it stands, or JSON objects with known keys; it knows no model."""

import json
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from flexref.errors import PromptError, StorageError
from flexref.files import LARGEST_TEXT_BYTES, read_bytes
from flexref.json_types.parsing import as_json
from flexref.units import is_integer

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
"""Files that hold a JSON object on every line, whatever their first line looks like."""

STANDARD_INPUT = "-"
"""In place of a file: what comes on standard input."""

KNOWN_KEYS = ("prompt", "id")
"""What every JSON line may say; the rest of a job is said by options, or where a command allows it by the line too."""

OPTIONS = ("max_new_tokens", "stop", "temperature", "top_k", "top_p", "logprobs", "seed", "ignore_eos")
"""What people write in a line although it is an option of the command, which holds for every prompt."""

ALIASES = {"max_tokens": "max_new_tokens", "text": "prompt", "inputs": "prompt", "input": "prompt"}
"""Names in other programs."""

LONGEST_ID = 1024
"""Bounds an `id`, in characters."""


@dataclass(frozen=True, slots=True)
class PromptLine:
    """A line that holds a prompt: its place in words, text or token ids, its `id`, None if it gives none, and what
    else it says, unchecked."""

    place: str
    value: str | list[int]
    record_id: str | int | None = None
    settings: Mapping[str, Any] | None = None


def prompt_lines(path: Path | str, settings: Collection[str] = ()) -> tuple[list[PromptLine], int]:
    """The lines of a file, or of standard input for `-`, that hold prompts, and how many were blank and skipped.

    `settings`: other keys that a line may have.

    Raises `PromptError` that names file and line, `StorageError` if the file cannot be read.
    """
    name = "standard input" if str(path) == STANDARD_INPUT else str(path)
    numbered = list(_lines(_standard_input() if str(path) == STANDARD_INPUT else read_bytes(path), name))
    filled = [(number, line) for number, line in numbered if line.strip()]
    if not filled:
        raise PromptError(f"{name}: holds no prompt")
    is_json = Path(path).suffix.lower() in JSON_SUFFIXES or is_json_object(filled[0][1])
    found = []
    for number, line in filled:
        place = f"{name}, line {number}"
        found.append(_parsed(line, place, (*KNOWN_KEYS, *settings)) if is_json else PromptLine(place, line))
    return found, len(numbered) - len(filled)


def _standard_input() -> bytes:
    try:
        data = sys.stdin.buffer.read(LARGEST_TEXT_BYTES + 1)
    except (OSError, AttributeError) as error:  # it may be closed
        raise StorageError(f"standard input cannot be read: {error}") from error
    if len(data) > LARGEST_TEXT_BYTES:
        raise StorageError(f"standard input has more than the {LARGEST_TEXT_BYTES} bytes that are read")
    return data


def _lines(data: bytes, name: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of a file; a line feed ends a line, with or without a carriage return before it."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        number = 1 + data.count(b"\n", 0, error.start)
        raise PromptError(f"{name}, line {number}: not UTF-8: {error.reason}") from error
    lines = text.removeprefix("\ufeff").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        yield number, line.removesuffix("\r")


def is_json_object(line: str) -> bool:
    """Whether a first line says that all lines are JSON objects."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _parsed(line: str, place: str, keys: Sequence[str]) -> PromptLine:
    record = as_json(line, place, PromptError)
    if not isinstance(record, dict):
        raise PromptError(f"{place}: needed a JSON object with `prompt`, found {line[:60]!r}")
    for key in record:
        if key not in keys:
            raise PromptError(f"{place}: {unknown_key(key, keys)}")
    if "prompt" not in record:
        raise PromptError(f"{place}: needed a JSON object with `prompt`, found {line[:60]!r}")
    settings = {key: value for key, value in record.items() if key not in KNOWN_KEYS}
    return PromptLine(place, _prompt(record["prompt"], place), _record_id(record.get("id"), place), settings)


def unknown_key(key: str, keys: Sequence[str], options: Sequence[str] = OPTIONS) -> str:
    """What is wrong with a key, what is known, and what may have been meant: a known key, or one of `options`."""
    near = [ALIASES[key]] if key in ALIASES else get_close_matches(key, (*keys, *options), n=1)
    meant = ""
    if near:
        option = f"the option --{near[0].replace('_', '-')}, which holds for every prompt"
        meant = f"; did you mean {f'`{near[0]}`' if near[0] in keys else option}?"
    return f"the key {key[:60]!r} is not known; known: {', '.join(keys)}{meant}"


def _prompt(value: Any, place: str) -> str | list[int]:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise PromptError(f"{place}: `prompt` must be text or a list of token ids, found {type(value).__name__}")
    for token in value:
        if not is_integer(token):
            raise PromptError(f"{place}: `prompt` must be text or a list of token ids; {token!r} is no token id")
    return value


def _record_id(value: Any, place: str) -> str | int | None:
    if value is None or is_integer(value):
        return value
    if not isinstance(value, str) or len(value) > LONGEST_ID:
        raise PromptError(f"{place}: `id` must be an integer or text of at most {LONGEST_ID} characters")
    return value
