"""A mutant as a value: one place of one file, and what stands there instead; it knows no language."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple


class Change(NamedTuple):
    """Characters `start` to `end` of a text become `after`; `owner`: the function around them, "" if there is none.

    owner_line: where that function begins, counted from 1; 0 if there is none.
    """

    start: int
    end: int
    after: str
    kind: str
    owner: str
    owner_line: int


@dataclass(frozen=True, slots=True)
class Mutant:
    """A change of `file`, a path inside a port's package. `which`: of equal changes of equal lines the how manyth."""

    file: str
    line: int
    source: str
    """The line itself, stripped."""
    before: str
    after: str
    kind: str
    owner: str
    owner_line: int
    start: int
    which: int

    @property
    def key(self) -> str:
        """Names it as long as its line is the same, wherever that stands in the file."""
        which = f" #{self.which}" if self.which else ""
        return f"{self.file}: {self.source}: {self.before!r} -> {self.after!r}{which}"

    @property
    def place(self) -> str:
        """Where it is now."""
        return f"{self.file}:{self.line}"

    def applied(self, text: str) -> str:
        """The file's text with the change."""
        end = self.start + len(self.before)
        if text[self.start : end] != self.before:
            raise ValueError(f"{self.place} has no {self.before!r} at character {self.start}")
        return text[: self.start] + self.after + text[end:]


def mutants_of(file: str, text: str, changes: Iterable[Change]) -> Iterator[Mutant]:
    """The mutants of a file, from its first character to its last, each once."""
    seen, places = Counter[tuple[str, str, str]](), set[tuple[int, int, str]]()
    for change in sorted(changes, key=lambda change: (change.start, change.end, change.after)):
        start, end, after = change[:3]
        if (start, end, after) in places or text[start:end] == after:
            continue
        places.add((start, end, after))
        first = text.rfind("\n", 0, start) + 1
        last = text.find("\n", start)
        source = text[first : last if last >= 0 else len(text)].strip()
        alike = source, text[start:end], after
        line = text.count("\n", 0, start) + 1
        yield Mutant(file, line, *alike, change.kind, change.owner, change.owner_line, start, seen[alike])
        seen[alike] += 1
