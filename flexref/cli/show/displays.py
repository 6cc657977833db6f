"""Where the progress of a command is seen: a bar on a terminal, plain lines elsewhere, or nowhere; it knows no command.

Plain lines are written by a thread of their own: no stage of work is silent, however long it says nothing.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from flexref.cli.show.stage import BYTES, WorkStage
from flexref.cli.streams import tell

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

LOG = logging.getLogger(__name__)

FIRST_S, LONGEST_S = 5.0, 60.0
"""When the first line is written, and the longest time between two; in between each comes after twice the time."""

TAKEN_FOR_TERMINALS = ("TTY_COMPATIBLE", "FORCE_COLOR")
"""With one of them in the environment rich may take for a terminal what is none."""

ENDING_S = 1.0
"""So long a line is waited for that is being written when all is done: a reader of stderr may be asleep."""


class Display(Protocol):
    """Shows the stage of work that is under way."""

    def begin(self, stage: WorkStage) -> None:
        """Another stage has begun."""

    def update(self, stage: WorkStage) -> None:
        """It has come further."""

    def stop(self) -> None:
        """The command writes to stdout from here on."""

    def end(self) -> None:
        """Show nothing any more."""


class Nothing:
    """Shows nothing."""

    def begin(self, stage: WorkStage) -> None:
        """Nothing."""

    def update(self, stage: WorkStage) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


class Telling(Protocol):
    """What can be told in a line: a stage of work, a job."""

    def line(self, now_s: float) -> str:
        """The line, at a second of the clock."""


class PlainLines:
    """A line on stderr after `FIRST_S`, and then more and more seldom up to `LONGEST_S`, whatever happens meanwhile."""

    def __init__(self, write: Callable[[str], None] = tell, clock: Callable[[], float] = time.perf_counter) -> None:
        self._write, self._clock = write, clock
        self._start_s = clock()
        self._due_s = self._start_s + FIRST_S
        self._stage: Telling | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, stage: Telling) -> None:
        """From here on lines tell of this stage."""
        self._stage = stage
        if self._thread is None:
            thread = threading.Thread(target=self._keep_writing, name="flexref progress", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                LOG.info("no progress is shown: %s", error)
            self._thread = thread

    def update(self, stage: Telling) -> None:
        """A line will say so when it is due."""

    def stop(self) -> None:
        """End the lines if they would stand in the command's text: where stdout and stderr are one file."""
        with suppress(OSError, ValueError):
            if os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno()):
                self.end()

    def end(self) -> None:
        """No line comes after this."""
        self._over.set()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(ENDING_S)

    def write_due(self) -> float:
        """Write the line that is due now, if one is; seconds until the next."""
        now_s = self._clock()
        if now_s >= self._due_s:
            if self._stage is not None:
                self._write(self._stage.line(now_s))
            self._due_s = now_s + min(LONGEST_S, max(FIRST_S, now_s - self._start_s))
        return self._due_s - now_s

    def _keep_writing(self) -> None:
        while not self._over.wait(self.write_due()):
            pass


class Bar:
    """A bar that vanishes when its stage ends, with what is counted, how fast it goes, and how long it will take."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._progress: Progress | None = None

    def begin(self, stage: WorkStage) -> None:
        """A new bar in place of the one before."""
        from rich.progress import Progress

        self.end()
        self._progress = Progress(*_columns(stage), console=self._console, transient=True)
        self._progress.add_task(stage.what, total=stage.total)
        self._progress.start()

    def update(self, stage: WorkStage) -> None:
        """Move it."""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=stage.done, total=stage.total)

    def stop(self) -> None:
        """The text takes its place."""
        self.end()

    def end(self) -> None:
        """Remove it."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _columns(stage: WorkStage) -> "list[ProgressColumn]":
    from rich import progress
    from rich.text import Text

    class Detail(progress.ProgressColumn):
        def render(self, task: progress.Task) -> Text:
            return Text(stage.detail() if stage.detail is not None else "")

    about = progress.TextColumn("{task.description}")
    if stage.total is None and stage.unit != BYTES:
        return [progress.SpinnerColumn(), about, Detail(), progress.TimeElapsedColumn()]
    if stage.unit == BYTES:
        counted = [progress.DownloadColumn(binary_units=True), progress.TransferSpeedColumn()]
    else:
        counted = [progress.MofNCompleteColumn()]
    return [about, progress.BarColumn(), *counted, Detail(), progress.TimeRemainingColumn()]


def terminal() -> "Console | None":
    """stderr, if it is a terminal; rich is not loaded to find out that it is none."""
    if not any(name in os.environ for name in TAKEN_FOR_TERMINALS):
        try:
            if not sys.stderr.isatty():
                return None
        except ValueError:  # it is closed
            return None
    from flexref.cli.show.console import table_console

    console = table_console(err=True)
    return console if console.is_terminal else None
