"""Rows of a job in order, however many there are, as runs of equal ones; it knows no file and no token."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby, repeat
from typing import Annotated, Any, overload

import numpy as np
import numpy.typing as npt

from flexref.block.rows import AlikeRows, JobRows, RowLengths
from flexref.json_types.values import Number, Whole

Integers = npt.NDArray[np.int64]

RUNS_AT_ONCE = 1 << 12
"""Runs that are made Python numbers at a time, when all rows are walked over."""

TOKENS_BITS = 31
"""Bounds the tokens of a row: both its lengths are one 64-bit number where kinds are counted."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How a number of tokens lies over the rows of a job."""

    least: Annotated[int, Whole(1), "The fewest tokens of a row."]
    mean: Annotated[float, Number(1), "Tokens of a row on average."]
    most: Annotated[int, Whole(1), "The most tokens of a row."]
    total: Annotated[int, Whole(1), "Tokens of all rows together."]


@dataclass(frozen=True, slots=True)
class LengthsSummary:
    """What is said of a job whose rows differ in length."""

    rows: Annotated[int, Whole(1), "Rows in all."]
    kinds: Annotated[int, Whole(1), "How many different pairs of lengths the rows have."]
    prompt_tokens: Annotated[Spread, "Tokens of the prompts."]
    new_tokens: Annotated[Spread, "New tokens of the rows."]

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class CountedRows(Sequence[RowLengths]):
    """Rows that generate, in order, R runs of equal neighbours: 24 bytes a run, and a row is made when it is asked for.

    `prompt_tokens`, `new_tokens`, `counts`: (R,) of every run, each from 1 on. Two are equal that have equal rows.
    """

    prompt_tokens: Integers
    new_tokens: Integers
    counts: Integers

    @classmethod
    def of_runs(cls, prompt_tokens: Any, new_tokens: Any, counts: Any) -> "CountedRows":
        """From lists or arrays (R,) of any runs; neighbours that are equal become one. R may not be 0."""
        prompts, new, many = (np.asarray(numbers, np.int64) for numbers in (prompt_tokens, new_tokens, counts))
        changed = (prompts[1:] != prompts[:-1]) | (new[1:] != new[:-1])
        firsts = np.flatnonzero(np.concatenate([[True], changed]))
        return cls(prompts[firsts], new[firsts], np.add.reduceat(many, firsts))

    @classmethod
    def of(cls, rows: Iterable[RowLengths]) -> "CountedRows":
        """From rows, of which none is scored."""
        runs = [(row.prompt_tokens, row.new_tokens, sum(1 for _ in some)) for row, some in groupby(rows)]
        return cls.of_runs(*zip(*runs, strict=True))

    @cached_property
    def _ends(self) -> Integers:
        """(R,) how many rows there are up to the end of every run."""
        return np.cumsum(self.counts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, place: int) -> RowLengths: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[RowLengths]: ...

    def __getitem__(self, place: int | slice) -> RowLengths | Sequence[RowLengths]:
        """A row, or the rows of a slice."""
        if isinstance(place, slice):
            places = range(len(self))[place]
            return self._between(places.start, places.stop) if places.step == 1 else [self[at] for at in places]
        run = int(np.searchsorted(self._ends, range(len(self))[place], side="right"))
        return RowLengths(int(self.prompt_tokens[run]), int(self.new_tokens[run]))

    def _between(self, first: int, last: int) -> Sequence[RowLengths]:
        """The rows from number `first` on, before number `last`."""
        if first >= last:
            return []
        begin, end = (int(np.searchsorted(self._ends, at, side="right")) for at in (first, last - 1))
        runs = slice(begin, end + 1)
        counts = self.counts[runs].copy()
        counts[-1] -= self._ends[end] - last
        counts[0] -= first - (self._ends[begin] - self.counts[begin])
        return CountedRows(self.prompt_tokens[runs], self.new_tokens[runs], counts)

    def __iter__(self) -> Iterator[RowLengths]:
        for row, count in self.runs():
            yield from repeat(row, count)

    def runs(self) -> Iterator[tuple[RowLengths, int]]:
        """(row, how many of its kind follow each other), in order."""
        for first in range(0, len(self.counts), RUNS_AT_ONCE):
            some = slice(first, first + RUNS_AT_ONCE)
            columns = (column[some].tolist() for column in (self.prompt_tokens, self.new_tokens, self.counts))
            for prompt, new, count in zip(*columns, strict=True):
                yield RowLengths(prompt, new), count

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CountedRows):
            return NotImplemented
        mine, theirs = ((rows.prompt_tokens, rows.new_tokens, rows.counts) for rows in (self, other))
        return all(np.array_equal(one, another) for one, another in zip(mine, theirs, strict=True))

    def __hash__(self) -> int:
        return hash((len(self), self.prompt_tokens.tobytes(), self.new_tokens.tobytes()))

    @cached_property
    def kinds(self) -> Counter[RowLengths]:
        """How many rows there are of each lengths, in the order in which they first come."""
        keys = (self.prompt_tokens << TOKENS_BITS) | self.new_tokens
        found, firsts, places = np.unique(keys, return_index=True, return_inverse=True)
        counts = np.zeros(len(found), np.int64)
        np.add.at(counts, places, self.counts)
        order = np.argsort(firsts)
        both = zip(found[order].tolist(), counts[order].tolist(), strict=True)
        below = (1 << TOKENS_BITS) - 1
        return Counter({RowLengths(key >> TOKENS_BITS, key & below): count for key, count in both})

    @cached_property
    def summary(self) -> LengthsSummary:
        """The job in some numbers."""
        spreads = (self._spread(tokens) for tokens in (self.prompt_tokens, self.new_tokens))
        return LengthsSummary(len(self), len(self.kinds), *spreads)

    def _spread(self, tokens: Integers) -> Spread:
        # Not a product of arrays: a job may have more tokens than 64 bits can count.
        total = sum(each * count for each, count in zip(tokens.tolist(), self.counts.tolist(), strict=True))
        return Spread(int(tokens.min()), total / len(self), int(tokens.max()), total)


def kinds_of(rows: JobRows) -> Counter[RowLengths]:
    """How many rows there are of each lengths, in the order in which they first come."""
    if isinstance(rows, CountedRows):
        return rows.kinds
    return Counter({rows.row: rows.count}) if isinstance(rows, AlikeRows) else Counter(rows)
