"""One size of a curve, and its windows while it is timed; it times nothing itself."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from flexref.profile.record import is_unstable

Call = Callable[[], object]

AGAIN_MOST = 3
"""An unstable point is repeated up to 3 times as often as others, while there is time."""

SOON_S = 0.3
"""What takes an asynchronous device less is measured also when the time for it is over: from narrow matrices alone,
whose products are mostly start and end, nothing follows for wide ones."""

FEW_CALLS = 16
"""Calls of a point for which there is no time: few, but so many that marks between them do not count."""


@dataclass(frozen=True, slots=True)
class Point:
    """One size of a curve: its name in messages (`label`), the calls that take turns, and whether a call waits for its
    own end (`blocking`)."""

    size: float
    label: str
    calls: Sequence[Call]
    blocking: bool = False


@dataclass(slots=True)
class Timed:
    """A point while it is timed.

    `single_s`: about the seconds of one call; `count`: calls in a window; `repeats`: windows wanted; `issue_s`: seconds
    that the host needs to make the calls of a window; `recording`: these calls, where the port records them;
    `values`: the seconds of one call, from each window so far.
    """

    point: Point
    turns: Iterator[Call]
    single_s: float
    count: int
    repeats: int
    issue_s: float
    recording: Any = None
    values: list[float] = field(default_factory=list)

    @property
    def wants_more(self) -> bool:
        """Whether it needs another window: too few so far, or unstable and not repeated much more often yet."""
        count = len(self.values)
        return count < self.repeats or (count < AGAIN_MOST * self.repeats and is_unstable(self.values))
