"""Prompts from the command line or a file, checked and turned into token ids; it knows no model beyond two sizes."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flexref.errors import FlexrefError, PromptError
from flexref.files import as_json, read_bytes
from flexref.units import is_integer

if TYPE_CHECKING:
    # Only for its type: token ids alone need no tokenizer library.
    from flexref.text.tokenizer import Tokenizer

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
"""Files that hold a JSON object on every line, whatever their first line looks like."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one row starts from: text, or token ids that are taken as they are (no `</s>` is put before them)."""

    text: str | None = None
    token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.token_ids is None):
            raise PromptError("a prompt is either text or token ids")


def read_prompts(path: Path | str, vocabulary: int | None = None) -> list[Prompt]:
    """The prompts of a file in UTF-8, one a line, in order.

    The lines are JSON objects with `prompt` as text or as a list of token ids (other keys are ignored) if the file's
    suffix is one of `JSON_SUFFIXES` or its first line is a JSON object; otherwise each line is a prompt's text as it
    stands. Token ids must be less than `vocabulary`, if that is given. A line feed ends a line, with or without a
    carriage return before it, and may be missing at the end; a byte order mark at the start is skipped.

    Raises `PromptError` naming file and line: a blank line, an empty prompt, text that is not UTF-8, a wrong type, an
    id that is negative or beyond the vocabulary; `StorageError` if the file cannot be read.
    """
    path = Path(path)
    lines = _lines(path)
    as_json = path.suffix.lower() in JSON_SUFFIXES or _is_json_object(lines[0])
    prompts = []
    for number, line in enumerate(lines, start=1):
        place = f"{path}, line {number}"
        prompt = _parse_line(line, place) if as_json else Prompt(text=line)
        if prompt.token_ids is not None:
            _check_ids(prompt.token_ids, vocabulary, place)
        elif not (prompt.text or "").strip():
            raise PromptError(f"{place}: the prompt is empty")
        prompts.append(prompt)
    return prompts


def to_token_ids(  # one argument per size that a prompt must fit
    prompt: Prompt,
    tokenizer: "Tokenizer | None",
    vocabulary: int,
    positions: int,
    max_new_tokens: int,
    number: int = 1,
) -> tuple[int, ...]:
    """The token ids that prompt number `number` of the input starts with, checked against the model's sizes.

    The prompt and one new token must fit into `positions` tokens; of `max_new_tokens` as many are generated as fit
    (`new_token_room`), so a row may end there with the finish reason `length`. `tokenizer` is None for a model without
    one. Raises `PromptError` naming the prompt's number.
    """
    place = f"prompt {number}"
    if prompt.token_ids is not None:
        ids = prompt.token_ids
    elif tokenizer is None:
        raise PromptError(f"{place}: it is text, but the model has no tokenizer; give token ids")
    else:
        _check_bytes(prompt.text or "", tokenizer, positions, place)
        ids = _encode(prompt.text or "", tokenizer, place)
    _check_ids(ids, vocabulary, place)
    if new_token_room(len(ids), positions, max_new_tokens) < 1:
        raise PromptError(
            f"{place}: {len(ids)} tokens are too many: the model has {positions} positions, "
            f"and at least one new token must fit after the prompt"
        )
    return ids


def all_token_ids(
    prompts: Iterable[Prompt], tokenizer: "Tokenizer | None", vocabulary: int, positions: int, max_new_tokens: int
) -> list[tuple[int, ...]]:
    """`to_token_ids` of each prompt, numbered from 1."""
    return [
        to_token_ids(prompt, tokenizer, vocabulary, positions, max_new_tokens, number)
        for number, prompt in enumerate(prompts, start=1)
    ]


def new_token_room(prompt_tokens: int, positions: int, max_new_tokens: int) -> int:
    """How many tokens a row may generate: `max_new_tokens`, cut where prompt and new tokens fill the positions."""
    if max_new_tokens < 1:
        raise PromptError(f"the number of new tokens must be at least 1, found {max_new_tokens}")
    return max(0, min(max_new_tokens, positions - prompt_tokens))


def _lines(path: Path) -> list[str]:
    data = read_bytes(path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        number = 1 + data.count(b"\n", 0, error.start)
        raise PromptError(f"{path}, line {number}: not UTF-8: {error.reason}") from error
    text = text.removeprefix("\ufeff").removesuffix("\n")
    if not text:
        raise PromptError(f"{path}: holds no prompt")
    return [line.removesuffix("\r") for line in text.split("\n")]


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _parse_line(line: str, place: str) -> Prompt:
    record = as_json(line, place, PromptError)
    if not isinstance(record, dict) or "prompt" not in record:
        raise PromptError(f"{place}: needed a JSON object with `prompt`, found {line[:60]!r}")
    value = record["prompt"]
    if isinstance(value, str):
        return Prompt(text=value)
    if not isinstance(value, list):
        raise PromptError(f"{place}: `prompt` must be text or a list of token ids, found {type(value).__name__}")
    for token in value:
        if not is_integer(token):
            raise PromptError(f"{place}: `prompt` must be text or a list of token ids; {token!r} is no token id")
    return Prompt(token_ids=tuple(value))


def _encode(text: str, tokenizer: "Tokenizer", place: str) -> tuple[int, ...]:
    if not text:
        raise PromptError(f"{place}: the prompt is empty")
    try:
        return tuple(tokenizer.encode(text))
    except FlexrefError as error:
        raise PromptError(f"{place}: {error}") from error


def _check_bytes(text: str, tokenizer: "Tokenizer", positions: int, place: str) -> None:
    """Refuse a text that cannot become few enough tokens, without making tokens of it."""
    most, nbytes = tokenizer.token_bytes_most, len(text.encode("utf-8", "surrogatepass"))
    if most is not None and nbytes > most * positions:
        raise PromptError(
            f"{place}: {nbytes} bytes of text are too many: the model has {positions} positions, "
            f"and no token stands for more than {most} bytes"
        )


def _check_ids(ids: tuple[int, ...], vocabulary: int | None, place: str) -> None:
    if not ids:
        raise PromptError(f"{place}: the prompt is empty")
    for position, token in enumerate(ids, start=1):
        if not is_integer(token) or token < 0 or (vocabulary is not None and token >= vocabulary):
            below = "" if vocabulary is None else f"; the vocabulary has {vocabulary} tokens"
            raise PromptError(f"{place}: token {position} is {token!r}, needed an id from 0 on{below}")
