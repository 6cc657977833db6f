"""Divides the seconds that a profile may take among what is still to be measured; it measures nothing."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


class Pace:
    """The seconds left for the part that is measured now; at first that part is the whole profile.

    It interrupts nothing: whoever measures asks before the next step.
    """

    def __init__(self, bound_s: float, clock: Callable[[], float]) -> None:
        """The profile may take `bound_s` seconds from now on, by `clock`; infinity: no bound."""
        self._clock, self._excused_s = clock, 0.0
        self._end = clock() + bound_s

    @property
    def now_s(self) -> float:
        """The clock's seconds, less those that were excused."""
        return self._clock() - self._excused_s

    def excuse(self, seconds: float) -> None:
        """Do not count so many of the past seconds: those in which a port compiled its kernels, for example."""
        self._excused_s += max(0.0, seconds)

    @property
    def left_s(self) -> float:
        """Seconds that are left of this part, 0 if none are."""
        return max(0.0, self._end - self.now_s)

    def has(self, seconds: float) -> bool:
        """Whether what takes about so long would end in time."""
        return seconds <= self.left_s

    def parts(self, items: Sequence[Item], weights: Sequence[float] | None = None) -> Iterator[Item]:
        """Yield the items in turn. While an item is handled, `left_s` is its share of the time left, by weight.

        Without `weights` all shares are equal. Time that an item does not use goes to those after it.
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
