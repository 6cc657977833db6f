"""Shows a batch job as it runs: a table that is drawn anew on a terminal, a plain line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from flexref.batch_job.states import FILE_OF_FAULT, JobEvent, JobFacts, JobState, Watcher
from flexref.batch_job.watching.pace import JobPace, View
from flexref.batch_job.watching.state_line import left_said, lines_said, link_said, pass_said, state_line
from flexref.cli.show.displays import PlainLines
from flexref.cli.streams import tell
from flexref.errors import duration, in_gib

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live

DRAWN_PER_S = 4
"""The table is drawn anew so often."""

NAME_WIDTH = 10
"""Letters of the longest name of a row."""

TOLD_BY_OTHERS = ("pause",)
"""Kinds of events that end the job: the command itself says so."""


class JobTable(Watcher):
    """What a terminal shows while a job runs: it vanishes when the job ends."""

    def __init__(self, console: "Console", pace: JobPace, clock: Callable[[], float] = time.perf_counter) -> None:
        """`pace` must be told before this is; `clock` is that of `pace`."""
        self._console, self._pace, self._clock = console, pace, clock
        self._live: Live | None = None

    def begin(self, facts: JobFacts) -> None:
        """Draw it, from a thread of its own."""
        from rich.live import Live

        self._live = Live(self, console=self._console, refresh_per_second=DRAWN_PER_S, transient=True)
        self._live.start()

    def happened(self, event: JobEvent) -> None:
        """A line above the table."""
        _tell_of(event)

    def end(self, state: JobState, ending: str) -> None:
        """Remove it."""
        self.close()

    def close(self) -> None:
        """As `end`; once is enough."""
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        """The table for a console as wide as `options` say."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        view = self._pace.view
        if view is None:
            return
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=NAME_WIDTH, no_wrap=True)
        grid.add_column(overflow="fold")
        for name, parts in rows_said(view, self._clock()):
            grid.add_row(name, filled(parts, options.max_width - NAME_WIDTH - 1))
        yield grid
        if view.facts.lines:
            yield ProgressBar(view.facts.lines, view.state.lines_done, width=min(options.max_width, 80))


class JobLines(Watcher):
    """A plain line on stderr some seconds after the job began, and then more and more seldom, whatever happens."""

    def __init__(
        self, pace: JobPace, write: Callable[[str], None] = tell, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`pace` must be told before this is; `clock` is that of `pace`."""
        self._pace, self._write, self._clock = pace, write, clock
        self._lines: PlainLines | None = None

    def begin(self, facts: JobFacts) -> None:
        """Lines come from a thread of their own."""
        self._lines = PlainLines(self._write, self._clock)
        self._lines.begin(self)

    def line(self, now_s: float) -> str:
        """The line at a second of the clock."""
        view = self._pace.view
        assert view is not None
        return state_line(view, now_s)

    def happened(self, event: JobEvent) -> None:
        """A line at once."""
        _tell_of(event)

    def end(self, state: JobState, ending: str) -> None:
        """No line comes after this."""
        self.close()

    def close(self) -> None:
        """As `end`; once is enough."""
        if self._lines is not None:
            self._lines.end()


def _tell_of(event: JobEvent) -> None:
    if event.kind not in TOLD_BY_OTHERS and FILE_OF_FAULT not in event.details:  # else it is in the log
        tell(f"{event.kind}: {event.text}")


def rows_said(view: View, now_s: float) -> Iterator[tuple[str, list[str]]]:
    """The rows of the table, each a name and what is said in parts; `now_s` as for `state_line`."""
    facts, state, speed = view.facts, view.state, view.speed()
    yield "job", [f"{facts.input} -> {facts.output}", f"{facts.model} on {facts.backend}"]
    yield "lines", [lines_said(view), *([f"{state.lines_done / facts.lines:.0%}"] if facts.lines else [])]
    yield "tokens", [f"{speed.tokens_per_s_now:.3g} per second now", f"{speed.tokens_per_s:.3g} over all"]
    read = f"{speed.read_tokens_per_s:.3g} over all (of prompts)"
    yield "read", [f"{speed.read_tokens_per_s_now:.3g} per second now", read]
    at_s = view.at_s(now_s)
    left = [] if speed.left_s is None else [left_said(speed)]
    yield "time", [f"{duration(at_s)} so far", *left, pass_said(view, now_s)]
    if state.places:  # else they are those of other processes
        yield "occupancy", [f"{state.live_rows} of {state.places} places", f"{speed.occupancy:.0%}"]
    if speed.lane_shares:
        yield "lanes", [f"{lane} {share:.0%}" for lane, share in sorted(speed.lane_shares.items())]
    if speed.link_bytes_per_s:
        yield "links", [link_said(speed, link) for link in speed.link_bytes_per_s]
    budgets = state.budget_bytes
    held = [
        f"{tier} {in_gib(nbytes)}" + (f" of {in_gib(most)}" if (most := budgets.get(tier)) is not None else "")
        for tier, nbytes in state.held_bytes.items()
    ]
    if held:
        yield "memory", held
    event = view.event
    latest = [] if event is None else [f"latest: {event.kind}, {duration(at_s - event.at_s)} ago"]
    yield "faults", [str(state.faults), *latest]


def filled(parts: list[str], width: int) -> str:
    """`parts` after commas, in lines of at most `width` letters; a part stays whole where it can."""
    lines = [""]
    for part in parts:
        if lines[-1] and len(lines[-1]) + len(part) + 3 > width:
            lines[-1] += ","
            lines.append(part)
        else:
            lines[-1] += f", {part}" if lines[-1] else part
    return "\n".join(lines)
