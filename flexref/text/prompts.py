"""Prompts from the command line or a file, checked and turned into token ids; it knows no model beyond two sizes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flexref.errors import FlexrefError, PromptError
from flexref.text.prompt_lines import PromptLine, prompt_lines
from flexref.text.prompt_settings import SETTINGS, Settings, checked_settings
from flexref.units import is_integer, plain_integers

if TYPE_CHECKING:
    # Only for its type: token ids alone need no tokenizer library.
    from flexref.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one row starts from: text, or token ids that are taken as they are (no `</s>` is put before them).

    `record_id` is what its owner calls it; the row's output carries it. `settings`: what it asks for in place of its
    job, by the names of `prompt_settings.SETTINGS`.
    """

    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    record_id: str | int | None = None
    settings: Settings | None = None

    def __post_init__(self) -> None:
        if self.settings is not None:
            object.__setattr__(self, "settings", checked_settings(self.settings))
        if (self.text is None) == (self.token_ids is None):
            raise PromptError("a prompt is either text or token ids")
        if self.token_ids is not None:
            object.__setattr__(self, "token_ids", plain_integers(self.token_ids))


def read_prompts(
    path: Path | str,
    vocabulary: int | None = None,
    on_blank: Callable[[int], None] | None = None,
    on_settings: Callable[[Settings], object] | None = None,
) -> list[Prompt]:
    """The prompts of a file in UTF-8, or of standard input for `-`, one a line, in order.

    The lines are JSON objects with `prompt` as text or as a list of token ids, and maybe an `id`, if the file's suffix
    is one of `JSON_SUFFIXES` or its first line is a JSON object; otherwise each line is a prompt's text as it stands.
    Token ids must be less than `vocabulary`, if that is given. A line feed ends a line, with or without a carriage
    return before it, and may be missing at the end; a byte order mark at the start is skipped. Blank lines are skipped;
    `on_blank` is told of how many, if there are any.

    With `on_settings` an object may have settings of its own (`prompt_settings`); it is told of each line's, and may
    raise `PromptError` for what cannot be served.

    Raises `PromptError` naming file and line: an empty prompt, an unknown key, text that is not UTF-8, a wrong type, an
    id that is negative or beyond the vocabulary; `StorageError` if the file cannot be read.
    """
    lines, blank = prompt_lines(path, () if on_settings is None else tuple(SETTINGS.members))
    if blank and on_blank is not None:
        on_blank(blank)
    prompts = []
    for line in lines:
        own = _settings_of(line, on_settings)
        if isinstance(line.value, str):
            prompt = Prompt(text=line.value, record_id=line.record_id, settings=own)
            if not line.value.strip():
                raise PromptError(f"{line.place}: the prompt is empty")
        else:
            prompt = Prompt(token_ids=tuple(line.value), record_id=line.record_id, settings=own)
            _check_ids(prompt.token_ids or (), vocabulary, line.place)
        prompts.append(prompt)
    return prompts


def _settings_of(line: PromptLine, on_settings: Callable[[Settings], object] | None) -> Settings | None:
    """The line's own settings; None if it has none."""
    if on_settings is None or not line.settings:
        return None
    settings = checked_settings(line.settings, f"{line.place}: ")
    try:
        on_settings(settings)
    except PromptError as error:
        raise PromptError(f"{line.place}: {error}") from error
    return settings


def to_token_ids(  # one argument per size that a prompt must fit
    prompt: Prompt,
    tokenizer: "Tokenizer | None",
    vocabulary: int,
    positions: int,
    max_new_tokens: int,
    number: int = 1,
) -> tuple[int, ...]:
    """The token ids that prompt number `number` of the input starts with, checked against the model's sizes.

    The prompt must fit into `positions` tokens; of `max_new_tokens` as many are generated as fit (`new_token_room`), so
    a row may end there with the finish reason `length`. `tokenizer` is None for a model without
    one. Raises `PromptError` naming the prompt's number.
    """
    ids = encoded(prompt, tokenizer, vocabulary, positions, number)
    if new_token_room(len(ids), positions, max_new_tokens) < 1:
        raise PromptError(f"prompt {number}: {len(ids)} tokens are too many: the model has {positions} positions")
    return ids


def encoded(
    prompt: Prompt, tokenizer: "Tokenizer | None", vocabulary: int, positions: int, number: int = 1
) -> tuple[int, ...]:
    """The token ids of prompt number `number`, at least one, all in the vocabulary; how many there are is not asked.

    But a text that cannot become as few as `positions` tokens is refused. Raises `PromptError` with the number.
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
    """How many tokens a row may generate: `max_new_tokens`, cut where the positions are full.

    The last new token needs none: it is chosen from the one at the last position, and never read. A prompt may so have
    as many tokens as there are positions, and gets one more.
    """
    if max_new_tokens < 1:
        raise PromptError(f"the number of new tokens must be at least 1, found {max_new_tokens}")
    return max(0, min(max_new_tokens, positions - prompt_tokens + 1))


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
