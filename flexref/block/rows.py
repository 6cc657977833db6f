"""The rows of a block while they generate: what each has, what it still may, and when it retires."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from flexref.architecture.spec import POSITION_OFFSET
from flexref.tiers.cache import RowPass


@dataclass(frozen=True, slots=True)
class RowLengths:
    """One row of a job in numbers: the tokens of its prompt, those that it may generate, those that are scored instead.

    Where any are scored, `scored_tokens` of the prompt's last tokens have their next one scored, and no row generates.
    """

    prompt_tokens: int
    new_tokens: int
    scored_tokens: int = 0

    @property
    def capacity_tokens(self) -> int:
        """Tokens whose K and V are ever needed: all but the last one generated."""
        return self.prompt_tokens + self.new_tokens - 1


@dataclass(frozen=True, slots=True)
class AlikeRows:
    """`count` rows of the same lengths, without a list of them: a job may have billions."""

    row: RowLengths
    count: int

    def __len__(self) -> int:
        return self.count


JobRows = Sequence[RowLengths] | AlikeRows
"""The rows of a job in order."""


def counted(rows: JobRows) -> Counter[RowLengths]:
    """How many rows there are of each lengths, in the order in which they first come."""
    return Counter({rows.row: rows.count}) if isinstance(rows, AlikeRows) else Counter(rows)


def counted_blocks(rows: JobRows, size: int) -> Counter[tuple[RowLengths, ...]]:
    """How many blocks of `size` rows (the last may have fewer) there are of each kind, in order."""
    if isinstance(rows, AlikeRows):
        whole, rest = divmod(rows.count, size)
        kinds = ((min(size, rows.count), whole), (rest, 1))
        return Counter({(rows.row,) * length: count for length, count in kinds if length and count})
    return Counter(tuple(rows[first : first + size]) for first in range(0, len(rows), size))


@dataclass(slots=True)
class Row:
    """One prompt and what it has generated so far. `number` is its place in the input."""

    number: int
    prompt: tuple[int, ...]
    limit: int
    """New tokens that it may have at most."""
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    scored: int = 0
    """Of how many of the prompt's last tokens the next one is scored, where none is generated."""
    seen: int = 0
    """How many of its tokens the model has seen, the prompt's first: their K and V are in the cache."""

    @property
    def lengths(self) -> RowLengths:
        """The row in numbers, as long as it may become."""
        return RowLengths(len(self.prompt), self.limit, self.scored)

    @property
    def due(self) -> tuple[int, ...]:
        """The token ids that the next pass feeds: all that are known and have not been seen."""
        unseen_from = self.seen - len(self.prompt)
        return tuple(self.tokens[unseen_from:]) if unseen_from >= 0 else (*self.prompt[self.seen :], *self.tokens)

    @property
    def due_prompt_tokens(self) -> int:
        """How many of those are the prompt's."""
        return max(0, len(self.prompt) - self.seen)

    def in_pass(self, place: int) -> RowPass:
        """What the next pass has of this row, whose place in its group that is."""
        return RowPass(place, self.seen, len(self.prompt) + len(self.tokens) - self.seen)

    def push(self, token_id: int) -> None:
        """All that was due has been seen, and this token has been chosen to come next."""
        self.seen = len(self.prompt) + len(self.tokens)
        self.tokens.append(token_id)


@dataclass(frozen=True, slots=True)
class Fed:
    """Tokens that went through the model: of prompts, and of those that were generated."""

    prompt_tokens: int = 0
    generated_tokens: int = 0

    def __add__(self, other: "Fed") -> "Fed":
        return Fed(self.prompt_tokens + other.prompt_tokens, self.generated_tokens + other.generated_tokens)


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One new token of one row; `finish_reason` (`stop`, `length`) with its last one."""

    row: int
    token_id: int
    finish_reason: str | None


Judge = Callable[[Row], str | None]
"""Told of a row's newest token, says why the row is to stop, or None."""


class Group:
    """The rows that are computed together, and what the next pass feeds of those that are alive.

    `alive`: (place in the group, row) of those that go on. `in_pass`: what the next pass has of each of them.
    `tokens`: T of the next pass. All three are worked out once per pass, for every stage asks for them.
    """

    __slots__ = ("alive", "in_pass", "rows", "tokens")

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self._look()

    def _look(self) -> None:
        self.alive = [(place, row) for place, row in enumerate(self.rows) if row.finish_reason is None]
        self.in_pass = tuple(row.in_pass(place) for place, row in self.alive)
        self.tokens = sum(row.new for row in self.in_pass)

    def token_ids(self) -> npt.NDArray[np.int32]:
        """(T,) ids that the next pass feeds, row after row."""
        return np.array([token for _, row in self.alive for token in row.due], np.int32)

    def position_ids(self) -> npt.NDArray[np.int32]:
        """(T,) rows of the position table: OPT counts positions from 0 and stores them after an offset."""
        past = np.array([row.past for row in self.in_pass], np.int32)
        new = np.array([row.new for row in self.in_pass], np.int32)
        before = np.cumsum(new, dtype=np.int32) - new
        positions = np.repeat(past - before, new) + np.arange(self.tokens, dtype=np.int32)
        return (positions + POSITION_OFFSET).astype(np.int32)

    def last_tokens(self) -> npt.NDArray[np.int32]:
        """(B,) which of the T tokens is each row's last."""
        return (np.cumsum([row.new for row in self.in_pass]) - 1).astype(np.int32)

    def scored_tokens(self) -> npt.NDArray[np.int32]:
        """(N,) after which of the T tokens of a pass that feeds whole prompts the next one is scored."""
        ends = np.cumsum([row.new for row in self.in_pass])
        parts = [np.arange(end - row.scored, end) for end, (_, row) in zip(ends, self.alive, strict=True)]
        return np.concatenate(parts).astype(np.int32)

    def row_numbers(self) -> npt.NDArray[np.int64]:
        """(T,) whose each of the T tokens is, by the row's number in the input."""
        numbers = [row.number for _, row in self.alive]
        return np.repeat(np.array(numbers, np.int64), [row.new for row in self.in_pass])

    @property
    def fed(self) -> Fed:
        """What the next pass feeds."""
        of_prompts = sum(row.due_prompt_tokens for _, row in self.alive)
        return Fed(of_prompts, self.tokens - of_prompts)

    def accept(self, token_ids: npt.NDArray[np.int64], judge: Judge) -> list[TokenEvent]:
        """Give every live row its next token; rows that may have no more, or that `judge` stops, retire."""
        events = []
        for (_, row), token_id in zip(self.alive, token_ids.tolist(), strict=True):
            row.push(token_id)
            row.finish_reason = judge(row) or ("length" if len(row.tokens) >= row.limit else None)
            events.append(TokenEvent(row.number, token_id, row.finish_reason))
        self._look()
        return events

    def skip(self, tokens: int) -> None:
        """Let every live row have `tokens` more, whatever they are, as if it had gone through so many passes."""
        if tokens:
            for _, row in self.alive:
                for _ in range(tokens):
                    row.push(0)
            self._look()
