"""Ends the display of a job's preparation when its first pass begins, for another one takes its place then."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flexref.batch_job.states import JobEvent, JobFacts, JobState


class StopsProgress:
    """A watcher; it must be told before those that show how the job goes on. `stop` ends the display."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop

    def begin(self, facts: "JobFacts") -> None:
        """The engine is loaded, and what the watchers show is of more use."""
        self._stop()

    def passed(self, state: "JobState") -> None:
        """Nothing."""

    def happened(self, event: "JobEvent") -> None:
        """Nothing."""

    def end(self, state: "JobState", ending: str) -> None:
        """Nothing."""
