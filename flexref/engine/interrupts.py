"""Holds Ctrl-C back while an engine works, and lets it act where nothing is half done; it knows no engine.

Python lets a signal's handler run, and raise, between any two instructions: between memory that was counted and the
note of who holds it, or while lanes are waited for whose memory comes next to be given back. So while an engine works
SIGINT is only noted, and acts where the engine looks for it (`check`): behind every beat, every loaded run and every
piece of memory, and when the work ends. Whatever handler was there acts then, Python's or the user's own; one that is
not Python's (SIG_IGN, SIG_DFL) stays as it is. Outside of the main thread nothing is done: no signal is handled there.
"""

import inspect
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

FORCED = 3
"""From the so manieth interrupt of one stretch of work on, each acts at once, wherever the work is: what waits for a
disk that hangs must not make a program that cannot be ended."""

FORCED_BEHIND_S = 3.0
"""But no sooner behind the first: a key that is held repeats, and the work may be about to end in order. No beat of the
models that there are takes as long on a device; where one does, on a small CPU, it can be broken off so."""


class Interrupts:
    """`with interrupts:` holds SIGINT back in the main thread. Stretches may lie inside each other, those of others
    too: what acts in the end is the handler that was there before the outermost.

    `forced`: a handler broke work off at a place where it may have been half done.
    """

    def __init__(self) -> None:
        self.forced = False
        self._depth = 0
        self._seen = 0
        self._first_s = 0.0
        self._waiting = 0
        self._before: Any = None
        self._act: Any = None

    def __enter__(self) -> None:
        if not _in_main_thread():
            return
        if not self._depth:
            self._seen = self._waiting = 0
            self._before = signal.getsignal(signal.SIGINT)
            outer = getattr(self._before, "__self__", None)
            self._act = outer._act if isinstance(outer, Interrupts) else self._before
            if callable(self._before):
                signal.signal(signal.SIGINT, self._note)  # from here on nothing can be raised between two lines
        self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not _in_main_thread():
            return
        self._depth -= 1
        if self._depth:
            return
        waiting, self._waiting = self._waiting, 0
        if signal.getsignal(signal.SIGINT) == self._note:  # else somebody has installed another one meanwhile
            signal.signal(signal.SIGINT, self._before)
        for _ in range(waiting):
            self._act(signal.SIGINT, inspect.currentframe())

    def check(self) -> None:
        """Let interrupts act that came since the last call: as a rule, raise `KeyboardInterrupt`."""
        while self._waiting and _in_main_thread():
            self._waiting -= 1
            self._act(signal.SIGINT, inspect.currentframe())

    def _note(self, number: int, frame: FrameType | None) -> None:
        """The handler: see `FORCED`."""
        now_s = time.perf_counter()
        self._seen += 1
        if self._seen == 1:
            self._first_s = now_s
        if self._seen < FORCED or now_s - self._first_s < FORCED_BEHIND_S:
            self._waiting += 1
            return
        self.forced = True
        self._act(number, frame)
        self.forced = False  # a handler that raises nothing breaks nothing off


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
