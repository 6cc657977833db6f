"""Tells where a job stands when SIGUSR1 comes, at once, whatever its thread is doing; it knows no job.

The main thread may be inside a call that lasts minutes, where Python runs no handler. So the handler itself does
nothing: Python writes the signal's number to a pipe in the very moment (`signal.set_wakeup_fd`), and a thread reads it.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from flexref.batch_job.states import JobState, Watcher
from flexref.batch_job.watching.pace import JobPace
from flexref.batch_job.watching.state_line import state_line

ENDING_S = 5.0
"""So long a line is waited for that is being written."""

STOP = b"\0"
"""No signal has this number."""


class StateOnSignal(Watcher):
    """Until the job ends SIGUSR1 prints a line. Nothing is done outside the main thread, which alone has handlers."""

    def __init__(
        self,
        pace: JobPace,
        write: Callable[[str], None],
        also: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Install the handler. `write` prints a line, and `also` is called then, in a thread; `clock` is `pace`'s."""
        self._pace, self._write, self._also, self._clock = pace, write, also, clock
        self._thread: threading.Thread | None = None
        self._handler_before: Any = None
        self._wakeup_before = self._read_end = self._write_end = -1
        if threading.current_thread() is threading.main_thread():
            self._install()

    def _install(self) -> None:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._thread = threading.Thread(target=self._keep_telling, name="flexref SIGUSR1", daemon=True)
        self._thread.start()
        self._wakeup_before = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._handler_before = signal.signal(signal.SIGUSR1, _do_nothing)
        signal.siginterrupt(signal.SIGUSR1, False)  # calls of the system that it meets go on

    def end(self, state: JobState, ending: str) -> None:
        """Put the handler back that was there before."""
        self.close()

    def close(self) -> None:
        """As `end`; once is enough."""
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        if signal.getsignal(signal.SIGUSR1) is _do_nothing:  # else somebody has installed another one meanwhile
            signal.signal(signal.SIGUSR1, signal.SIG_DFL if self._handler_before is None else self._handler_before)
        signal.set_wakeup_fd(self._wakeup_before, warn_on_full_buffer=False)
        os.write(self._write_end, STOP)
        thread.join(ENDING_S)
        os.close(self._write_end)
        if not thread.is_alive():
            os.close(self._read_end)

    def _keep_telling(self) -> None:
        while True:
            numbers = os.read(self._read_end, 1 << 10)
            if self._wakeup_before >= 0:  # whoever waits for signals that way still hears of all
                os.write(self._wakeup_before, numbers.replace(STOP, b""))
            if signal.SIGUSR1 in numbers:
                self._tell()
            if not numbers or STOP in numbers:
                return

    def _tell(self) -> None:
        view = self._pace.view
        self._write("the job has not begun yet" if view is None else state_line(view, self._clock()))
        self._also()


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Python's own part of the work is done when it calls this."""
