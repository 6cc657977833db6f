"""Which lines of the input a shard of a job works on; it knows no file."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from flexref.errors import BatchError

CHUNK_LINES = 1000
"""Lines of a chunk, if nobody says otherwise: so many that a block is filled many times over, and so few that the
shards of a job end at about the same time."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Number `index` of `count`, from 0 on: it has the chunks number `index`, `index + count` and so on of the input.

    Raises `BatchError` for a shard that there is not.
    """

    index: int = 0
    count: int = 1
    chunk_lines: int = CHUNK_LINES

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise BatchError(f"shard {self.index} of {self.count}: shards are numbered from 0 to {self.count - 1}")
        if self.chunk_lines < 1:
            raise BatchError(f"a chunk must have at least 1 line, found {self.chunk_lines}")

    @property
    def in_words(self) -> str | None:
        """As a journal has it (`of_words`); None for the only one."""
        if self.count == 1:
            return None
        return f"{self.index}/{self.count} in chunks of {self.chunk_lines} lines"

    @classmethod
    def of_words(cls, words: str | None) -> "Shard":
        """What `in_words` gave. Raises `BatchError`."""
        if words is None:
            return cls()
        match = re.fullmatch(r"(\d+)/(\d+) in chunks of (\d+) lines", words)
        if match is None:
            raise BatchError(f"{words!r} is no shard that this flexref knows")
        return cls(*map(int, match.groups()))

    def numbers(self, lines: int) -> Iterator[int]:
        """Its own lines of an input of so many, in order."""
        for first in range(self.index * self.chunk_lines, lines, self.count * self.chunk_lines):
            yield from range(first + 1, min(first + self.chunk_lines, lines) + 1)


WHOLE = Shard()
"""Of a job that one process works on."""
