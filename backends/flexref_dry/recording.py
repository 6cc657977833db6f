"""What was recorded on a port without numbers: descriptions of calls, each made anew when it is replayed."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.backend.capabilities import Capabilities
from flexref_dry.stand_ins import DryCaches, DrySegments, nbytes_of, sizes_of
from flexref_dry.timing import Timing

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


class DryRecordings:
    """What `RecordingBackend` asks for, of a port that counts its calls."""

    caps: Capabilities
    calls: Counter[str]
    flops: Counter[str]
    timing: Timing | None
    _recording: DryRecording | None

    def _count(self, operator: str, flops: int, *timed: Any) -> None:
        """Count a call (see `DryBackend`)."""
        raise NotImplementedError

    def record(self, operators: Callable[[], None]) -> DryRecording:
        """See `RecordingBackend.record`.

        As on a device, operators are called once so that what they load is there, and once more to be kept: the host
        works through the engine's Python both times.
        """
        try:
            for _ in range(RECORDING_CALLS):
                self._recording = recording = DryRecording()
                operators()
        finally:
            self._recording = None
        calls = len(recording.calls)
        recording.nbytes = self.caps.recording_bytes + calls * self.caps.recorded_call_bytes
        if self.timing is not None:
            self.timing.record(calls)
        return recording

    def replay(self, recording: Any) -> None:
        """See `RecordingBackend.replay`: one call of the host's, and all operators one after another."""
        found: list[Counted] = list(recording)
        for operator, flops, _ in found:
            self.calls[operator] += 1
            self.flops[operator] += flops
        if self.timing is not None:
            self.timing.replay([timed for _, _, timed in found])

    def forget(self, recording: Any) -> None:
        """See `RecordingBackend.forget`: nothing is held."""

    def renew_rows(self, rows: Sequence[Any], records: Sequence[Any], prefixes: Any = None) -> bool:
        """See `RecordingBackend.renew_rows`."""
        return renew_rows(rows, records, prefixes)

    def renew_segments(self, segments: Any, past: Sequence[int], new: Sequence[int]) -> bool:
        """See `RecordingBackend.renew_segments`."""
        return renew_segments(segments, past, new)

    def sample_ahead(
        self,
        logits: Any,
        temperature: float,
        top_k: int,
        top_p: float,
        uniforms: npt.NDArray[np.float64],
        out: Any,
    ) -> Callable[[], npt.NDArray[np.int64]]:
        """See `RecordingBackend.sample_ahead`: the host waits for what was called before, and not for later calls."""
        self._count("sample", logits.shape[0] * logits.shape[1], "operator", "sample", nbytes_of(logits))
        chosen = None if self.timing is None else self.timing.mark()

        def known() -> npt.NDArray[np.int64]:
            if self.timing is not None and chosen is not None:
                self.timing.chosen(logits.shape[0], chosen)
            return np.zeros(logits.shape[0], np.int64)

        return known
