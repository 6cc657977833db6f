"""Where a job's whole time goes: each moment counts in one part alone; it knows no job, no process and no port."""

import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar

T = TypeVar("T")

NANOSECONDS = 10**9


class WallPart(str, Enum):
    """What a job's time goes to."""

    IMPORTS = "imports"
    """Python's own start, modules that are imported, and the port with its device."""
    MACHINE = "machine"
    """The machine is measured, or its file is read."""
    PLAN = "plan"
    """A policy is chosen, and the memory of blocks planned."""
    LOAD = "load"
    """The weight file is opened, its tokenizer made, and weights are waited for."""
    ALLOCATE = "allocate"
    """Memory of blocks is taken and given back, or waited for where a port still pins it."""
    COMPILE = "compile"
    """Operators are waited for, which the port compiles or reads compiled; not what it compiles beside all else."""
    PREFILL = "prefill"
    DECODE = "decode"
    WRITE = "write"
    """The caller has tokens or results: what it prints, writes and reads meanwhile."""
    OTHER = "other"

    __str__ = str.__str__


PARTS = tuple(part.value for part in WallPart)

BEGINS = ("process", "command", "engine", "job")
"""With what the time of a job may begin: of the first job of an engine with its process (or, where the system does not
tell when that began, with the command), in a program of one's own when the engine is opened; of a later one when it is
asked for."""

Reading = Mapping[WallPart, int]
"""Nanoseconds of each part since the beginning."""


@dataclass(frozen=True, slots=True)
class WholeTime:
    """Seconds, with what they begin (`BEGINS`), and those of each part, which add up to them."""

    wall_s: float
    wall_begins: str
    wall_parts_s: dict[str, float]


class Waited(Protocol):
    """What a port's callers have waited for something, in seconds since it was made; it only grows."""

    seconds: float


class Wall:
    """A clock with one hand: at every moment the time goes to one part. What is in no other part is `other`.

    Parts may lie in each other: the outer one stands still meanwhile. So nothing is counted twice, and the parts add
    up to the whole, to the nanosecond.
    """

    def __init__(
        self,
        begins: str = "engine",
        age_ns: int = 0,
        *,
        at: WallPart = WallPart.OTHER,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        """It begins `age_ns` ago and has been `at` that part since. `clock` gives nanoseconds that never go back."""
        self.begins, self._clock, self._at = begins, clock, at
        self._now = clock() - age_ns
        self._spent = dict.fromkeys(WallPart, 0)
        self._pass_ns = 0
        self._in_pass = self._had_a_job = False
        self._watched: dict[WallPart, tuple[Waited, float]] = {}
        """By part, what is watched, and what it had come to at the last mark."""
        self._one = threading.Lock()

    def watch(self, part: WallPart, waited: Waited) -> None:
        """From now on, what this grows by is `part`, and in no other; what was watched for it before no longer is."""
        with self._one:
            self._mark()
            self._watched[part] = waited, waited.seconds

    def turn_to(self, part: WallPart) -> None:
        """From now on the time goes to `part`."""
        self._turn(part, False)

    @contextmanager
    def part(self, part: WallPart) -> Iterator[None]:
        """The time goes to `part` while the context lasts, then to what it went to before."""
        before = self._turn(part, False)
        try:
            yield
        finally:
            self._turn(*before)

    @contextmanager
    def passes(self, rest: WallPart) -> Iterator[None]:
        """Passes run while the context lasts. What each was is known at its end (`end_pass`); the last's end is `rest`.

        Contexts of `part` inside it are not the passes' own time.
        """
        before = self._turn(rest, True)
        try:
            yield
        finally:
            self._turn(*before)
            self.end_pass(rest)

    def end_pass(self, part: WallPart) -> None:
        """A pass has ended, and was of this kind."""
        with self._one:
            self._mark()
            self._spent[part] += self._pass_ns
            self._pass_ns = 0

    def lent(self, steps: Generator[T, None, None]) -> Generator[T, None, None]:
        """What `steps` yields; while the caller has it, and until it asks for more, the time is `write`."""
        with closing(steps):
            for results in steps:
                with self.part(WallPart.WRITE):
                    yield results

    def read(self) -> Reading:
        """What has gone to each part until now; a pass that has not ended is in `other`."""
        with self._one:
            self._mark()
            return {**self._spent, WallPart.OTHER: self._spent[WallPart.OTHER] + self._pass_ns}

    def spent_ns(self, part: WallPart) -> int:
        """What has gone to one part until now, but for a pass that has not ended."""
        with self._one:
            self._mark()
            return self._spent[part]

    def begin_job(self, asked: Reading) -> Reading | None:
        """Since when the time of a job counts that was asked for at `asked`; of the first job since the beginning."""
        first, self._had_a_job = not self._had_a_job, True
        return None if first else asked

    def since(self, begun: Reading | None = None) -> WholeTime:
        """The time since a job was asked for; without one, since the beginning."""
        spent = {part.value: count - (0 if begun is None else begun[part]) for part, count in self.read().items()}
        parts_s = {part: count / NANOSECONDS for part, count in spent.items()}
        return WholeTime(sum(spent.values()) / NANOSECONDS, self.begins if begun is None else "job", parts_s)

    def _turn(self, part: WallPart, in_pass: bool) -> tuple[WallPart, bool]:
        """Let the time go elsewhere; where it went until now."""
        with self._one:
            self._mark()
            before = self._at, self._in_pass
            self._at, self._in_pass = part, in_pass
            return before

    def _mark(self) -> None:
        """Count the time since the last mark; the lock is held."""
        now = self._clock()
        passed, self._now = now - self._now, now
        for part, (waited, before_s) in self._watched.items():
            now_s = waited.seconds
            elsewhere = min(passed, int((now_s - before_s) * NANOSECONDS))
            self._watched[part] = waited, now_s
            self._spent[part] += elsewhere
            passed -= elsewhere
        if self._in_pass:
            self._pass_ns += passed
        else:
            self._spent[self._at] += passed
