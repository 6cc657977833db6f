"""A port that records and replays as a device does, and is late as one may be: for jobs on numpy, to the bit.

Operators are queued with what their handles stand for when they are called, and run when the host must know what came
of them: calls, and passes that are called ahead, see arrays as they are then, and never what the host did since.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from flexref_numpy import NumpyBackend

from flexref.errors import CapacityError

CALL_BYTES = 1 << 10
"""What a recorded call counts for."""


@dataclass(eq=False)
class Handle:
    """A handle of rows or lengths: what the numpy port's is now, and what it was made of."""

    made: Any
    arguments: tuple[Any, ...]


@dataclass(eq=False)
class Recorded:
    """Calls of operators, each a method of the port and its arguments."""

    calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]
    nbytes: int


class LateRecordings(NumpyBackend):
    """The operators and recordings; where memory is taken and given back is the class's beside it.

    `full`: the device has no memory for recordings any more. `alive`: recordings that nobody gave back.
    """

    def __init__(self, scratch_bytes: int = 1 << 16, recorded_bytes: int = 1 << 20) -> None:
        super().__init__(scratch_bytes)
        self.caps = replace(self.caps, recorded_bytes=recorded_bytes)
        self.full = False
        self.alive = set[Recorded]()
        self.most_late = 0
        self._queue = deque[Callable[[], object]]()
        self._recording: list[Any] | None = None

    # What is called, and when it runs

    def _call(self, operator: Callable[..., Any], *given: Any, **named: Any) -> None:
        if any(lane.is_here for lane in self._lanes.values()):
            operator(*map(_now, given), **named)
        elif self._recording is not None:
            self._recording.append((operator, given, named))
        else:
            self._queue.append(partial(operator, *map(_now, given), **named))

    def catch_up(self) -> None:
        """Run all that was called."""
        assert self._recording is None, "what is recorded has no results yet"
        self.most_late = max(self.most_late, len(self._queue))
        while self._queue:
            self._queue.popleft()()

    def record(self, operators: Callable[[], None]) -> Recorded:
        for _ in range(2):
            self._recording = calls = list[Any]()
            try:
                operators()
            finally:
                self._recording = None
        if self.full:
            raise CapacityError("device", "recordings", len(calls) * CALL_BYTES, 0, {})
        made = Recorded(calls, len(calls) * CALL_BYTES)
        self.alive.add(made)
        return made

    def replay(self, recording: Recorded) -> None:
        assert recording in self.alive
        if self.full:
            raise CapacityError("device", "recordings", recording.nbytes, 0, {})
        for operator, given, named in recording.calls:
            self._call(operator, *given, **named)

    def forget(self, recording: Recorded) -> None:
        self.alive.remove(recording)

    # Where the host and the operators meet

    def keep_rows_apart(self, on: bool) -> None:
        self.catch_up()
        super().keep_rows_apart(on)

    def release(self, buffer: Any) -> None:
        self.catch_up()
        super().release(buffer)

    def upload(self, values: Any, out: Any = None) -> Any:
        assert self._recording is None, "an upload is no operator"
        target = self.empty(values.shape, str(values.dtype)) if out is None else out
        self._call(np.copyto, target, np.array(values))
        return target

    def download(self, x: Any) -> Any:
        self.catch_up()
        return super().download(x)

    def mark(self) -> Any:
        self.catch_up()
        return super().mark()

    def close(self) -> None:
        self.catch_up()
        super().close()

    def sample(self, *given: Any) -> Any:
        self.catch_up()
        return super().sample(*given)

    def sample_ahead(
        self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: Any, out: Any
    ) -> Callable[[], Any]:
        chosen, rule, sample = list[Any](), (temperature, top_k, top_p, np.array(uniforms)), super().sample

        def choose() -> None:
            try:
                chosen.append(sample(logits, *rule))
                np.copyto(out, chosen[0])
            except Exception as error:
                chosen.append(error)

        def known() -> Any:
            self.catch_up()
            if isinstance(chosen[0], Exception):
                raise chosen[0]
            return chosen[0]

        self._call(choose)
        return known

    # Handles

    def cache_rows(self, records: Sequence[Any], layout: Any, prefixes: Any = None) -> Any:
        return Handle(super().cache_rows(records, layout, prefixes), (tuple(records), layout))

    def segments(self, past: Sequence[int], new: Sequence[int]) -> Any:
        return Handle(super().segments(past, new), (tuple(past), tuple(new)))

    def renew_segments(self, segments: Handle, past: Sequence[int], new: Sequence[int]) -> bool:
        before = segments.arguments[1]
        if len(new) != len(before) or sum(new) != sum(before):
            return False
        segments.made, segments.arguments = super().segments(past, new), (tuple(past), tuple(new))
        return True

    def renew_rows(self, rows: Sequence[Handle], records: Sequence[Any], prefixes: Any = None) -> bool:
        held, layout = rows[0].arguments
        if prefixes is not None or any(len(handle.arguments[0]) != len(records) for handle in rows):
            return False
        for handle in rows:
            moved = _as_far(handle.arguments[0][0], held[0], records)
            handle.made, handle.arguments = super().cache_rows(moved, layout), (moved, layout)
        return True

    # Operators

    def assign(self, target: Any, source: Any) -> None:
        self._call(super().assign, target, source)

    def gather(self, table: Any, ids: Any, first: int, out: Any) -> Any:
        self._call(super().gather, table, ids, first, out)
        return out

    def add_rows(self, x: Any, table: Any, ids: Any) -> Any:
        self._call(super().add_rows, x, table, ids)
        return x

    def linear(self, x: Any, w: Any, b: Any, *, out: Any = None, add: bool = False) -> Any:
        out = self.empty((x.shape[0], w.shape[0]), "float32") if out is None else out
        self._call(super().linear, x, w, b, out=out, add=add)
        return out

    def expand(self, w: Any, out: Any) -> Any:
        self._call(super().expand, w, out)
        return out

    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float, out: Any = None) -> Any:
        out = self.empty(x.shape, "float32") if out is None else out
        self._call(super().layer_norm, x, w, b, epsilon, out)
        return out

    def activate(self, x: Any, activation: str) -> Any:
        self._call(super().activate, x, activation)
        return x

    def append(self, rows: Any, segments: Any, k: Any, v: Any) -> None:
        self._call(super().append, rows, segments, k, v)

    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        self._call(super().attend, rows, segments, q, scale, out)
        return out


def _now(argument: Any) -> Any:
    """What a handle stands for now; anything else as it is."""
    return argument.made if isinstance(argument, Handle) else argument


def _as_far(own: Any, first: Any, records: Sequence[Any]) -> tuple[Any, ...]:
    """Arrays as far from `own` in its memory as `records` are from `first` in theirs."""
    memory, found = own.base, list[Any]()
    for record in records:
        offset = own.ctypes.data - memory.ctypes.data + record.ctypes.data - first.ctypes.data
        found.append(memory[offset : offset + record.nbytes])
    return tuple(found)
