"""Which waiting row enters a block next, and where: looks a bounded way ahead; it knows no token and moves nothing.

The longest row enters first, so that none begins when all others end, and groups are filled with rows of like lengths.
Nobody waits for ever: at most `overtakes` later rows enter before a row that waits. When so many have, the oldest one
is next, and where it does not fit yet nobody enters until it does.
"""

import weakref
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from flexref.block.group import Group
from flexref.block.places import GroupPlaces, PrefixPlaces
from flexref.block.rows import Row, RowLengths
from flexref.tiers.cache_plan import GroupRoom

T = TypeVar("T")

WINDOWS = 4
"""So many times the rows of a block are looked at ahead."""

FIRST_WINDOWS = 64
"""So many windows of requests that cannot be served are passed over in the first look: a policy is chosen for the rows
that it has found."""


def longest_first(row: RowLengths) -> tuple[int, int]:
    """The order in which rows enter, if none has waited too long: those that generate most first, then long prompts."""
    return -row.new_tokens, -row.prompt_tokens


@dataclass(frozen=True, slots=True, eq=False)
class Arrived:
    """A row that waits, and how many had arrived before it."""

    row: Row
    number: int

    @property
    def key(self) -> tuple[int, int, int]:
        """In the order of it rows enter, if none has waited too long; of equal ones the first that came."""
        return *longest_first(self.row.lengths), self.number


class Waiting:
    """The rows that wait for a place: at most `window` at a time are taken from where they come from.

    With `in_order` they enter as they arrived. None is taken before `refill` is called.
    """

    def __init__(self, rows: Iterable[Row | None], window: int, *, in_order: bool = False) -> None:
        self.window, self.overtakes = window, 0 if in_order else window
        self._rows: Iterator[Row | None] | None = iter(rows)
        self._arrived = deque[Arrived]()
        self._longest_first = list[Arrived]()
        self._arrivals = self._entered = 0
        self._patience = FIRST_WINDOWS

    def refill(self) -> None:
        """Take more rows from where they come from, until the window is full. Raises what that raises, once.

        None in place of a row is one that cannot be served: at most a window of them are passed over at a time, at the
        first time `FIRST_WINDOWS`.
        """
        passed_over, most = 0, self._patience * self.window
        self._patience = 1
        while self._rows is not None and len(self._longest_first) < self.window and passed_over < most:
            rows, self._rows = self._rows, None  # an iterator that raised is not asked again
            for row in rows:
                self._rows = rows
                if row is None:
                    passed_over += 1
                else:
                    self._arrive(row)
                break

    def widen(self, window: int) -> None:
        """Look so many rows ahead from now on."""
        self.window = window
        self.overtakes = window if self.overtakes else 0

    def _arrive(self, row: Row) -> None:
        arrived = Arrived(row, self._arrivals)
        self._arrivals += 1
        self._arrived.append(arrived)
        insort(self._longest_first, arrived, key=lambda each: each.key)

    def __len__(self) -> int:
        return len(self._longest_first)

    @property
    def arrivals(self) -> int:
        """How many rows have been taken from where they come from so far."""
        return self._arrivals

    @property
    def rows(self) -> list[Row]:
        """The rows that are in the window, in the order of their arrival."""
        return [arrived.row for arrived in self._arrived]

    @property
    def come_to_an_end(self) -> bool:
        """Whether no row waits and none will come."""
        return self._rows is None and not self._longest_first

    def take(self, fits: Callable[[Row], bool]) -> Row | None:
        """The row that enters next, of those that fit; None if there is none, or one that does not fit goes first."""
        if not self._arrived:
            return None
        oldest = self._arrived[0]
        if self._entered - oldest.number >= self.overtakes:
            return self._take(oldest) if fits(oldest.row) else None
        for arrived in self._longest_first:
            if fits(arrived.row):
                return self._take(arrived)
        return None

    def drop(self, unwanted: Row) -> None:
        """The row waits no more; it counts as if it had entered."""
        for arrived in [arrived for arrived in self._arrived if arrived.row is unwanted]:
            self._take(arrived)

    def _take(self, arrived: Arrived) -> Row:
        self._entered += 1
        self._arrived.remove(arrived)
        self._longest_first.remove(arrived)
        return arrived.row


class Lender(Generic[T]):
    """Has an iterator, whose loan is at its end once this is dropped: whoever has the loan keeps nothing alive."""

    def __init__(self, values: Iterable[T]) -> None:
        self.values = iter(values)

    def loan(self) -> Iterator[T]:
        """The same values."""
        return _Loan(weakref.ref(self))


class _Loan(Iterator[T]):
    def __init__(self, lender: "weakref.ref[Lender[T]]") -> None:
        self._lender = lender

    def __next__(self) -> T:
        lender = self._lender()
        if lender is None:
            raise StopIteration
        return next(lender.values)


class Admission:
    """The places of a block's groups and of the prefixes that rows share, and who waits for them."""

    def __init__(self, rooms: Sequence[GroupRoom], waiting: Waiting, prefix_tokens: int = 0) -> None:
        self.waiting = waiting
        self.places = [GroupPlaces(room) for room in rooms]
        self.prefixes = PrefixPlaces(prefix_tokens)
        self.admitted = self.retired = self.spared_tokens = 0
        """Rows that came and left; tokens of prompts that are not read, since they are read for another row."""

    def renew(self, group: Group, *, closed: bool = False) -> None:
        """Rows of the group that ended leave it; waiting ones take their places, unless it is closed."""
        places = self.places[group.number]
        for row in group.leave():
            assert row.place is not None
            places.give_back(row.place)
            row.place = None
            if row.prefix is not None:
                self.prefixes.leave(row.prefix)
            self.retired += 1
        while entering := None if closed else self._next(places):
            if entering.prefix is not None:
                if self.prefixes.enter(entering.prefix, group.number):
                    group.reads.append(entering.prefix)
                else:
                    self.spared_tokens += len(entering.prefix.tokens)
            entering.place = places.take(entering.lengths.capacity_tokens)
            group.enter(entering)
            self.admitted += 1
        group.look()

    def _next(self, places: GroupPlaces) -> Row | None:
        longest = places.longest

        def fits(row: Row) -> bool:
            return row.capacity_tokens <= longest and self.prefixes.fits(row.prefix)

        return self.waiting.take(fits) if longest else None
