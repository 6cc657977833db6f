"""Tells work that hangs from work that a busy machine lets wait: by what the processor gave it; it knows no port."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

SLEEPS = 30
"""Work that is asleep so many times on end when it is looked at, each second, waits for what never comes."""

BUSY_S = 0.3
"""Of the processor, within that time: what a thread that asks again and again takes at most."""

ASLEEP = ("S", "I", "Z", "X")
"""States of a thread that neither runs nor would, if the machine had nothing else to do, nor reads a disk."""


class Seen(NamedTuple):
    """Work as it is now: what it has taken of the processor, in seconds, and whether all its threads are asleep."""

    taken_s: float
    asleep: bool


def seen(group: int) -> Seen:
    """The processes of a group, as Linux tells of them, with children of theirs that have ended.

    A group that has not begun yet is not asleep.
    """
    taken_s, threads = 0.0, list[str]()
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ends while it is looked at
            told = _told(path)
            if int(told[2]) == group:
                taken_s += sum(map(int, told[11:15])) / os.sysconf("SC_CLK_TCK")
                threads += (_told(task)[0] for task in path.glob("task/*"))
    return Seen(taken_s, bool(threads) and all(state in ASLEEP for state in threads))


def _told(path: Path) -> list[str]:
    """What Linux says of a process or thread, from its state on: its name before that may hold blanks."""
    return (path / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()


class Hanging:
    """Looks at one work, about each second: says how it hangs, None as long as it does not.

    Work hangs that has taken more than `limit_s` of the processor, or all of whose threads sleep. How long it is under
    way says nothing: on a busy machine that may be any time.
    """

    def __init__(self, limit_s: float, look: Callable[[int], Seen] = seen) -> None:
        self._limit_s, self._look = limit_s, look
        self._sleeps, self._before_s = 0, 0.0

    def __call__(self, group: int) -> str | None:
        now = self._look(group)
        if now.taken_s > self._limit_s:
            return f"it took more than {self._limit_s:g} s of the processor"
        if not now.asleep or now.taken_s - self._before_s > BUSY_S:
            self._sleeps, self._before_s = 0, now.taken_s
            return None
        self._sleeps += 1
        return f"all its threads slept, {self._sleeps} times on end" if self._sleeps >= SLEEPS else None
