"""Signals to the process: three end a command in order, a third one at once; SIGUSR1 ends none. It knows no command.

While an engine works SIGINT is held back (`engine.interrupts`); SIGTERM and SIGHUP go the way that SIGINT would go.
"""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

NOTHING_YET = b"flexref: no job is under way of which there is something to tell\n"
"""What SIGUSR1 is answered before a batch job takes it, and after: by default it would end the process."""

AT_ONCE = 3
"""The first ends the command, the second its tidying, the third the process as it stands."""


class Signals:
    """What has come of `ENDING`; `install` begins to note it."""

    def __init__(self) -> None:
        self.first: int | None = None
        self._seen = 0

    @property
    def exit_code(self) -> int:
        """128 and the number of the first signal, as shells report it; of SIGINT if none came."""
        return 128 + (self.first or signal.SIGINT)

    def install(self) -> None:
        """Handle all of `ENDING` but what whoever started us wants ignored, as `nohup` does."""
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._interrupt if number == signal.SIGINT else self._pass_on)
        if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
            signal.signal(signal.SIGUSR1, _say_nothing_yet)
        sys.unraisablehook = self._hide

    def release(self) -> None:
        """From here on any ends the process: what may still be waited for, a disk that hangs, needs no order."""
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._leave)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._note(number)
        raise KeyboardInterrupt

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Do as SIGINT would now: an engine at work holds it back."""
        self.first = self.first or number
        act = signal.getsignal(signal.SIGINT)
        if callable(act):
            act(number, frame)
        else:
            self._interrupt(number, frame)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        self.first = self.first or number
        os._exit(self.exit_code)

    def _note(self, number: int) -> None:
        self.first = self.first or number
        self._seen += 1
        if self._seen >= AT_ONCE:
            os._exit(self.exit_code)

    def _hide(self, unraisable: Any) -> None:
        """Python tells of what was raised where nothing can be raised: of an interrupt that is no news."""
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            sys.__unraisablehook__(unraisable)


def _say_nothing_yet(number: int, frame: FrameType | None) -> None:
    with suppress(OSError):  # written past Python's stream, which may be in use where the signal comes
        os.write(2, NOTHING_YET)
