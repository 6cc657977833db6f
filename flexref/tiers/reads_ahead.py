"""Asks a disk for what its lane reads next while it waits for what it reads now; it knows bytes, not what they are.

A lane works in order, one thing after another, and so a disk would be idle between the last bytes of one read and the
first request of the next. Here the reads that were submitted are known in their order. As soon as what one of them
waits for is done its place may be written to, and its first chunks are asked for before its turn.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from flexref.backend.protocol import Ticket
from flexref.errors import FlexrefError
from flexref.tiers.disk import ASKED, RangeAhead
from flexref.tiers.transfer import Bytes, Copy, DiskFile, Transfer
from flexref.units import Tier


@runtime_checkable
class FileAhead(DiskFile, Protocol):
    """A file of which a range may be asked for before it is read."""

    def ask_ahead(self, offset: int, into: Bytes) -> RangeAhead | None:
        """What `read` of the same range into the same memory will take, chunk by chunk; None: it can only be read.

        Whoever calls this ends it, whether it was read or not.
        """


@dataclass(eq=False, slots=True)
class _Expected:
    """A read in the order of its lane. `after`: what must be done before its memory may be written to."""

    copy: Copy
    after: Sequence[Ticket]
    asked: RangeAhead | None = None

    def may_begin(self) -> bool:
        """Whether all of `after` is done, and nothing of it has failed: else the lane will not come to it."""
        if not all(ticket.done() for ticket in self.after):
            return False
        try:
            for ticket in self.after:
                ticket.wait()
        except Exception:  # whoever waits for the lane is told
            return False
        return True


class ReadsAhead:
    """The reads of one lane that are still to come. One thread submits them, the lane's thread takes them."""

    def __init__(self, memory: Callable[[Copy], Bytes]) -> None:
        """`memory` gives a copy's target."""
        self._memory = memory
        self._expected: deque[_Expected] = deque()
        self._lock = threading.Lock()
        self._in_vain = False
        self._unread: list[tuple[Copy, int]] = []

    def expect(self, copies: Sequence[Transfer], after: Sequence[Ticket]) -> None:
        """The lane is about to be given `copies`, which start when `after` is done."""
        reads = [_Expected(copy, after) for copy in copies if _may_be_asked_for(copy)]  # type: ignore[arg-type]
        with self._lock:
            self._expected.extend(reads)

    @contextmanager
    def turn(self, copy: Copy) -> Iterator[bool]:
        """The lane reads `copy` now; False: nobody wants it any more, so it must not. Later ones are asked for beside
        it.
        """
        expected = self._taken(copy)
        if expected is None:
            yield True
            return
        wanted = not self._in_vain
        try:
            if wanted:
                self._begin(expected)
                if expected.asked is not None:
                    expected.asked.onward = lambda: self._fill(expected)
                self._fill(expected)
            yield wanted
        finally:
            if wanted:
                _end(expected)
            else:
                self._leave(expected)

    @property
    def are_expected(self) -> bool:
        """Whether there are reads that have not had their turn."""
        return bool(self._expected)

    @property
    def has_unread(self) -> bool:
        """Whether `take_unread` has any to give."""
        return bool(self._unread)

    def give_up(self) -> None:
        """From now on all that has not had its turn is in vain, until `end`."""
        self._in_vain = True

    def end(self) -> None:
        """The lane is at rest: nobody writes to any memory any more, and nothing is expected."""
        with self._lock:
            left, self._expected = self._expected, deque()
        for expected in left:
            self._leave(expected)
        self._in_vain = False

    def take_unread(self) -> list[tuple[Copy, int]]:
        """The copies since the last call that were not read after all, and how many bytes of each had come by then."""
        with self._lock:
            found, self._unread = self._unread, []
        return found

    def _leave(self, expected: _Expected) -> None:
        """It is not read: nobody writes to its memory any more."""
        _end(expected)
        came = 0 if expected.asked is None else expected.asked.came_bytes
        with self._lock:
            self._unread.append((expected.copy, came))

    def _taken(self, copy: Copy) -> _Expected | None:
        """What was expected of a copy. Those before it never had their turn: what they waited for has failed."""
        with self._lock:
            if not any(expected.copy is copy for expected in self._expected):
                return None
            passed = []
            while (expected := self._expected.popleft()).copy is not copy:
                passed.append(expected)
        for each in passed:
            self._leave(each)
        return expected

    def _fill(self, now: _Expected) -> None:
        """Ask for chunks of the reads in order until enough are under way, or one may not begin."""
        with self._lock:
            following = list(self._expected)
        room = ASKED - sum(each.asked.in_flight for each in (now, *following) if each.asked is not None)
        for each in (now, *following):
            if room <= 0 or self._in_vain:
                return
            if each is not now and each.asked is None and not (each.may_begin() and self._begin(each)):
                return
            while room > 0 and each.asked is not None and each.asked.ask():
                room -= 1

    def _begin(self, expected: _Expected) -> bool:
        """Whether chunks of the read can be asked for; if not, its own turn shows why."""
        if expected.asked is None:
            place, offset = expected.copy.source.place, expected.copy.source.offset
            assert isinstance(place, FileAhead)
            try:
                expected.asked = place.ask_ahead(offset, self._memory(expected.copy))
            except FlexrefError:
                return False
        return expected.asked is not None


def _may_be_asked_for(copy: Transfer) -> bool:
    """Whether it is a read in one piece of a file that can be asked early."""
    return (
        isinstance(copy, Copy)
        and copy.source.tier is Tier.DISK
        and copy.pieces.count == 1
        and isinstance(copy.source.place, FileAhead)
    )


def _end(expected: _Expected) -> None:
    if expected.asked is not None:
        expected.asked.end()
