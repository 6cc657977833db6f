"""Rows in numbers, and rows while they generate or are scored: what each has, and what it still may."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat

from flexref.sampling.settings import SamplingSettings
from flexref.tiers.cache_plan import RowPass, RowPlace


@dataclass(frozen=True, slots=True)
class RowLengths:
    """One row of a job in numbers: the tokens of its prompt, those that it may generate, those that are scored instead.

    Where any are scored, `scored_tokens` of the prompt's last tokens have their next one scored, and no row generates.
    Its first `shared_tokens` are those of the job's prefix number `prefix`, from 1 on, which other rows begin with too.
    """

    prompt_tokens: int
    new_tokens: int
    scored_tokens: int = 0
    shared_tokens: int = 0
    prefix: int = 0

    @property
    def own_tokens(self) -> int:
        """Tokens of the prompt that no other row shares."""
        return self.prompt_tokens - self.shared_tokens

    @property
    def alone(self) -> "RowLengths":
        """The same row where it shares nothing."""
        return RowLengths(self.prompt_tokens, self.new_tokens, self.scored_tokens)

    @property
    def capacity_tokens(self) -> int:
        """Tokens whose K and V it needs ever and for itself: all but the last one generated."""
        return self.own_tokens + self.new_tokens - 1


@dataclass(frozen=True, slots=True)
class AlikeRows:
    """`count` rows of the same lengths, without a list of them: a job may have billions."""

    row: RowLengths
    count: int

    def __len__(self) -> int:
        return self.count


JobRows = Sequence[RowLengths] | AlikeRows
"""The rows of a job in order."""


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
    may_stop: bool = False
    """Whether something else than its limit may end it."""
    logprobs: int = 0
    """Of how many tokens the log-probabilities are kept where one is chosen; 0: of none."""
    seen: int = 0
    """How many of its tokens the model has seen, the prompt's first: their K and V are in the cache."""
    place: RowPlace | None = None
    """Where its cache lies, while it is in a block."""
    prefix: "SharedPrefix | None" = None
    """What it shares with others: see `share`."""
    given_tokens: int = field(init=False)
    """How many tokens it began with: those are read, the others are generated."""
    draw_number: int = field(init=False)
    """With the seed and the number of its tokens it decides what is drawn."""

    def __post_init__(self) -> None:
        self.draw_number = self.number
        self.given_tokens = len(self.prompt) + len(self.tokens)

    @property
    def lengths(self) -> RowLengths:
        """The row in numbers, as long as it may become."""
        if self.prefix is None:
            return RowLengths(len(self.prompt), self.limit, self.scored)
        return RowLengths(len(self.prompt), self.limit, self.scored, len(self.prefix.tokens), self.prefix.number)

    @property
    def capacity_tokens(self) -> int:
        """As that of its `lengths`, which is asked of every row that waits."""
        shared = 0 if self.prefix is None else len(self.prefix.tokens)
        return len(self.prompt) - shared + self.limit - 1

    def share(self, prefix: "SharedPrefix | None") -> None:
        """Its first tokens are the prefix's, or all of them its own; it is in no block yet."""
        self.prefix = prefix
        self.seen = 0 if prefix is None else len(prefix.tokens)

    def in_pass(self, new: int) -> RowPass:
        """What a pass has of it that feeds so many tokens."""
        assert self.place is not None
        return RowPass(self.place, self.seen, new, None if self.prefix is None else self.prefix.place)

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


@dataclass(eq=False)
class SharedPrefix:
    """Tokens that several rows begin with, in whole chunks of attention: read once, and kept once while rows use them.

    number: from 1 on. reader: the row that reads it, while it is in a block; `users` rows there begin with it.
    group: in whose visits it is read. read_in: the pass that reads the last of it, once that is known.
    """

    number: int
    tokens: tuple[int, ...]
    reader: Row | None = None
    users: int = 0
    group: int = 0
    read_in: int | None = None

    @property
    def place(self) -> RowPlace | None:
        """Where its records lie, while it is in a block."""
        return None if self.reader is None else self.reader.place

    def begin(self, place: RowPlace, group: int) -> None:
        """It is in a block, and the group reads it."""
        self.reader, self.group, self.read_in = Row(-self.number, self.tokens, 1, place=place), group, None

    def end(self) -> RowPlace:
        """It is in a block no more; what it had for a place."""
        place = self.place
        assert place is not None
        self.reader = self.read_in = None
        return place

    def is_read(self, pass_number: int, group: int) -> bool:
        """Whether rows of that group may go on from it in that pass: then, or before, all of it is read before them."""
        if self.read_in is None or self.read_in > pass_number:
            return False
        return self.read_in < pass_number or self.group <= group


@dataclass(frozen=True, slots=True)
class Fed:
    """What a pass had: rows, tokens that they began with, and tokens that they generated after that.

    spared_tokens: of rows off the device, past tokens whose records did not cross a link since they are shared.
    """

    rows: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    spared_tokens: int = 0

    def __add__(self, other: "Fed") -> "Fed":
        return Fed(
            self.rows + other.rows,
            self.prompt_tokens + other.prompt_tokens,
            self.generated_tokens + other.generated_tokens,
            self.spared_tokens + other.spared_tokens,
        )


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One new token of one row; `finish_reason` (`stop`, `length`) with its last one."""

    row: int
    token_id: int
    finish_reason: str | None


Judge = Callable[[Row], str | None]
"""Told of a row's newest token, says why the row is to stop, or None."""
