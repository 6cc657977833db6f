"""What the system says of this process: whether it may have what libraries need, and when it began; it loads none."""

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flexref.errors import FlexrefError, in_gib

if TYPE_CHECKING:
    from flexref.engine.wall import Wall

LEAST_ADDRESS_BYTES = 512 << 20
"""With less, libraries for linear algebra abort while they are loaded, or ask for memory for ever; the built-in model
needs 350 MB."""


def check_limits() -> None:
    """`FlexrefError` if the process may have too little address space (`ulimit -v`) to load what all commands need."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_BYTES:
        raise FlexrefError(
            f"this process may have {in_gib(limit)} of address space (ulimit -v), needed at least "
            f"{in_gib(LEAST_ADDRESS_BYTES)}"
        )


OWN_STATUS = Path("/proc/self/stat")
"""Where Linux tells of a process, as proc_pid_stat(5) has it."""

START_AFTER_NAME = 19
"""Which field after the program's name is the tick, since the system was started, at which the process began."""


def process_age_ns(status: Path = OWN_STATUS) -> int | None:
    """How long ago the kernel began this process, to a tick of it (10 ms); None where the system does not tell."""
    try:
        text = status.read_bytes()
        # The name, in parentheses, may hold spaces and parentheses itself.
        ticks = int(text.rpartition(b")")[2].split()[START_AFTER_NAME])
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    except (OSError, ValueError, IndexError, AttributeError):
        return None
    age_ns = now_ns - ticks * 10**9 // os.sysconf("SC_CLK_TCK")
    return age_ns if age_ns >= 0 else None


@dataclass(frozen=True, slots=True)
class Begun:
    """When a command began, by `time.perf_counter_ns`, and what began then: its process, or the command alone."""

    what: str
    at_ns: int

    @classmethod
    def with_process(cls, status: Path = OWN_STATUS) -> "Begun":
        """Together with the process, as far as the system tells when that was; else now."""
        age_ns = process_age_ns(status)
        return cls.now() if age_ns is None else cls("process", time.perf_counter_ns() - age_ns)

    @classmethod
    def now(cls) -> "Begun":
        """In a process that had other things to do before."""
        return cls("command", time.perf_counter_ns())


def whole_time() -> "Wall":
    """The whole time of the command under way, which has imported until now, and does until the wall is told else."""
    from flexref.engine.wall import Wall, WallPart

    begun: Begun = click.get_current_context().find_root().obj
    return Wall(begun.what, time.perf_counter_ns() - begun.at_ns, at=WallPart.IMPORTS)
