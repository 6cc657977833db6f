"""Counts calls on a port without numbers, now or, described and recorded, anew with every replay."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.backend.capabilities import Capabilities
from flexref_dry.stand_ins import nbytes_of, sizes_of
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


class DryRecordings:
    """Counts calls, and has what `RecordingBackend` asks for."""

    caps: Capabilities
    calls: Counter[str]
    flops: Counter[str]
    timing: Timing | None
    _recording: DryRecording | None

    def _count(self, operator: str, flops: int, *timed: Any) -> None:
        """Count a call; what `timed` describes (a method of `Durations` and its arguments) is how long it takes."""
        self._counted(lambda: (operator, flops, timed))

    def _counted(self, call: Callable[[], Counted]) -> None:
        """Count a call that `call` describes, now or when it is replayed."""
        if self._recording is not None:
            self._recording.calls.append(call)
            return
        operator, flops, timed = call()
        self.calls[operator] += 1
        self.flops[operator] += flops
        if self.timing is not None:
            self.timing.operator(timed)

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
        """See `RecordingBackend.renew_rows`; all handles have rows alike."""
        if any(len(handle.capacities) != len(records) for handle in rows):
            return False
        shared, capacities = sizes_of(records, prefixes)
        for handle in rows:
            handle.shared, handle.capacities = shared, capacities
        return True

    def renew_segments(self, segments: Any, past: Sequence[int], new: Sequence[int]) -> bool:
        """See `RecordingBackend.renew_segments`; as many rows as before, with as many new tokens in all."""
        if len(past) != len(segments.lengths) or sum(new) != segments.new:
            return False
        segments.stand_for(tuple(zip(past, new, strict=True)))
        return True

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
