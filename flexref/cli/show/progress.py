"""Progress on stderr: a bar on a terminal, a plain line now and then elsewhere, nothing where errors alone are wanted.

A command says what it is at (`Progress.begin`) and how far it has come. It knows no command.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flexref.cli.logs import shows_progress
from flexref.cli.show.displays import Bar, Display, Nothing, PlainLines, terminal
from flexref.cli.show.stage import BYTES, WorkStage

if TYPE_CHECKING:
    from flexref.architecture.stages import Stage
    from flexref.engine.events import Event

LOADING = "loading weights"


class Progress:
    """What a command tells of its work; an engine is given it as its listener (an `engine.events.OnEvent`)."""

    def __init__(self, what: str, display: Display, clock: Callable[[], float] = time.perf_counter) -> None:
        self._display, self._clock = display, clock
        self._stage = WorkStage(what, clock())
        self._loading: WorkStage | None = None

    def begin(
        self, what: str, total: int | None = None, unit: str = "", detail: Callable[[], str] | None = None
    ) -> None:
        """The stage before has ended and this one begins: `total` things to do, called `unit`; see `WorkStage`."""
        self._stage = WorkStage(what, self._clock(), total, unit, detail=detail)
        self._display.begin(self._stage)

    def advance(self, count: int = 1) -> None:
        """So many more things are done."""
        self._stage.done += count
        self._display.update(self._loading or self._stage)

    def note(self, text: str) -> None:
        """What is being done just now; a bar or a line will show it."""
        self._stage.detail = lambda: text

    def visit(self, stage: "Stage", group: int, turn: int) -> None:
        """A group's visit of a stage is what is being done (a `check.tokencheck.OnVisit`)."""
        self.note(f"pass {turn}, {stage.name}, group {group}")

    def reach(self, done: int, total: int) -> None:
        """So many of so many bytes, or of what else is counted, are done."""
        self._stage.done, self._stage.total = done, total
        self._display.update(self._stage)

    def stop(self) -> None:
        """The command writes to stdout from here on: show nothing that would stand in its text."""
        self._display.stop()

    def __call__(self, event: "Event") -> None:
        """A session's event: weights that were loaded, a stage inside the one under way. Its notices are logged."""
        from flexref.engine.events import WeightsLoaded

        if not isinstance(event, WeightsLoaded):
            return
        if self._loading is None:
            self._loading = WorkStage(LOADING, self._clock(), event.total_bytes, BYTES)
            self._display.begin(self._loading)
        self._loading.done = event.loaded_bytes
        self._display.update(self._loading)
        if event.loaded_bytes >= event.total_bytes:
            self._loading = None
            if not self._stage.done:
                self._stage.start_s = self._clock()
            self._display.begin(self._stage)


@contextmanager
def progress(what: str, total: int | None = None, unit: str = "") -> Iterator[Progress]:
    """Shows what a command is at while the context lasts, `what` to begin with."""
    display: Display = Nothing()
    if shows_progress():
        console = terminal()
        display = PlainLines() if console is None else Bar(console)
    shown = Progress(what, display)
    shown.begin(what, total, unit)
    try:
        yield shown
    finally:
        display.end()
