"""Stands in place of calls of the operating system and lets some of them fail as a plan says; it knows no job."""

import errno
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

from hostile_batch_run.plan import BUG, CALLS, KILL, MEMORY, Plan

STALL_S = 0.4
"""A call that stalls takes so much longer."""


class InjectedError(Exception):
    """What no operating system raises: a lane that fails in a way that nobody has thought of."""


class FailingCalls:
    """Counts calls, of all threads, and lets those fail that the plan names."""

    def __init__(self, plan: Plan) -> None:
        self.counts: Counter[str] = Counter()
        self._plan, self._draw, self._lock = plan, Random(plan.seed), threading.Lock()
        self._real: dict[str, Callable[..., Any]] = {}

    def install(self) -> None:
        """Take the place of the calls, in this process, for good."""
        for family, names in CALLS.items():
            for name in names:
                self._real[name] = getattr(os, name)
                setattr(os, name, partial(self._call, family, name))

    def _call(self, family: str, name: str, *arguments: Any, **options: Any) -> Any:
        with self._lock:
            self.counts[family] += 1
            number = self.counts[family]
        real, plan = self._real[name], self._plan
        if family != plan.family or not plan.at <= number < plan.at + plan.times:
            return real(*arguments, **options)
        return self._failed(name, real, arguments, options)

    def _failed(self, name: str, real: Callable[..., Any], arguments: Sequence[Any], options: dict[str, Any]) -> Any:
        fault = self._plan.fault
        if fault == KILL:
            if name == "pwrite" and self._draw.random() < 0.5:
                real(arguments[0], memoryview(arguments[1])[: len(arguments[1]) // 2], *arguments[2:])
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "stall":
            time.sleep(STALL_S)
            return real(*arguments, **options)
        if fault == MEMORY:
            raise MemoryError
        if fault == BUG:
            raise InjectedError(f"{name} raised")
        if fault == "short":
            return self._short(name, real, arguments)
        if fault == "nothing":
            return b"" if name == "pread" else 0
        if fault == "flip":
            return self._flipped(name, real, arguments)
        code = getattr(errno, fault)
        raise OSError(code, os.strerror(code))

    def _short(self, name: str, real: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        """Do half of it, one byte at least."""
        descriptor, what, *rest = arguments
        if name == "pread":
            return real(descriptor, max(1, what // 2), *rest)
        if name == "pwrite":
            return real(descriptor, memoryview(what)[: max(1, len(what) // 2)], *rest)
        first = memoryview(what[0]).cast("B")
        return real(descriptor, [first[: max(1, len(first) // 2)]], *rest)

    def _flipped(self, name: str, real: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        """Read it, or write it, with one bit changed; what `pwrite` writes is to stay, and no run reads it again."""
        if name == "pwrite":
            return real(*arguments)
        if name == "pwritev":
            changed = bytearray(arguments[1][0])
            self._flip(memoryview(changed))
            return real(arguments[0], [changed], *arguments[2:])
        found = real(*arguments)
        if name == "pread":
            changed = bytearray(found)
            self._flip(memoryview(changed))
            return bytes(changed)
        self._flip(memoryview(arguments[1][0]).cast("B")[:found])
        return found

    def _flip(self, data: memoryview) -> None:
        if len(data):
            data[self._draw.randrange(len(data))] ^= 1 << self._draw.randrange(8)
