"""The rows of one group while they are in a block, and what the next pass feeds of them; it moves nothing."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flexref.architecture.spec import POSITION_OFFSET
from flexref.block.rows import Fed, Judge, Row, SharedPrefix, TokenEvent
from flexref.tiers.cache_plan import GroupRoom, RowPass
from flexref.units import Tier


@dataclass(frozen=True, slots=True)
class FedRows:
    """What operators must know of a pass of a group, under the names that it has in `Group`.

    ids: (3 T,) `whole_pass`, but for its tokens.
    """

    in_pass: Sequence[RowPass]
    tokens: int
    ready: Sequence[int]
    ids: npt.NDArray[np.int32]


class Group:
    """The rows that are computed together, and what the next pass feeds of them.

    `fed`: the rows of which the next pass feeds something, in the order of the operators. `in_pass`: what it has of
    each of them. `tokens`: T of the next pass. `ready`: which of `fed` have nothing due after it, and so get their next
    token. All of them are worked out once per pass, since every stage asks for them.
    """

    __slots__ = (
        "_chunk",
        "_foreseen",
        "_ids",
        "_in_order",
        "_pass",
        "_room",
        "fed",
        "in_pass",
        "number",
        "reads",
        "ready",
        "rows",
        "tokens",
    )

    def __init__(
        self, number: int, room: GroupRoom, in_order: Callable[[Sequence[RowPass]], list[int]], chunk: int | None
    ) -> None:
        """`in_order`: in which order rows go through the operators. Of a row a pass reads `chunk` tokens at most."""
        self.number, self._room, self._in_order, self._chunk = number, room, in_order, chunk
        self.rows: list[Row] = []
        self.reads: list[SharedPrefix] = []
        """Prefixes that are not read to their end yet."""
        self._pass = -1
        self._foreseen: FedRows | None = None
        """The pass after the next one as it was foreseen, while no row has come and none has gone."""
        self._ids: npt.NDArray[np.int32] | None = None
        """Of a pass that was foreseen: `whole_pass`, but for its tokens."""

    def enter(self, row: Row) -> None:
        """The row is in the group from the next pass on."""
        self.rows.append(row)
        self._foreseen = None

    def leave(self) -> list[Row]:
        """The rows that have ended, which are in the group no more."""
        ended = [row for row in self.rows if row.finish_reason is not None]
        if ended:
            self.rows = [row for row in self.rows if row.finish_reason is None]
            self._foreseen = None
        return ended

    def look(self) -> None:
        """Work out what the next pass feeds: one token of every row that generates, and then, in the order in which
        they entered, as much of those that read as there is room for. Prefixes that rows share come first.
        """
        self._pass += 1
        self._ids = None
        if self._foreseen is not None:
            comes, self._foreseen = self._foreseen, None
            self.in_pass, self.tokens, self.ready, self._ids = comes.in_pass, comes.tokens, comes.ready, comes.ids
            return
        fed = list(self._look_at_prefixes())
        left, new = self._tokens_of_parts(), dict[int, int]()
        away_left = self._room.in_place.away_tokens
        for number, row in enumerate(self.rows):
            if row.due_tokens == 1 and self._may_go_on(row):
                new[number] = 1
                left[part_of(row)] -= 1
                away_left -= _is_away(row)
        for number, row in enumerate(self.rows):
            if row.due_tokens > 1 and self._may_go_on(row):
                room = left[part_of(row)]
                if _is_away(row):
                    room = min(room, away_left)
                    away_left -= self._piece(row, room)
                new[number] = self._piece(row, room)
                left[part_of(row)] -= new[number]
        fed += [(self.rows[number], count) for number, count in sorted(new.items()) if count > 0]
        in_pass = [row.in_pass(count) for row, count in fed]
        order = self._in_order(in_pass)
        self.fed = [fed[number][0] for number in order]
        self.in_pass = tuple(in_pass[number] for number in order)
        self.tokens = sum(row.new for row in self.in_pass)
        self.ready = [
            number
            for number, (row, of_row) in enumerate(zip(self.fed, self.in_pass, strict=True))
            if row.due_tokens == of_row.new and not of_row.place.shared
        ]

    def _tokens_of_parts(self) -> dict[tuple[Tier, bool], int]:
        """Tokens that a pass feeds of rows on each tier, of which attention runs on the host or not."""
        room = self._room
        within = room.in_place.new_tokens
        apart = {(tier, False): room.new_tokens[tier] - within[tier] for tier in Tier}
        return {**apart, **{(tier, True): within[tier] for tier in Tier}}

    def _look_at_prefixes(self) -> Iterator[tuple[Row, int]]:
        """(reader, tokens) of the prefixes that the next pass reads."""
        left = self._room.prefix_tokens
        # One whose last user was taken out before it was read is in the block no more, or another group reads it.
        mine = [prefix for prefix in dict.fromkeys(self.reads) if prefix.reader and prefix.group == self.number]
        self.reads = mine
        for prefix in mine:
            assert prefix.reader is not None
            count = self._piece(prefix.reader, left)
            left -= count
            if count == prefix.reader.due_tokens:
                prefix.read_in = self._pass
            if count:
                yield prefix.reader, count

    def _piece(self, row: Row, left: int) -> int:
        """How many tokens of a row that reads are fed, where there is room for `left`."""
        most = min(row.due_tokens, left)
        return most if self._chunk is None else min(most, self._chunk)

    def _may_go_on(self, row: Row) -> bool:
        return row.prefix is None or row.prefix.is_read(self._pass, self.number)

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

    def whole_pass(self) -> npt.NDArray[np.int32]:
        """(3 T,) of a pass that decodes, one after the other: `token_ids`, `position_ids`, `last_tokens`."""
        if self._ids is None:
            return np.concatenate((self.token_ids(), self.position_ids(), self.last_tokens()))
        self._ids[: self.tokens] = [row.tokens[-1] for row in self.fed]
        return self._ids

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
    def decodes(self) -> bool:
        """Whether the next pass feeds one token of every row in it, after which each of them gets its next one."""
        return self.tokens == len(self.fed) == len(self.ready)

    def foresee(self) -> FedRows | None:
        """The pass after the next one, if no row comes or ends: one token of each row.

        If it comes so, `look` has no more to work out. Called before the next pass is over. None if a row ends for
        sure, does not get a token from the next pass, or may come elsewhere in the order.
        """
        self._foreseen = None
        goes_on = all(len(row.tokens) + 1 < row.limit for row in self.rows)
        if self.reads or not goes_on or not len(self.rows) == len(self.fed) == len(self.ready):
            return None
        if any(row.place.in_place for row in self.in_pass):
            return None
        past = [row.past + row.new for row in self.in_pass]
        rows = tuple(RowPass(row.place, own, 1, row.prefix) for row, own in zip(self.in_pass, past, strict=True))
        ids = np.array([0] * len(past) + [each + POSITION_OFFSET for each in past] + [*range(len(past))], np.int32)
        self._foreseen = FedRows(rows, len(rows), range(len(rows)), ids)
        return self._foreseen

    @property
    def fed_in_pass(self) -> Fed:
        """What the next pass has."""
        read = sum(of_row.new for row, of_row in zip(self.fed, self.in_pass, strict=True) if row.is_reading)
        spared = sum(
            row.prefix.capacity_tokens
            for row in self.in_pass
            if row.prefix is not None and row.own_past and row.place.home is not Tier.DEVICE
        )
        return Fed(len(self.rows), read, self.tokens - read, spared)

    @property
    def ready_rows(self) -> list[Row]:
        """The rows that get their next token from the pass."""
        return [self.fed[number] for number in self.ready]

    def accept(self, token_ids: Sequence[int], judge: Judge) -> list[TokenEvent]:
        """The pass is over: give every row that is ready its next token; rows that may have no more, or that `judge`
        stops, have ended. What the others' caches hold is noted.
        """
        ready_rows = self.ready_rows
        self.advance()
        events = []
        for row, token_id in zip(ready_rows, token_ids, strict=True):
            row.push(token_id)
            row.finish_reason = row.finish_reason or judge(row) or ("length" if len(row.tokens) >= row.limit else None)
            events.append(TokenEvent(row.number, token_id, row.finish_reason))
        return events

    def advance(self) -> None:
        """The pass is over: note what is in the caches of the rows that have not read everything yet."""
        if len(self.ready) < len(self.fed):
            ready = set(self.ready)
            for number, (row, of_row) in enumerate(zip(self.fed, self.in_pass, strict=True)):
                if number not in ready:
                    row.seen += of_row.new
        self.reads = [prefix for prefix in self.reads if prefix.reader is not None and prefix.reader.due_tokens]

    def lasts_longer(self) -> bool:
        """Whether some row may need another pass after the next one."""
        ready = {id(row) for row in self.ready_rows}
        return any(id(row) not in ready or len(row.tokens) + 1 < row.limit for row in self.rows)


def part_of(row: Row) -> tuple[Tier, bool]:
    """The tier of the row's cache, while it is in a block, and whether it is to be read in place on the host."""
    assert row.place is not None
    return row.place.home, row.place.in_place


def _is_away(row: Row) -> bool:
    """Whether attention for the row runs on the host: in place, of a cache that holds tokens."""
    return row.seen > 0 and part_of(row)[1]
