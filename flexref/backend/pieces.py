"""How much is done in one call: arrays in pieces of a bounded size, rows that are alike together; it knows no array."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

Segments = Sequence[tuple[int, int, int]]
"""(first new token, token after the last, tokens in the cache before) of every row of a pass."""

Place = tuple[int, int] | None
"""Memory by its number, and an offset in bytes; None for what lies in several pieces."""


def pieces(shape: Sequence[int], most: int, least: int = 1) -> Iterator[slice]:
    """Cut rows, shape (rows, width), into slices of as many multiples of `least` rows as `most` elements hold."""
    step = max(least, most // max(1, shape[1]) // least * least)
    return (slice(first, min(first + step, shape[0])) for first in range(0, shape[0], step))


class HostSegments:
    """The part of `Backend` that is about lengths, for a port that reads them on the host."""

    def segments(self, past: Sequence[int], new: Sequence[int]) -> Segments:
        """See `Backend.segments`."""
        return [(end - count, end, before) for end, count, before in zip(accumulate(new), new, past, strict=True)]


@dataclass(frozen=True, slots=True)
class EvenRun:
    """`count` rows from number `row` on that are alike, each `gap` bytes after the one before it.

    Their new tokens are those from `first` to before `last`, equally many of each; `past`: each one's tokens before.
    """

    row: int
    count: int
    gap: int
    first: int
    last: int
    past: int

    @property
    def new(self) -> int:
        """New tokens of each."""
        return (self.last - self.first) // self.count

    def cut(self, most: int) -> "Iterator[EvenRun]":
        """The run itself; a single row of more than `most` new tokens in parts, which count those before as `past`."""
        if self.count > 1:
            yield self
            return
        for some in pieces((self.new, 1), max(1, most)):
            first = self.first + some.start
            yield EvenRun(self.row, 1, 0, first, self.first + some.stop, self.past + some.start)


def even_runs(segments: Segments, places: Sequence[Place], most: int, alignment_bytes: int = 1) -> Iterator[EvenRun]:
    """All rows in order, in as few runs of rows that are alike as there are.

    Such rows lie at equal, aligned distances in one memory, have equal lengths, and at most `most` new tokens together.
    Any row may be a run of its own, with gap 0.
    """
    row = gap = 0
    for end in range(1, len(segments) + 1):
        first, stop, past = segments[row]
        if end < len(segments):
            begin, last, before = segments[end]
            step, alike = _step(places[end - 1], places[end]), (last - begin, before) == (stop - first, past)
            if alike and last - first <= most and step > 0 and step % alignment_bytes == 0 and gap in (0, step):
                gap = step
                continue
        yield EvenRun(row, end - row, gap, first, segments[end - 1][1], past)
        row, gap = end, 0


def _step(place: Place, next_place: Place) -> int:
    """Bytes from one place to another in the same memory; 0 if there is no such way."""
    if place is None or next_place is None or place[0] != next_place[0]:
        return 0
    return next_place[1] - place[1]
