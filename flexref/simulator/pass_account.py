"""What a pass, or many of them, took on a simulated machine: seconds of the clock, of links and of lanes."""

from collections import Counter
from dataclasses import dataclass


@dataclass
class PassAccount:
    """Seconds, seconds of copies by link and kind, busy seconds by lane."""

    seconds: float
    flow_s: Counter[tuple[str, str]]
    busy_s: Counter[str]

    @classmethod
    def nothing(cls) -> "PassAccount":
        """An account of zeros."""
        return cls(0.0, Counter(), Counter())

    def add(self, other: "PassAccount", times: float = 1) -> None:
        """Add another account, multiplied by `times`."""
        self.seconds += times * other.seconds
        for mine, theirs in ((self.flow_s, other.flow_s), (self.busy_s, other.busy_s)):
            for key, value in theirs.items():
                mine[key] += times * value  # type: ignore[index, assignment]

    def since(self, before: "PassAccount") -> "PassAccount":
        """What was added to an earlier one."""
        made = PassAccount.nothing()
        made.add(self)
        made.add(before, -1)
        return made
