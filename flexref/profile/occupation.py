"""What else is at work on this machine: the load before, and what others take meanwhile; it measures no speed."""

import os
import time
from dataclasses import dataclass

import psutil

from flexref.machine.quality import BUSY_LOAD


@dataclass(frozen=True, slots=True)
class Taken:
    """Shares of the processors' time that others took: other programs, and other guests of the host."""

    others: float
    stolen: float


class Occupation:
    """Watches since it was made; where the system tells nothing it sees nothing."""

    def __init__(self) -> None:
        self.load_before = load()
        self._times, self._own_s = psutil.cpu_times(), time.process_time()

    def taken(self) -> Taken:
        """What others took since then."""
        now, own_s = psutil.cpu_times(), time.process_time() - self._own_s
        passed = {name: getattr(now, name) - getattr(self._times, name) for name in now._fields}
        whole = sum(seconds for name, seconds in passed.items() if not name.startswith("guest"))  # user has them too
        if whole <= 0:
            return Taken(0.0, 0.0)
        stolen = passed.get("steal", 0.0)
        busy = whole - passed.get("idle", 0.0) - passed.get("iowait", 0.0) - stolen
        return Taken(max(0.0, busy - own_s) / whole, max(0.0, stolen) / whole)


def load() -> float:
    """Programs that want each processor, on average over the last minute; 0 where the system does not tell."""
    try:
        return os.getloadavg()[0] / (psutil.cpu_count() or 1)
    except OSError:
        return 0.0


def is_quiet() -> bool:
    """Whether nothing much has been at work for a minute."""
    return load() <= BUSY_LOAD
