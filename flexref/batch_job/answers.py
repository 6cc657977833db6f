"""A line of a job's input, and what becomes of it; it knows neither the file formats nor the engine."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the input as it stands there: its number, from 1 on, and its bytes without the line feed.

    Blank lines have numbers too, and become nothing.
    """

    number: int
    data: bytes


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """What becomes of one line: a JSON object in UTF-8 without a line feed, for the output or, if `failed`, the errors.

    `request_hash` is the XXH3-64 of the line's bytes. Two answers of one line are equal, byte for byte.
    """

    number: int
    custom_id: str | None
    request_hash: int
    failed: bool
    data: bytes
    prompt_tokens: int = 0
    generated_tokens: int = 0
