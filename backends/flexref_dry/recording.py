"""What was recorded on a port without numbers: descriptions of calls, each made anew when it is replayed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from flexref_dry.stand_ins import DryCaches, DrySegments, sizes_of

RECORDING_CALLS = 2
"""So often operators are called to be recorded; seconds of a recorded operator (`HostSeconds.record`) are for both."""

Counted = tuple[str, int, tuple[Any, ...]]
"""An operator's name, its FLOPs, and what is timed: a method of `Durations` and its arguments."""


@dataclass(eq=False)
class DryRecording:
    """Calls of operators; lengths are those that handles stand for when it is replayed. `nbytes`: what a recording of
    them counts for on the port that it stands for.
    """

    nbytes: int = 0
    calls: list[Callable[[], Counted]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Counted]:
        return (call() for call in self.calls)


def renew_rows(rows: Sequence[DryCaches], records: Sequence[Any], prefixes: Sequence[Any] | None) -> bool:
    """See `RecordingBackend.renew_rows`; all handles have rows alike."""
    if any(len(handle.capacities) != len(records) for handle in rows):
        return False
    shared, capacities = sizes_of(records, prefixes)
    for handle in rows:
        handle.shared, handle.capacities = shared, capacities
    return True


def renew_segments(segments: DrySegments, past: Sequence[int], new: Sequence[int]) -> bool:
    """See `RecordingBackend.renew_segments`; as many rows as before, with as many new tokens in all."""
    if len(past) != len(segments.lengths) or sum(new) != segments.new:
        return False
    segments.stand_for(tuple(zip(past, new, strict=True)))
    return True
