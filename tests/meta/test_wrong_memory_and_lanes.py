"""Ports that are wrong on purpose in their memory or their lanes, each with one bug: the contract must reject each."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flexref_numpy import NumpyBackend
from flexref_numpy.lanes import Lane, LaneTicket, bytes_of
from hypothesis.errors import Flaky

from flexref.backend.capabilities import Description
from flexref.backend.parts import Parts
from flexref.backend.protocol import LANES, HostWork, LaneStep, Move, Span, Ticket
from flexref.backend.workspace import Workspace
from flexref.errors import CapacityError, FlexrefError
from flexref.testing import violation
from flexref.testing.clauses import lanes, memory, moves
from flexref.testing.contract import CONTRACT, Clause


class NumbersAsVersions(NumpyBackend):
    def describe(self) -> Description:
        version: Any = 2.2
        return Description((), {"numpy": version})


class DescribesTheHour(NumpyBackend):
    def describe(self) -> Description:
        return Description((f"free since {time.perf_counter_ns()}",), {})


class AllocatesWholePages(NumpyBackend):
    def allocate(self, tier: str, nbytes: int) -> Any:
        return super().allocate(tier, -(-nbytes // 4096) * 4096)


class ReportsNoFreeMemory(NumpyBackend):
    def free_bytes(self, tier: str) -> int:
        return 0


class AllocatesUnaligned(NumpyBackend):
    def allocate(self, tier: str, nbytes: int) -> Any:
        return super().allocate(tier, nbytes + 64)[64:]


class Shifted(np.ndarray):  # type: ignore[type-arg]
    """Slices of the last axis lose their first element."""

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple) and len(key) == 2 and key[1].start:
            key = (key[0], slice(key[1].start + 1, key[1].stop))
        return super().__getitem__(key)


class SlicesAreOffByOne(NumpyBackend):
    def view(self, buffer: Any, offset: int, shape: tuple[int, ...], dtype: str) -> Any:
        return super().view(buffer, offset, shape, dtype).view(Shifted)


class ViewsBeyondTheEnd(NumpyBackend):
    def view(self, buffer: Any, offset: int, shape: tuple[int, ...], dtype: str) -> Any:
        try:
            return super().view(buffer, offset, shape, dtype)
        except IndexError:
            return np.zeros(shape, dtype)


class Copying(np.ndarray):  # type: ignore[type-arg]
    """Slices are copies."""

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key).copy()


class SlicesAreCopies(NumpyBackend):
    def view(self, buffer: Any, offset: int, shape: tuple[int, ...], dtype: str) -> Any:
        return super().view(buffer, offset, shape, dtype).view(Copying)


class UploadKeepsTheHostArray(NumpyBackend):
    def upload(self, values: Any, out: Any = None) -> Any:
        return values if out is None else super().upload(values, out)


class DownloadIsAView(NumpyBackend):
    def download(self, x: Any) -> Any:
        return np.asarray(x)


class AssignsWhatIsThereLater(NumpyBackend):
    """Copies when the next operator is called: not in order."""

    def __init__(self) -> None:
        super().__init__()
        self._owed: list[tuple[Any, Any]] = []

    def assign(self, target: Any, source: Any) -> None:
        self._owed.append((target, source))

    def download(self, x: Any) -> Any:
        for target, source in self._owed[::-1]:
            super().assign(target, source)
        self._owed.clear()
        return super().download(x)


class GrowsTheWorkspace(NumpyBackend):
    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        try:
            return super().empty(shape, dtype)
        except CapacityError:
            return np.empty(shape, dtype)


class FramesNeverGiveBack(NumpyBackend):
    def frame(self) -> AbstractContextManager[None]:
        return nullcontext()


class FramesLeftByAnErrorKeepAll(NumpyBackend):
    @contextmanager
    def frame(self) -> Iterator[None]:
        used = self._workspace.used_bytes if self._workspace else 0
        yield
        if self._workspace:
            self._workspace.used_bytes = used


class FramesGiveBackTooEarly(NumpyBackend):
    @contextmanager
    def frame(self) -> Iterator[None]:
        if self._workspace:
            self._workspace.used_bytes = 0
        with super().frame():
            yield


class ResultsOutsideTheWorkspace(NumpyBackend):
    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float, out: Any = None) -> Any:
        return super().layer_norm(x, w, b, epsilon, np.empty(x.shape, "float32") if out is None else out)


class PeakIsWhatIsHeldNow(NumpyBackend):
    def workspace_peak_bytes(self) -> int:
        return self._workspace.used_bytes if isinstance(self._workspace, Workspace) else 0


class ChangedTimes(NumpyBackend):
    """Tickets whose times went through `change`."""

    def submit(self, lane: str, steps: Sequence[LaneStep], after: Sequence[Ticket]) -> Ticket:
        ticket = super().submit(lane, steps, after)
        real = ticket.times
        ticket.times = lambda: self.change(list(real()))  # type: ignore[method-assign]
        return ticket

    def change(self, times: list[tuple[float, float]]) -> list[tuple[float, float]]:
        raise NotImplementedError


class OneTimePerSubmission(ChangedTimes):
    def change(self, times: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return times[:1]


class TimesBackwards(ChangedTimes):
    def change(self, times: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return times[::-1]


class TimesOfTheWallClock(ChangedTimes):
    def change(self, times: list[tuple[float, float]]) -> list[tuple[float, float]]:
        shift = time.time() - time.perf_counter()
        return [(start + shift, end + shift) for start, end in times]


class MovesWholeWords(NumpyBackend):
    def submit(self, lane: str, steps: Sequence[LaneStep], after: Sequence[Ticket]) -> Ticket:
        return super().submit(lane, [self._rounded(step) for step in steps], after)

    def _rounded(self, step: LaneStep) -> LaneStep:
        if isinstance(step, HostWork) or step.source.nbytes < 4:
            return step
        source, target = (Span(s.buffer, s.offset, s.nbytes // 4 * 4) for s in (step.source, step.target))
        return Move(step.what, source, target)


class MovesPartsAsOnePiece(NumpyBackend):
    """Copies from the first byte of the first part to the last of the last one, as if nothing lay between them."""

    def submit(self, lane: str, steps: Sequence[LaneStep], after: Sequence[Ticket]) -> Ticket:
        return super().submit(lane, [self.joined(step) for step in steps], after)

    def joined(self, step: LaneStep) -> LaneStep:
        if isinstance(step, HostWork) or step.parts is None or not step.parts.each:
            return step
        (there, here, _), (_, last, nbytes) = step.parts.each[0], step.parts.each[-1]
        room = min(last + nbytes - here, step.source.nbytes - there)
        return replace(step, parts=Parts(((there, here, room),), room))


class EverySubmissionAtOnce(NumpyBackend):
    def submit(self, lane: str, steps: Sequence[LaneStep], after: Sequence[Ticket]) -> Ticket:
        return Lane(lane).submit(steps, after)


class HostWorkAtSubmission(NumpyBackend):
    def submit(self, lane: str, steps: Sequence[LaneStep], after: Sequence[Ticket]) -> Ticket:
        for step in steps:
            if isinstance(step, HostWork):
                step.call()
        return super().submit(lane, [step for step in steps if isinstance(step, Move)], after)


class CopiesIgnoreAfter(NumpyBackend):
    def submit(self, lane: str, steps: Sequence[LaneStep], after: Sequence[Ticket]) -> Ticket:
        return super().submit(lane, steps, ())


class Swallowing(LaneTicket):
    """Never raises."""

    def wait(self) -> None:
        self._done.wait()


class FailuresAreSwallowed(NumpyBackend):
    def submit(self, lane: str, steps: Sequence[LaneStep], after: Sequence[Ticket]) -> Ticket:
        ticket = super().submit(lane, steps, after)
        ticket.__class__ = Swallowing
        return ticket


class OperatorsDoNotWait(NumpyBackend):
    def wait(self, ticket: Ticket) -> None:
        pass


class OneThreadForAllLanes(NumpyBackend):
    def submit(self, lane: str, steps: Sequence[LaneStep], after: Sequence[Ticket]) -> Ticket:
        return super().submit(LANES[0], steps, after)


class SubmitRunsTheSteps(NumpyBackend):
    def submit(self, lane: str, steps: Sequence[LaneStep], after: Sequence[Ticket]) -> Ticket:
        ticket = super().submit(lane, steps, after)
        ticket.times()
        return ticket


class MovesFromTheStart(NumpyBackend):
    def submit(self, lane: str, steps: Sequence[LaneStep], after: Sequence[Ticket]) -> Ticket:
        def copy(step: Move) -> None:
            source, target = step.source, step.target
            bytes_of(target.buffer, target.offset, target.nbytes)[:] = bytes_of(source.buffer, 0, source.nbytes)

        moved = [HostWork(s.what, lambda s=s: copy(s)) if isinstance(s, Move) else s for s in steps]
        return super().submit(lane, moved, after)


WRONG: tuple[tuple[type[NumpyBackend], Clause], ...] = (
    (NumbersAsVersions, memory.it_describes_itself),
    (DescribesTheHour, memory.it_describes_itself),
    (AllocatesWholePages, memory.allocated_memory_has_the_asked_size),
    (ReportsNoFreeMemory, memory.free_memory_is_reported),
    (AllocatesUnaligned, memory.host_memory_is_aligned_and_writable),
    (SlicesAreOffByOne, memory.views_have_their_shape),
    (ViewsBeyondTheEnd, memory.a_view_beyond_its_buffer_is_refused),
    (SlicesAreCopies, memory.views_share_memory),
    (UploadKeepsTheHostArray, memory.uploaded_values_come_back),
    (DownloadIsAView, memory.uploaded_values_come_back),
    (AssignsWhatIsThereLater, memory.assign_copies_between_tiers),
    (GrowsTheWorkspace, memory.results_fit_the_workspace_or_are_refused),
    (FramesNeverGiveBack, memory.frames_give_back),
    (FramesLeftByAnErrorKeepAll, memory.frames_give_back),
    (FramesGiveBackTooEarly, memory.live_results_never_overlap),
    (ResultsOutsideTheWorkspace, memory.results_take_from_the_workspace),
    (PeakIsWhatIsHeldNow, memory.the_workspace_remembers_its_peak),
    (OneTimePerSubmission, lanes.tickets_are_waited_for),
    (TimesBackwards, lanes.times_are_in_order),
    (TimesOfTheWallClock, lanes.times_are_those_of_the_host),
    (MovesWholeWords, moves.moves_copy_exactly_their_bytes),
    (MovesPartsAsOnePiece, moves.moves_copy_exactly_their_parts),
    (MovesFromTheStart, moves.moves_copy_exactly_their_bytes),
    (EverySubmissionAtOnce, lanes.a_lane_keeps_its_order),
    (HostWorkAtSubmission, lanes.a_lane_keeps_its_order),
    (CopiesIgnoreAfter, lanes.a_lane_waits_for_other_lanes),
    (FailuresAreSwallowed, lanes.failures_reach_all_who_wait),
    (CopiesIgnoreAfter, lanes.failures_reach_all_who_wait),
    (OperatorsDoNotWait, lanes.operators_wait_for_lanes),
    (OneThreadForAllLanes, lanes.lanes_do_not_hold_each_other_up),
    (SubmitRunsTheSteps, lanes.lanes_do_not_hold_each_other_up),
)


@pytest.mark.parametrize(("port", "clause"), WRONG, ids=lambda part: part.__name__)
def test_a_wrong_port_is_rejected(port: type[NumpyBackend], clause: Clause, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "HANG_S", 0.3)  # a lane that hangs would hang every test of it for so long
    backend = port()
    # What has not arrived yet may be anything, and numpy's warnings, which are errors here, speak of it first.
    assert isinstance(violation(backend, clause), AssertionError | FlexrefError | Flaky | RuntimeWarning)
    backend.close()


def test_every_clause_on_memory_and_lanes_rejects_a_port() -> None:
    here = {clause for clause in CONTRACT if clause.__module__ in (memory.__name__, lanes.__name__, moves.__name__)}
    assert {clause for _, clause in WRONG} == here
