"""Runs a job while people watch it: what is shown, how it is stopped, what is said when a disk hangs."""

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexref.cli.logs import shows_progress
from flexref.cli.streams import tell
from flexref.cli.watching.stops_progress import StopsProgress
from flexref.cli.watching.watch_options import STDOUT, WatchOptions, watchers_of
from flexref.errors import JobPaused, described

if TYPE_CHECKING:
    from flexref.batch_job.job import BatchJob
    from flexref.batch_job.stall import Stalled
    from flexref.batch_job.watching.disk_bound import DiskWrites
    from flexref.machine.machine import Machine

PROGRAM = "flexref"

FAILED = 1
"""The exit code of a job that hangs, as of one that fails."""

LAST_SYNC_S = 5.0
"""So long what a job has is written down when it hangs; then the process ends, for its disk may hang as well."""


def say(text: str) -> None:
    """Tell a person how things stand, unless only errors are wanted."""
    if shows_progress():
        tell(text)


@dataclass(frozen=True, slots=True)
class JobWatch:
    """How a job is watched: by whom, and after how many seconds a lane hangs; 0: never."""

    options: WatchOptions
    stall_s: float

    @classmethod
    def of(cls, given: dict[str, Any]) -> "JobWatch":
        """Takes its own out of a command's parameters; `WrongCall` for what cannot be."""
        options = WatchOptions.of(given)
        options.check(given["output_file"], given["as_json"])
        return cls(options, given.pop("stall_s"))

    @property
    def log_file(self) -> Path | None:
        """The file that the log goes to, if it goes to one."""
        log = self.options.log_json
        return None if log is None or log == STDOUT else Path(log)


def run_watched(job: "BatchJob", watch: JobWatch, writes: "DiskWrites", machine: "Machine | None" = None) -> str | None:
    """Run a job with all who watch it. One that is kept stops in order on a signal.

    None if it is done, else why it is paused.
    """
    from flexref.cli.show.progress import progress
    from flexref.engine.events import no_listener

    with ExitStack() as stack:
        output = job.facts.output
        watchers = stack.enter_context(watchers_of(watch.options, job.happened, writes, machine, output))
        preparing = stack.enter_context(ExitStack())
        job.engines.on_event = preparing.enter_context(progress("choosing a policy"))

        def prepared() -> None:
            job.engines.on_event = no_listener  # weights that are loaded later would bring the display back
            preparing.close()

        job.watchers = [StopsProgress(prepared), *watchers]
        if watch.stall_s:
            job.stall_s, job.on_stall = watch.stall_s, ends_at_once(job)
        try:
            with job.stop.on_signals() if job.facts.lines is not None else nullcontext():
                job.run()
        except JobPaused as pause:
            if job.facts.lines is None:
                raise  # there is no going on
            return str(pause)
    return None


def ends_at_once(job: "BatchJob", leave: Callable[[int], Any] = os._exit) -> "Callable[[Stalled], None]":
    """What is done when a lane hangs: no signal and no error reaches a thread that waits in the system for its disk."""
    from flexref.cli.show.console import table_console

    console = table_console(err=True)

    def end(stalled: "Stalled") -> None:
        unsynced = list[str]()

        def sync() -> None:
            try:
                job.keeper.commit()
            except Exception as error:  # said below: the disk that hangs may fail as well
                unsynced.append(f"; not all is synced ({described(error)})")

        syncing = threading.Thread(target=sync, daemon=True)
        syncing.start()
        syncing.join(LAST_SYNC_S)
        console.show_cursor()  # the table of a terminal hides it, and is never taken away
        more = "".join(unsynced)
        tell(f"{PROGRAM}: {stalled.text}; the job ends, and goes on when the same command is given again{more}")
        leave(FAILED)

    return end
