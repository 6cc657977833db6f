"""What is done to one run of a job, as values that go to its process as JSON; nothing here does it."""

import json
from dataclasses import asdict, dataclass, replace
from random import Random

READS, WRITES, SYNCS, NAMES = "reads", "writes", "syncs", "names"

CALLS = {
    READS: ("pread", "preadv"),
    WRITES: ("pwrite", "pwritev"),
    SYNCS: ("fdatasync", "fsync"),
    NAMES: ("open", "ftruncate", "link", "replace", "posix_fallocate"),
}
"""Calls of the operating system that are counted, and may fail, by family."""

MEMORY, BUG = "memory", "bug"

FAULTS = {
    READS: ("EIO", "short", "nothing", "flip", "stall", MEMORY, BUG),
    WRITES: ("EIO", "ENOSPC", "short", "flip", "stall", MEMORY, BUG),
    SYNCS: ("EIO", "ENOSPC", "stall"),
    NAMES: ("EIO", "ENOSPC"),
}
"""What can become of a call. `short`: half of it is done; `nothing`: as at the end of a file; `flip`: one bit of
what was read, or is written to be read again by the same run, is another one; `stall`: it takes a while; `memory`:
there is none; `bug`: an error that nobody foresaw, which is told in one line if a lane met it, else with its traceback,
as a bug is."""

KILL = "kill"
"""The process is killed in place of the call, or when half of what it writes is written."""

VARIABLE = "FLEXREF_HOSTILE_BATCH"
"""The environment variable that has the plan."""

FOR_EVER = 1 << 40


@dataclass(frozen=True, slots=True)
class Plan:
    """Call number `at`, from 1 on, of a family fails, and the `times - 1` after it; a family of None: none does.

    `seed` draws what is left open. `log`: a file to which the number of every answered line goes; `counts`: one that
    tells in the end how many calls there were.
    """

    family: str | None = None
    fault: str = ""
    at: int = 1
    times: int = 1
    seed: int = 0
    log: str | None = None
    counts: str | None = None

    def to_environment(self) -> dict[str, str]:
        """What the process is told it by."""
        return {VARIABLE: json.dumps(asdict(self))}

    def keeping(self, log: str | None, counts: str | None) -> "Plan":
        """The same, with these files."""
        return replace(self, log=log, counts=counts)

    def __str__(self) -> str:
        if self.family is None:
            return "nothing"
        often = "" if self.times == 1 else " and all after it" if self.times == FOR_EVER else f", {self.times} times"
        return f"{self.fault} at call {self.at} of {self.family}{often}"


def drawn_fault(draw: Random, counts: dict[str, int]) -> Plan:
    """A fault of any kind at any call, where a run has so many of each family."""
    family = draw.choice([family for family in CALLS if counts.get(family)])
    fault = draw.choice(FAULTS[family])
    often = (1, 1, 1, 2) if fault in ("stall", MEMORY, BUG) else (1, 1, 2, FOR_EVER)
    return Plan(family, fault, draw.randint(1, counts[family]), draw.choice(often), draw.randrange(1 << 30))


def drawn_kill(draw: Random, counts: dict[str, int]) -> Plan:
    """A kill at any call that changes something."""
    family = draw.choice([family for family in (WRITES, WRITES, SYNCS, NAMES) if counts.get(family)])
    return Plan(family, KILL, draw.randint(1, counts[family]), seed=draw.randrange(1 << 30))
