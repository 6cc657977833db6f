"""A line of a job's input, and what becomes of it; it knows neither the file formats nor the engine."""

from dataclasses import dataclass

from xxhash import xxh3_64_intdigest


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the input as it stands there: its number, from 1 on, and its bytes without the end of the line.

    Blank lines have numbers too, and become nothing. `digest`: the XXH3-64 of a line that is longer than is read, of
    which `data` is only the beginning; None for all others. `duplicate_of`: the earlier line of the same custom_id.
    """

    number: int
    data: bytes
    digest: int | None = None
    duplicate_of: int | None = None

    @property
    def request_hash(self) -> int:
        """XXH3-64 of the whole line."""
        return xxh3_64_intdigest(self.data) if self.digest is None else self.digest

    @property
    def blank(self) -> bool:
        """Whether there is nothing but white space in it."""
        return self.digest is None and (not self.data or self.data.isspace())


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
