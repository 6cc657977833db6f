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
from flexref.policy import Policy

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
    """Rows that generate, in order, R runs of equal neighbours: 40 bytes a run, and a row is made when it is asked for.

    `prompt_tokens`, `new_tokens`, `counts`: (R,) of every run, each from 1 on. `shared_tokens`, `prefixes`: (R,) what
    its rows share and with whom, as `RowLengths` has them. Two are equal that have equal rows.
    """

    prompt_tokens: Integers
    new_tokens: Integers
    counts: Integers
    shared_tokens: Integers
    prefixes: Integers

    @classmethod
    def of_runs(
        cls, prompt_tokens: Any, new_tokens: Any, counts: Any, shared_tokens: Any = None, prefixes: Any = None
    ) -> "CountedRows":
        """From lists or arrays (R,) of any runs; neighbours that are equal become one. R may not be 0."""
        prompts, new, many = (np.asarray(numbers, np.int64) for numbers in (prompt_tokens, new_tokens, counts))
        shared, prefix = (
            np.zeros_like(prompts) if numbers is None else np.asarray(numbers, np.int64)
            for numbers in (shared_tokens, prefixes)
        )
        kinds = prompts, new, shared, prefix
        changed = np.any([column[1:] != column[:-1] for column in kinds], axis=0)
        firsts = np.flatnonzero(np.concatenate([[True], changed]))
        return cls(prompts[firsts], new[firsts], np.add.reduceat(many, firsts), shared[firsts], prefix[firsts])

    @classmethod
    def of(cls, rows: Iterable[RowLengths]) -> "CountedRows":
        """From rows, of which none is scored."""
        runs = [
            (row.prompt_tokens, row.new_tokens, sum(1 for _ in some), row.shared_tokens, row.prefix)
            for row, some in groupby(rows)
        ]
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
        return self._row(run)

    def _row(self, run: int) -> RowLengths:
        return RowLengths(
            int(self.prompt_tokens[run]),
            int(self.new_tokens[run]),
            shared_tokens=int(self.shared_tokens[run]),
            prefix=int(self.prefixes[run]),
        )

    @property
    def alone(self) -> "CountedRows":
        """The same rows where they share nothing."""
        return CountedRows.of_runs(self.prompt_tokens, self.new_tokens, self.counts)

    @property
    def shared(self) -> bool:
        """Whether any rows share anything."""
        return bool(self.prefixes.any())

    def _between(self, first: int, last: int) -> Sequence[RowLengths]:
        """The rows from number `first` on, before number `last`."""
        if first >= last:
            return []
        begin, end = (int(np.searchsorted(self._ends, at, side="right")) for at in (first, last - 1))
        runs = slice(begin, end + 1)
        counts = self.counts[runs].copy()
        counts[-1] -= self._ends[end] - last
        counts[0] -= first - (self._ends[begin] - self.counts[begin])
        kinds = self.prompt_tokens[runs], self.new_tokens[runs]
        return CountedRows(*kinds, counts, self.shared_tokens[runs], self.prefixes[runs])

    def __iter__(self) -> Iterator[RowLengths]:
        for row, count in self.runs():
            yield from repeat(row, count)

    def runs(self) -> Iterator[tuple[RowLengths, int]]:
        """(row, how many of its kind follow each other), in order."""
        for first in range(0, len(self.counts), RUNS_AT_ONCE):
            some = slice(first, first + RUNS_AT_ONCE)
            columns = (column[some].tolist() for column in self._columns)
            for prompt, new, count, shared, prefix in zip(*columns, strict=True):
                yield RowLengths(prompt, new, 0, shared, prefix), count

    @property
    def _columns(self) -> tuple[Integers, ...]:
        return self.prompt_tokens, self.new_tokens, self.counts, self.shared_tokens, self.prefixes

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CountedRows):
            return NotImplemented
        return all(np.array_equal(one, other) for one, other in zip(self._columns, other._columns, strict=True))

    def __hash__(self) -> int:
        return hash((len(self), self.prompt_tokens.tobytes(), self.new_tokens.tobytes()))

    @cached_property
    def kinds(self) -> Counter[RowLengths]:
        """How many rows there are of each lengths, in the order in which they first come."""
        if self.shared:
            return self._shared_kinds()
        keys = (self.prompt_tokens << TOKENS_BITS) | self.new_tokens
        found, firsts, places = np.unique(keys, return_index=True, return_inverse=True)
        counts = np.zeros(len(found), np.int64)
        np.add.at(counts, places, self.counts)
        order = np.argsort(firsts)
        both = zip(found[order].tolist(), counts[order].tolist(), strict=True)
        below = (1 << TOKENS_BITS) - 1
        return Counter({RowLengths(key >> TOKENS_BITS, key & below): count for key, count in both})

    def _shared_kinds(self) -> Counter[RowLengths]:
        found = Counter[RowLengths]()
        for row, count in self.runs():
            found[row] += count
        return found

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


def rows_under(rows: JobRows, policy: Policy) -> JobRows:
    """The rows as they are under a policy, which may not let them share anything."""
    if policy.shares_prefixes:
        return rows
    if isinstance(rows, CountedRows):
        return rows.alone if rows.shared else rows
    if isinstance(rows, AlikeRows):
        return AlikeRows(rows.row.alone, rows.count)
    return [row.alone for row in rows] if any(row.prefix for row in rows) else rows
