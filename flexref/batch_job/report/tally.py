"""What the answers of a job say of lengths, endings and failures, line by line, with flat memory; it knows no journal.

A file of answers may still grow: a last line without its line feed is not read.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from flexref.errors import BatchError, StorageError
from flexref.files import open_regular

CODES_MOST = 50
"""Error codes that are counted apart; what comes with yet another one is counted as `OTHER`."""

OTHER = "other codes"

EXAMPLES_MOST = 3
"""Failed lines of a code that are shown."""

NAME_LETTERS, MESSAGE_LETTERS = 80, 300
"""Letters of a custom_id and of a message that are shown."""


class LineUsage(msgspec.Struct):
    """Tokens of an answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class FinishedChoice(msgspec.Struct):
    """One of the texts of an answer, as far as it is read here."""

    finish_reason: str | None = None


class ErrorWords(msgspec.Struct):
    """What is said of a failed line."""

    code: str | int | None = None
    message: str | None = None
    type: str | None = None


class AnswerBody(msgspec.Struct):
    """A completion, or an error object in its place."""

    usage: LineUsage | None = None
    choices: list[FinishedChoice] = []
    error: ErrorWords | None = None


class AnswerResponse(msgspec.Struct):
    """The HTTP response that an answer is in the format's own words."""

    status_code: int = 200
    body: AnswerBody | None = None


class AnsweredLine(msgspec.Struct):
    """One line of an output or an error file, as far as it is read here."""

    custom_id: str | int | None = None
    response: AnswerResponse | None = None
    error: ErrorWords | None = None


@dataclass(frozen=True, slots=True)
class FailedExample:
    """A line that failed, as its own answer tells of it; `custom_id` is empty where it has none."""

    custom_id: str
    message: str


@dataclass(slots=True)
class FailedLines:
    """Lines that failed with one code: how many, and the first of them."""

    count: int = 0
    examples: list[FailedExample] = field(default_factory=list)


@dataclass(slots=True)
class Tally:
    """Counts over the answers that were added: lines by length in tokens, texts by finish reason, failures by code."""

    answered: int = 0
    prompt_lengths: Counter[int] = field(default_factory=Counter)
    output_lengths: Counter[int] = field(default_factory=Counter)
    finish_reasons: Counter[str] = field(default_factory=Counter)
    failed: dict[str, FailedLines] = field(default_factory=dict)

    def add(self, line: AnsweredLine) -> None:
        """One more line."""
        body = None if line.response is None else line.response.body
        error = line.error or (None if body is None else body.error)
        if error is not None:
            self._add_failed(line.custom_id, error)
            return
        self.answered += 1
        if body is None:
            return
        if body.usage is not None:
            self.prompt_lengths[body.usage.prompt_tokens] += 1
            self.output_lengths[body.usage.completion_tokens] += 1
        for choice in body.choices:
            self.finish_reasons[choice.finish_reason or "none"] += 1

    def _add_failed(self, custom_id: str | int | None, error: ErrorWords) -> None:
        code = _short(str(error.code or error.type or "without a code"), NAME_LETTERS)
        if code not in self.failed and len(self.failed) >= CODES_MOST:
            code = OTHER
        found = self.failed.setdefault(code, FailedLines())
        found.count += 1
        if len(found.examples) < EXAMPLES_MOST:
            named, said = "" if custom_id is None else str(custom_id), error.message or ""
            found.examples.append(FailedExample(_short(named, NAME_LETTERS), _short(said, MESSAGE_LETTERS)))

    @property
    def failed_lines(self) -> int:
        """Lines that failed."""
        return sum(found.count for found in self.failed.values())


def add_answers(tally: Tally, path: str | Path) -> None:
    """Add every whole line of an output or error file.

    `StorageError` if it cannot be read; `BatchError` names the first line that is no answer.
    """
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(AnsweredLine)
    try:
        with open_regular(path) as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    tally.add(decoder.decode(line))
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise BatchError(f"{path}, line {number}: not an answer of flexref batch: {error}") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
