"""Writes what happens to a job as JSON lines, for programs that follow it; it knows neither the job nor the reader.

A thread of its own writes, so that a reader who is slow holds nothing up, and one who has gone ends nothing.
"""

import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from typing import IO, Any

from flexref.batch_job.states import JobEvent, JobFacts, JobState
from flexref.batch_job.watching.pace import JobPace, View
from flexref.errors import StorageError

LOG = logging.getLogger(__name__)

EVERY_S = 10.0
"""Between two states, as far as passes allow."""

LINES_MOST = 1000
"""So many lines may wait for a reader who is slow. More are left out, and the next line says how many."""

ENDING_S = 5.0
"""So long the last lines are waited for: a reader may be asleep."""

Line = dict[str, Any]


def utc_now() -> datetime:
    """Now, in UTC."""
    return datetime.now(timezone.utc)


class JsonLog:
    """One object a line: `begin`, `state` every ten seconds and at the end, `event`, `end`; each is flushed.

    Members are those of `JobFacts`, `JobState` and `JobEvent`, with `type`, `time` (UTC) and rates.
    """

    def __init__(self, path: str, pace: JobPace, clock: Callable[[], datetime] = utc_now) -> None:
        """`path` is a file, which is continued if it is there, or - for stdout; `StorageError` if it cannot be opened.

        `pace` must be told before this is.
        """
        self._path, self._pace, self._clock = path, pace, clock
        self._file = _opened(path)
        self._lines: queue.Queue[Callable[[], Line] | None] = queue.Queue(LINES_MOST)
        self._putting, self._left_out = threading.Lock(), 0
        self._due_s = 0.0
        self._failed = False
        self._thread = threading.Thread(target=self._keep_writing, name="flexref log lines", daemon=True)
        self._thread.start()

    def begin(self, facts: JobFacts) -> None:
        """The first line."""
        self._due_s = EVERY_S
        self._put("begin", lambda: asdict(facts))

    def passed(self, state: JobState) -> None:
        """A line, if one is due."""
        if state.at_s >= self._due_s:
            self._due_s = state.at_s + EVERY_S
            self.write_state()

    def happened(self, event: JobEvent) -> None:
        """A line."""
        self._put("event", lambda: asdict(event))

    def end(self, state: JobState, ending: str) -> None:
        """The last lines."""
        self.write_state()
        self._put("end", lambda: {"at_s": state.at_s, "ending": ending})

    def write_state(self) -> None:
        """A line now, from any thread; none before the job begins."""
        view = self._pace.view
        if view is not None:
            self._put("state", lambda: state_members(view))

    def close(self) -> None:
        """Write what waits, as far as it is read; once is enough."""
        if self._thread.is_alive():
            with suppress(queue.Full):
                self._lines.put(None, timeout=ENDING_S)
            self._thread.join(ENDING_S)
        if not self._thread.is_alive():
            with suppress(OSError):
                self._file.close()

    def _put(self, what: str, members: Callable[[], Line]) -> None:
        """Hand a line to the thread, which puts it together."""
        time = self._clock().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        with self._putting:
            more = {"lines_left_out": self._left_out} if self._left_out else {}
            try:
                self._lines.put_nowait(lambda: {"type": what, "time": time, **members(), **more})
                self._left_out = 0
            except queue.Full:
                self._left_out += 1

    def _keep_writing(self) -> None:
        for line in iter(self._lines.get, None):
            if not self._failed:
                try:
                    self._file.write(json.dumps(line(), allow_nan=False).encode() + b"\n")
                    self._file.flush()
                except (OSError, ValueError) as error:
                    self._failed = True
                    level = logging.WARNING if isinstance(error, BrokenPipeError) else logging.ERROR
                    LOG.log(level, "nothing more is logged to %s: %s", self._path, getattr(error, "strerror", error))


def state_members(view: View) -> Line:
    """A state as a line has it: the state's own members, and rates."""
    speed = view.speed()
    return {
        **asdict(view.state),
        "tokens_per_s_now": speed.tokens_per_s_now,
        "tokens_per_s": speed.tokens_per_s,
        "left_s": speed.left_s,
        "left_is_predicted": speed.left_is_predicted,
        "occupancy": speed.occupancy,
    }


def _opened(path: str) -> IO[bytes]:
    """The file, to be written unbuffered."""
    try:
        if path == "-":
            return os.fdopen(os.dup(sys.stdout.fileno()), "wb")
        return open(path, "ab")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise StorageError(f"{path}: the log cannot be written: {why}") from error
