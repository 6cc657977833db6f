"""What a command is at and how far it has come, in a line; it knows no clock and no terminal."""

from collections.abc import Callable
from dataclasses import dataclass

from flexref.errors import duration, in_gib

BYTES = "bytes"
"""The unit of stages that are counted in bytes."""


@dataclass(slots=True)
class WorkStage:
    """One stage of a command's work: `done` of `total` things (None: they are not counted), begun at `start_s`.

    `detail` is asked for what is being done just now, when a line is shown.
    """

    what: str
    start_s: float
    total: int | None = None
    unit: str = ""
    done: int = 0
    detail: Callable[[], str] | None = None

    def line(self, now_s: float) -> str:
        """What is done, how fast, and how long the rest takes at that rate: `tokens: 3 of 8, 2 tokens/s, 2 s left`."""
        seconds = now_s - self.start_s
        counted = f": {self._amount(self.done)} of {self._amount(self.total)}" if self.total is not None else ""
        parts = [f"{self.what}{counted}"]
        now = self.detail() if self.detail is not None else ""
        if now:
            parts.append(now)
        if self.total is not None and 0 < self.done < self.total and seconds > 0:
            rate = self.done / seconds
            parts.append(f"{in_gib(int(rate)) if self.unit == BYTES else f'{rate:.3g} {self.unit}'.rstrip()}/s")
            parts.append(f"{duration((self.total - self.done) / rate)} left")
        else:
            parts.append(f"{duration(seconds)} so far")
        return ", ".join(parts)

    def _amount(self, count: int) -> str:
        return in_gib(count) if self.unit == BYTES else str(count)
