"""Holds Ctrl-C back while an engine works, and lets it act where nothing is half done; it knows no engine.

Python may run a signal's handler, which may raise, between any two instructions: for example after memory was counted
and before it is noted who holds it. So while an engine works SIGINT is only noted. It acts where the engine asks
(`check`): after every beat, every loaded run and every piece of memory, and when the work ends. Then the handler is
called that was installed before, Python's or the user's own. Where there was none in Python (SIG_IGN, SIG_DFL) nothing
is changed. Nor in other threads than the main one, which alone handles signals.
"""

import inspect
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

FORCED = 3
"""From this many interrupts on, during one stretch of work, each acts at once, wherever the work is. Else a program
that waits for a disk that hangs could not be ended."""

FORCED_AFTER_S = 3.0
"""But not sooner than this after the first: a key that is held repeats, and the work may be about to end in order. On a
device no beat of the published models takes so long; on a small CPU one may, and can then be broken off."""


class Interrupts:
    """`with interrupts:` holds SIGINT back in the main thread.

    Such blocks may be nested, also those of several engines: the handler that acts in the end is the one from before
    the outermost. `forced`: a handler broke work off where it may have been half done.
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
        """Let the interrupts act that came since the last call; as a rule that raises `KeyboardInterrupt`."""
        while self._waiting and _in_main_thread():
            self._waiting -= 1
            self._act(signal.SIGINT, inspect.currentframe())

    def _note(self, number: int, frame: FrameType | None) -> None:
        """The handler: see `FORCED`."""
        now_s = time.perf_counter()
        self._seen += 1
        if self._seen == 1:
            self._first_s = now_s
        if self._seen < FORCED or now_s - self._first_s < FORCED_AFTER_S:
            self._waiting += 1
            return
        self.forced = True
        self._act(number, frame)
        self.forced = False  # a handler that raises nothing breaks nothing off


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
