"""The rows of a block while they generate or are scored: what each has, what it still may, and what a pass feeds."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np
import numpy.typing as npt

from flexref.architecture.spec import POSITION_OFFSET
from flexref.sampling.settings import SamplingSettings
from flexref.tiers.cache_plan import GroupRoom, RowPass, RowPlace
from flexref.units import Tier


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


def each_of(rows: JobRows) -> Iterator[RowLengths]:
    """The rows one by one."""
    return repeat(rows.row, rows.count) if isinstance(rows, AlikeRows) else iter(rows)


@dataclass(slots=True, eq=False)
class Row:
    """One prompt and what it has generated so far. `number` is its place in the input.

    A row that begins again has `tokens` from the start. `limit`: how many it may have at most, with those.
    """

    number: int
    prompt: tuple[int, ...]
    limit: int
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    scored: int = 0
    """Of how many of the prompt's last tokens the next one is scored, where none is generated."""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    logprobs: int = 0
    """Of how many tokens the log-probabilities are kept where one is chosen; 0: of none."""
    seen: int = 0
    """How many of its tokens the model has seen, the prompt's first: their K and V are in the cache."""
    place: RowPlace | None = None
    """Where its cache lies, while it is in a block."""
    given_tokens: int = field(init=False)
    """How many tokens it began with: those are read, the others are generated."""

    def __post_init__(self) -> None:
        self.given_tokens = len(self.prompt) + len(self.tokens)

    @property
    def lengths(self) -> RowLengths:
        """The row in numbers, as long as it may become."""
        return RowLengths(len(self.prompt), self.limit, self.scored)

    @property
    def due_tokens(self) -> int:
        """How many of its tokens are known and have not been seen."""
        return len(self.prompt) + len(self.tokens) - self.seen

    def fed(self, new: int) -> tuple[int, ...]:
        """The ids of the next `new` of those."""
        known = len(self.prompt)
        if self.seen >= known:
            return tuple(self.tokens[self.seen - known : self.seen - known + new])
        from_prompt = self.prompt[self.seen : self.seen + new]
        return (*from_prompt, *self.tokens[: new - len(from_prompt)])

    @property
    def is_reading(self) -> bool:
        """Whether the next pass feeds what was given, and not a token that it generated."""
        return self.seen < self.given_tokens

    def push(self, token_id: int) -> None:
        """All that was due has been seen, and this token has been chosen to come next."""
        self.seen = len(self.prompt) + len(self.tokens)
        self.tokens.append(token_id)


@dataclass(frozen=True, slots=True)
class Fed:
    """What a pass had: rows, tokens that they began with, and tokens that they generated after that."""

    rows: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0

    def __add__(self, other: "Fed") -> "Fed":
        return Fed(
            self.rows + other.rows,
            self.prompt_tokens + other.prompt_tokens,
            self.generated_tokens + other.generated_tokens,
        )


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One new token of one row; `finish_reason` (`stop`, `length`) with its last one."""

    row: int
    token_id: int
    finish_reason: str | None


Judge = Callable[[Row], str | None]
"""Told of a row's newest token, says why the row is to stop, or None."""


class Group:
    """The rows that are computed together, and what the next pass feeds of them.

    `fed`: the rows of which the next pass feeds something, in the order of the operators. `in_pass`: what it has of
    each of them. `tokens`: T of the next pass. `ready`: which of `fed` have nothing due after it, and so get their next
    token. All of them are worked out once per pass, since every stage asks for them.
    """

    __slots__ = ("_chunk", "_in_order", "_room", "fed", "in_pass", "ready", "rows", "tokens")

    def __init__(self, room: GroupRoom, in_order: Callable[[Sequence[RowPass]], list[int]], chunk: int | None) -> None:
        """`in_order`: in which order rows go through the operators. Of a row a pass reads `chunk` tokens at most."""
        self._room, self._in_order, self._chunk = room, in_order, chunk
        self.rows: list[Row] = []
        self.look()

    def enter(self, row: Row) -> None:
        """The row is in the group from the next pass on."""
        self.rows.append(row)

    def leave(self) -> list[Row]:
        """The rows that have ended, which are in the group no more."""
        ended = [row for row in self.rows if row.finish_reason is not None]
        if ended:
            self.rows = [row for row in self.rows if row.finish_reason is None]
        return ended

    def look(self) -> None:
        """Work out what the next pass feeds: one token of every row that generates, and then, in the order in which
        they entered, as much of those that read as there is room for.
        """
        left = dict(self._room.new_tokens)
        new = dict[int, int]()
        for number, row in enumerate(self.rows):
            if row.due_tokens == 1:
                new[number] = 1
                left[home_of(row)] -= 1
        for number, row in enumerate(self.rows):
            if row.due_tokens > 1:
                most = min(row.due_tokens, left[home_of(row)])
                new[number] = most if self._chunk is None else min(most, self._chunk)
                left[home_of(row)] -= new[number]
        fed = [(self.rows[number], count) for number, count in sorted(new.items()) if count > 0]
        in_pass = [RowPass(row.place, row.seen, count) for row, count in fed]  # type: ignore[arg-type]
        order = self._in_order(in_pass)
        self.fed = [fed[number][0] for number in order]
        self.in_pass = tuple(in_pass[number] for number in order)
        self.tokens = sum(row.new for row in self.in_pass)
        self.ready = [
            number
            for number, (row, of_row) in enumerate(zip(self.fed, self.in_pass, strict=True))
            if row.due_tokens == of_row.new
        ]

    def token_ids(self) -> npt.NDArray[np.int32]:
        """(T,) ids that the next pass feeds, row after row."""
        parts = zip(self.fed, self.in_pass, strict=True)
        return np.array([token for row, of_row in parts for token in row.fed(of_row.new)], np.int32)

    def position_ids(self) -> npt.NDArray[np.int32]:
        """(T,) rows of the position table: OPT counts positions from 0 and stores them after an offset."""
        past = np.array([row.past for row in self.in_pass], np.int32)
        new = np.array([row.new for row in self.in_pass], np.int32)
        before = np.cumsum(new, dtype=np.int32) - new
        positions = np.repeat(past - before, new) + np.arange(self.tokens, dtype=np.int32)
        return (positions + POSITION_OFFSET).astype(np.int32)

    def last_tokens(self) -> npt.NDArray[np.int32]:
        """(B,) which of the T tokens is the last of each row that is ready."""
        return (np.cumsum([row.new for row in self.in_pass]) - 1).astype(np.int32)[self.ready]

    def scored_tokens(self) -> npt.NDArray[np.int32]:
        """(N,) after which of the T tokens of a pass that feeds whole prompts the next one is scored."""
        ends = np.cumsum([row.new for row in self.in_pass])
        parts = [np.arange(end - row.scored, end) for end, row in zip(ends, self.fed, strict=True)]
        return np.concatenate(parts).astype(np.int32)

    def row_numbers(self) -> npt.NDArray[np.int64]:
        """(T,) whose each of the T tokens is, by the row's number in the input."""
        numbers = [row.number for row in self.fed]
        return np.repeat(np.array(numbers, np.int64), [row.new for row in self.in_pass])

    @property
    def fed_in_pass(self) -> Fed:
        """What the next pass has."""
        read = sum(of_row.new for row, of_row in zip(self.fed, self.in_pass, strict=True) if row.is_reading)
        return Fed(len(self.rows), read, self.tokens - read)

    @property
    def ready_rows(self) -> list[Row]:
        """The rows that get their next token from the pass."""
        return [self.fed[number] for number in self.ready]

    def accept(self, token_ids: Sequence[int], judge: Judge) -> list[TokenEvent]:
        """The pass is over: give every row that is ready its next token; rows that may have no more, or that `judge`
        stops, have ended. What the others' caches hold is noted.
        """
        ready = set(self.ready)
        for number, (row, of_row) in enumerate(zip(self.fed, self.in_pass, strict=True)):
            if number not in ready:
                row.seen += of_row.new
        events = []
        for row, token_id in zip(self.ready_rows, token_ids, strict=True):
            row.push(token_id)
            row.finish_reason = row.finish_reason or judge(row) or ("length" if len(row.tokens) >= row.limit else None)
            events.append(TokenEvent(row.number, token_id, row.finish_reason))
        return events

    def lasts_longer(self) -> bool:
        """Whether some row may need another pass after the next one."""
        ready = {id(row) for row in self.ready_rows}
        return any(id(row) not in ready or len(row.tokens) + 1 < row.limit for row in self.rows)


def home_of(row: Row) -> Tier:
    """The tier of the row's cache, while it is in a block."""
    assert row.place is not None
    return row.place.home
