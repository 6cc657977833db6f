"""Bounds what a job writes to disk over all its runs: cheap drives wear out; it knows no drive and no journal."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flexref.batch_job.states import JobState, Watcher
from flexref.errors import JobPaused, in_gib
from flexref.units import GIB

SPILLS = "host->disk"


def _spilled(state: Mapping[str, Any]) -> int:
    """What the disk wrote of what was spilled, by a state's values; those of an older version have what was moved."""
    moved = sum(state["link_bytes"].get(SPILLS, {}).values())
    return int(state.get("spilled_bytes", moved))


def spilled_before(notes: Iterable[tuple[str, Mapping[str, Any]]]) -> int:
    """What the disk wrote of what was spilled in all runs of a job, from the notes of its journal (kind, values): the
    last state of each run.
    """
    whole = last = 0
    for kind, values in notes:
        if kind == "run":
            whole, last = whole + last, 0
        elif kind == "state":
            last = _spilled(values)
    return whole + last


def nothing_recorded() -> int:
    """No answer is written to disk: the output is a pipe."""
    return 0


class DiskWrites:
    """How much a job has written over all its runs: spills, answers and the journal."""

    def __init__(self, before_bytes: int = 0, recorded_bytes: Callable[[], int] = nothing_recorded) -> None:
        """`before_bytes`: of earlier runs. `recorded_bytes()`: answers, errors and journal of this run so far."""
        self._before_bytes, self._recorded_bytes = before_bytes, recorded_bytes

    def at(self, state: JobState) -> int:
        """Bytes in all, with those of earlier runs, when `state` is the latest."""
        return self._before_bytes + state.spilled_bytes + self._recorded_bytes()


class DiskWriteBound(Watcher):
    """Pauses the job, with `JobPaused`, after the pass in which it reached the bound."""

    def __init__(self, most_gib: float, writes: DiskWrites) -> None:
        self._most_gib, self._writes = most_gib, writes

    def passed(self, state: JobState) -> None:
        """Look; `JobPaused` says how much was written."""
        written = self._writes.at(state)
        if written >= self._most_gib * GIB:
            raise JobPaused(
                f"the job has written {in_gib(written)} to disk, and --max-disk-writes-gib is {self._most_gib:g}: it "
                "goes on with a higher bound"
            )


def predicted_pause(most_gib: float, predicted_bytes: int, before_bytes: int = 0) -> str | None:
    """For a job that is predicted to write so much: where the bound would pause
    it, in words; None if it would not.
    """
    total, most = before_bytes + predicted_bytes, most_gib * GIB
    if total < most:
        return None
    share = max(0.0, (most - before_bytes) / predicted_bytes) if predicted_bytes else 0.0
    return (
        f"it will write about {in_gib(predicted_bytes)} to disk: --max-disk-writes-gib {most_gib:g} will pause it "
        f"when {share:.0%} of what is left is done"
    )
