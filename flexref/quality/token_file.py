"""Reads the token ids of one document from a file, for models without a tokenizer; it knows no model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flexref.errors import PromptError
from flexref.files import as_text, read_bytes
from flexref.json_types.parsing import as_json
from flexref.text.tokenizer_check import MAX_TOKEN_ID, is_token_id

LONGEST_ID_DIGITS = 20
"""Bounds a number before it is read."""


def read_tokens(path: Path | str) -> tuple[int, ...]:
    """The token ids of a file in UTF-8: whole numbers between white space, a JSON list, or one JSON list on each line.

    Lists on several lines are one document, in order. Raises `StorageError` if the file cannot be read, `PromptError`
    that names the file and, where there is one, the line of what is no token id.
    """
    text = as_text(read_bytes(path), path, PromptError).removeprefix("\ufeff")
    ids = tuple(_of_lists(text, path) if text.lstrip().startswith("[") else _of_words(text, path))
    if not ids:
        raise PromptError(f"{path}: holds no token ids")
    return ids


def _of_words(text: str, path: Path | str) -> Iterator[int]:
    for number, line in enumerate(text.split("\n"), start=1):
        place = f"{path}, line {number}"
        for word in line.split():
            if not (word.isascii() and word.isdigit() and len(word) <= LONGEST_ID_DIGITS):
                raise PromptError(f"{place}: {word[:40]!r} is no token id")
            yield _checked(int(word), place)


def _of_lists(text: str, path: Path | str) -> Iterator[int]:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if all(line.lstrip().startswith("[") and line.rstrip().endswith("]") for _, line in lines):
        for number, line in lines:
            place = f"{path}, line {number}"
            yield from _of_list(as_json(line, place, PromptError), place)
    else:
        yield from _of_list(as_json(text, path, PromptError), str(path))


def _of_list(found: Any, place: str) -> Iterator[int]:
    if not isinstance(found, list):
        raise PromptError(f"{place}: needed a list of token ids, found {type(found).__name__}")
    for value in found:
        yield _checked(value, place)


def _checked(value: Any, place: str) -> int:
    if not is_token_id(value):
        raise PromptError(f"{place}: {str(value)[:40]!r} is no token id, needed an integer from 0 to {MAX_TOKEN_ID}")
    return int(value)
