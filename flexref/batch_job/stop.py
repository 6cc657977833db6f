"""Signals that ask a job to stop in order, after the pass that is under way; it knows no job and no engine.

While an engine works SIGINT is held back until nothing is half done (`engine.interrupts`), and the others go its way.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from flexref.errors import JobPaused

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """Whether a job was asked to stop, and by what."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.in_passes = False
        """Whether the job comes by `check` soon: after the pass that is under way. Else it is ended where it stands."""
        self._first: str | None = None
        self._seen = 0
        self._former: dict[int, Any] = {}

    def check(self) -> None:
        """Called after every pass: `JobPaused` if the job is to stop."""
        self.in_passes = True
        if self.reason is not None:
            raise JobPaused(self.reason)

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """The first of `STOPPING` stops the job in order; a second one ends it where it stands, as without this.

        Signals that are ignored stay so. Outside the main thread, which alone handles signals, nothing is changed.
        """
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                former = signal.getsignal(number)
                if former is not signal.SIG_IGN:
                    self._former[number] = former
                    signal.signal(number, self._act if number == signal.SIGINT else self._pass_on)
        try:
            yield
        finally:
            for handled, former in self._former.items():
                signal.signal(handled, former)
            self._former = {}

    def _act(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGINT."""
        self._first = self._first or signal.Signals(number).name
        self._seen += 1
        if self._seen == 1:
            self.reason = self._first
            if not self.in_passes:
                raise JobPaused(self.reason)
            return
        former = self._former.get(signal.SIGINT)
        if callable(former):
            former(number, frame)
        else:
            raise KeyboardInterrupt

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Do as SIGINT would now: an engine at work holds it back."""
        self._first = self._first or signal.Signals(number).name
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):
            handler(signal.SIGINT, frame)
        else:
            self._act(number, frame)
