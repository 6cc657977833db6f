"""Divides the seconds that a profile may take among what is still to be measured; it measures nothing."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


class Pace:
    """What is left of the seconds of the part that is measured now.

    At first that is the whole profile. Nothing is ever broken off: whoever measures asks before the next step.
    """

    def __init__(self, bound_s: float, clock: Callable[[], float]) -> None:
        """`bound_s` begin now, by `clock`; infinity: no bound."""
        self._clock, self._excused_s = clock, 0.0
        self._end = clock() + bound_s

    @property
    def now_s(self) -> float:
        """The clock, without what was excused."""
        return self._clock() - self._excused_s

    def excuse(self, seconds: float) -> None:
        """So many seconds that have passed do not count: what a port compiles when it is first called, say."""
        self._excused_s += max(0.0, seconds)

    @property
    def left_s(self) -> float:
        """Seconds that are left of this part, 0 if none are."""
        return max(0.0, self._end - self.now_s)

    def has(self, seconds: float) -> bool:
        """Whether what takes about so long would end in time."""
        return seconds <= self.left_s

    def parts(self, items: Sequence[Item], weights: Sequence[float] | None = None) -> Iterator[Item]:
        """The items in turn, each with its share of what is left by then, by weight; without `weights` all alike.

        What one item does not use is left for those after it. While an item is the caller's, `left_s` is its own.
        """
        shares = [1.0] * len(items) if weights is None else list(weights)
        outer = self._end
        try:
            for place, item in enumerate(items):
                now = self.now_s
                self._end = now + max(0.0, outer - now) * shares[place] / sum(shares[place:])
                yield item
        finally:
            self._end = outer
