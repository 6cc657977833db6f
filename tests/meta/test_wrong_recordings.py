"""Ports that are wrong on purpose in what they record and replay, each with one bug: the contract must reject each."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from flexref_numpy import NumpyBackend

from flexref.errors import FlexrefError
from flexref.testing import violation
from flexref.testing.clauses import recordings
from flexref.testing.contract import CONTRACT, Clause, clauses_for


class Recorded:
    """Calls that were recorded."""

    nbytes = 1

    def __init__(self, calls: Callable[[], None]) -> None:
        self.calls: Callable[[], None] | None = calls


class Handle:
    """What the numpy port's handle is now."""

    def __init__(self, made: Any, arguments: Sequence[Any]) -> None:
        self.made, self.arguments = made, arguments


class Replaying(NumpyBackend):
    """Calls what it recorded once more: a port that is right, and no faster for it."""

    def __init__(self) -> None:
        super().__init__()
        self.caps = replace(self.caps, recorded_bytes=1 << 20)

    def record(self, operators: Callable[[], None]) -> Any:
        return Recorded(operators)

    def replay(self, recording: Any) -> None:
        recording.calls()

    def forget(self, recording: Any) -> None:
        recording.calls = None

    def sample_ahead(
        self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: Any, out: Any
    ) -> Callable[[], Any]:
        try:
            ids = self.sample(logits, temperature, top_k, top_p, uniforms)
        except FlexrefError as error:
            return partial(raised, error)
        self.upload(ids.astype(np.int32), out=out)
        return lambda: ids

    def cache_rows(self, records: Any, layout: Any, prefixes: Any = None) -> Any:
        return Handle(super().cache_rows(records, layout, prefixes), (records, layout))

    def segments(self, past: Any, new: Any) -> Any:
        return Handle(super().segments(past, new), (past, new))

    def append(self, rows: Any, segments: Any, k: Any, v: Any) -> None:
        super().append(rows.made, segments.made, k, v)

    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        return super().attend(rows.made, segments.made, q, scale, out)

    def renew_segments(self, segments: Any, past: Any, new: Any) -> bool:
        if len(past) != len(segments.arguments[0]):
            return False
        segments.made, segments.arguments = super().segments(past, new), (past, new)
        return True

    def renew_rows(self, rows: Any, records: Any, prefixes: Any = None) -> bool:
        held, layout = rows[0].arguments
        if len(held) != len(records):
            return False
        for each in rows:
            moved = self.moved(each.arguments[0], held, records)
            each.made, each.arguments = super().cache_rows(moved, layout), (moved, layout)
        return True

    def moved(self, own: Any, first: Any, records: Any) -> Any:
        """Arrays as far from `own` as `records` are from `first`."""
        starts, memory = [each.ctypes.data for each in (own[0], first[0])], own[0].base
        found = []
        for record in records:
            offset = starts[0] + record.ctypes.data - starts[1] - memory.ctypes.data
            found.append(memory[offset : offset + record.nbytes])
        return found


def raised(error: Exception) -> Any:
    raise error


class ChoosesWhenAsked(Replaying):
    """What the logits have become by then."""

    def sample_ahead(
        self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: Any, out: Any
    ) -> Callable[[], Any]:
        def ask() -> Any:
            ids = self.sample(logits, temperature, top_k, top_p, uniforms)
            self.upload(ids.astype(np.int32), out=out)
            return ids

        return ask


class TellsTheHostAlone(Replaying):
    """Its operators find in `out` what was there before."""

    def sample_ahead(
        self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: Any, out: Any
    ) -> Callable[[], Any]:
        return super().sample_ahead(logits, temperature, top_k, top_p, uniforms, out.copy())


class TakesTheLikeliestAhead(Replaying):
    def sample_ahead(
        self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: Any, out: Any
    ) -> Callable[[], Any]:
        return super().sample_ahead(logits, 0.0, top_k, top_p, uniforms, out)


class ChoosesAheadWhateverTheLogitsAre(Replaying):
    def sample_ahead(
        self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: Any, out: Any
    ) -> Callable[[], Any]:
        return super().sample_ahead(np.nan_to_num(logits), temperature, top_k, top_p, uniforms, out)


class WritesMoreIds(Replaying):
    """A warp's width of them."""

    def sample_ahead(
        self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: Any, out: Any
    ) -> Callable[[], Any]:
        chosen = super().sample_ahead(logits, temperature, top_k, top_p, uniforms, out)
        beyond = np.frombuffer(out.base, np.int32) if isinstance(out.base, bytearray) else out.base.view(np.int32)
        start = (out.ctypes.data - beyond.ctypes.data) // 4
        beyond[start : start + 2 * len(out)] = 0
        return chosen


class RunsWhatItRecords(Replaying):
    def record(self, operators: Callable[[], None]) -> Any:
        operators()
        return super().record(operators)


class ReplaysOnce(Replaying):
    def replay(self, recording: Any) -> None:
        if recording.calls is not None:
            recording.calls()
        recording.calls = None


class ReplaysTheNewest(Replaying):
    """Keeps one recording: those before it are lost."""

    def __init__(self) -> None:
        super().__init__()
        self._newest: Any = None

    def record(self, operators: Callable[[], None]) -> Any:
        self._newest = super().record(operators)
        return self._newest

    def replay(self, recording: Any) -> None:
        self._newest.calls()

    def forget(self, recording: Any) -> None:
        if self._newest.calls is None:
            raise RuntimeError("given back twice")
        super().forget(self._newest)


class ReplaysLate(Replaying):
    """When somebody looks: what was uploaded after it is seen."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[Any] = []

    def replay(self, recording: Any) -> None:
        self._waiting.append(recording.calls)

    def download(self, x: Any) -> Any:
        while self._waiting:
            self._waiting.pop(0)()
        return super().download(x)


class CopiesIds(Replaying):
    """Takes over what arrays of ids hold when they are recorded."""

    def record(self, operators: Callable[[], None]) -> Any:
        gather, add_rows = self.gather, self.add_rows
        seen: list[Any] = []

        def frozen(ids: Any) -> Any:
            if not seen:
                seen.append(ids.copy())
            return seen[0]

        def calls() -> None:
            self.gather = lambda table, ids, first, out: gather(table, frozen(ids), first, out)  # type: ignore[method-assign]
            self.add_rows = lambda x, table, ids: add_rows(x, table, frozen(ids))  # type: ignore[method-assign]
            operators()
            del self.gather, self.add_rows  # type: ignore[method-assign]

        return super().record(calls)


class KeepsOldLengths(Replaying):
    def renew_segments(self, segments: Any, past: Any, new: Any) -> bool:
        return len(past) == len(segments.arguments[0])


class KeepsOldRows(Replaying):
    def renew_rows(self, rows: Any, records: Any, prefixes: Any = None) -> bool:
        return len(rows[0].arguments[0]) == len(records)


class RenewsTheFirstLayer(Replaying):
    def renew_rows(self, rows: Any, records: Any, prefixes: Any = None) -> bool:
        return super().renew_rows(rows[:1], records, prefixes)


class RenewsAllToTheFirstLayer(Replaying):
    def moved(self, own: Any, first: Any, records: Any) -> Any:
        return list(records)


class RenewsLengthsByHalf(Replaying):
    """The last row keeps its own."""

    def renew_segments(self, segments: Any, past: Any, new: Any) -> bool:
        kept = segments.arguments[0][-1]
        return super().renew_segments(segments, [*past[:-1], kept], new)


class RefusesWhatGrows(Replaying):
    def renew_segments(self, segments: Any, past: Any, new: Any) -> bool:
        return False


class RefusesOtherRows(Replaying):
    def renew_rows(self, rows: Any, records: Any, prefixes: Any = None) -> bool:
        return False


class TakesAnyNumberOfRows(Replaying):
    """A grid of blocks that is fixed, and rows that it does not reach."""

    def renew_segments(self, segments: Any, past: Any, new: Any) -> bool:
        count = len(segments.arguments[0])
        return super().renew_segments(segments, past[:count], new[:count])


class LosesTheLastCopy(Replaying):
    def replay(self, recording: Any) -> None:
        assign = self.assign
        self.assign = lambda target, source: None  # type: ignore[method-assign]
        recording.calls()
        self.assign = assign  # type: ignore[method-assign]


class HoldsNothingItSays(Replaying):
    def record(self, operators: Callable[[], None]) -> Any:
        recording = super().record(operators)
        recording.nbytes = 0
        return recording


GIVES, KNOWS = recordings.a_recording_gives_the_bits_of_its_calls, recordings.a_replay_knows_other_lengths_and_rows
CHOOSES = recordings.a_choice_is_on_the_device_before_the_host_knows_it

WRONG: tuple[tuple[type[Replaying], Clause], ...] = (
    (RunsWhatItRecords, GIVES),
    (ReplaysOnce, GIVES),
    (ReplaysTheNewest, GIVES),
    (ReplaysLate, GIVES),
    (CopiesIds, GIVES),
    (LosesTheLastCopy, GIVES),
    (HoldsNothingItSays, GIVES),
    (KeepsOldLengths, KNOWS),
    (KeepsOldRows, KNOWS),
    (RenewsTheFirstLayer, KNOWS),
    (RenewsAllToTheFirstLayer, KNOWS),
    (RenewsLengthsByHalf, KNOWS),
    (RefusesWhatGrows, KNOWS),
    (RefusesOtherRows, KNOWS),
    (TakesAnyNumberOfRows, KNOWS),
    (ChoosesWhenAsked, CHOOSES),
    (TellsTheHostAlone, CHOOSES),
    (TakesTheLikeliestAhead, CHOOSES),
    (ChoosesAheadWhateverTheLogitsAre, CHOOSES),
    (WritesMoreIds, CHOOSES),
)


@pytest.mark.parametrize(("port", "clause"), WRONG, ids=lambda part: part.__name__)
def test_a_wrong_port_is_rejected(port: type[Replaying], clause: Clause) -> None:
    assert clause in CONTRACT
    wrong = port()
    error = violation(wrong, clause)
    wrong.close()
    assert error is not None, f"{port.__name__} passes {clause.__name__}"


@pytest.mark.parametrize("clause", [GIVES, KNOWS, CHOOSES], ids=lambda part: part.__name__)
def test_the_port_that_they_are_made_of_is_accepted(clause: Clause) -> None:
    port = Replaying()
    assert clause in clauses_for(port.caps)
    error = violation(port, clause, 60)
    port.close()
    assert error is None, error


def test_a_port_that_records_nothing_says_so() -> None:
    port = NumpyBackend()
    assert not port.caps.replays
    assert not port.renew_segments(port.segments([1], [1]), [2], [1])
    for call in (lambda: port.record(lambda: None), lambda: port.replay(np.zeros(1)), lambda: port.forget(None)):
        with pytest.raises(RuntimeError, match="records nothing"):
            call()
    port.close()
