"""A watch over lanes: says which call of which lane hangs, once, and nothing of lanes that work or wait."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from flexref.architecture.spec import ModelSpec
from flexref.batch_job.stall import Stalled, StallWatch
from flexref.check.models import write_model
from flexref.engine.request import Request
from flexref.loading import load
from flexref.policy import Policy, Shares
from flexref.tiers.disk import WeightsOnDisk
from flexref.tiers.open_work import WorkBoard

STALL_S = 10
LANES = ("disk_in", "weights_in", "disk_out")


class Watched:
    """Stands for a session: a board, and a count of what comes."""

    def __init__(self) -> None:
        self.board = WorkBoard()
        self.progress = 0

    @property
    def mover(self) -> "Watched":
        return self


class StallStates(RuleBasedStateMachine):
    """Lanes begin, go on with, and end calls; the watch looks at any time."""

    watch_of: type[StallWatch] = StallWatch

    def __init__(self) -> None:
        super().__init__()
        self.session: Any = Watched()
        self.watch = type(self).watch_of(self.session, STALL_S, lambda stalled: None)
        self.idle: dict[str, float | None] = {}
        """Seconds since the first look that found the lane's call as it is; None before that look."""
        self.told: set[str] = set()

    @rule(lane=st.sampled_from(LANES))
    def begin(self, lane: str) -> None:
        self.session.board.begin(lane, f"work of {lane}", "disk->host", 1 << 20)
        self.idle[lane] = None
        self.told.discard(lane)

    @precondition(lambda self: self.idle)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        lane = data.draw(st.sampled_from(sorted(self.idle)))
        self.session.board.end(lane)
        del self.idle[lane]
        self.told.discard(lane)

    @rule()
    def a_chunk_comes(self) -> None:
        self.session.progress += 1
        self.idle = dict.fromkeys(self.idle)

    @rule(passed_s=st.sampled_from([1.0, 1.0, 1.0, 0.5, 300.0]), times=st.integers(1, 8))
    def look(self, passed_s: float, times: int) -> None:
        for _ in range(times):
            counted = min(passed_s, 2.0)  # more than that is a process that was stopped
            self.idle = {lane: 0.0 if idle is None else idle + counted for lane, idle in self.idle.items()}
            due = {lane: idle for lane, idle in self.idle.items() if lane not in self.told and (idle or 0) >= STALL_S}
            found = self.watch.look(passed_s)
            if not due:
                assert found is None, "a false alarm"
                continue
            assert found is not None, "a stall was not seen"
            assert found.idle_s == pytest.approx(max(idle or 0 for idle in due.values()))
            assert f"lane {found.work.lane} has made no progress for" in found.text
            assert f"work of {found.work.lane}, 1.00 MiB over disk->host" in found.text
            self.told.add(found.work.lane)


def test_a_watch_says_what_hangs_and_nothing_else() -> None:
    run_state_machine_as_test(StallStates)  # type: ignore[no-untyped-call]


class CountsWhatItSlept(StallWatch):
    def look(self, passed_s: float) -> Stalled | None:
        self._look_every_s = passed_s
        return super().look(passed_s)


class SeesNoChunks(StallWatch):
    def look(self, passed_s: float) -> Stalled | None:
        self._progress = self._session.progress
        return super().look(passed_s)


class SaysItAgain(StallWatch):
    def look(self, passed_s: float) -> Stalled | None:
        self._told.clear()
        return super().look(passed_s)


@pytest.mark.parametrize("wrong", [CountsWhatItSlept, SeesNoChunks, SaysItAgain])
def test_a_wrong_watch_is_caught(wrong: type[StallWatch], caught: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StallStates, "watch_of", wrong)
    assert isinstance(caught(StallStates), AssertionError)


def test_a_read_that_hangs_is_named_while_it_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "model.h5", ModelSpec("small", 50, 48, 16, 16, 2, 2, 32))
    hangs, told, reads, read = threading.Event(), list[Stalled](), [0], WeightsOnDisk.read

    def hang(self: WeightsOnDisk, offset: int, into: npt.NDArray[np.uint8], arrived: Any = None) -> None:
        reads[0] += 1
        if reads[0] == 12:
            hangs.wait(60)
        read(self, offset, into, arrived)

    def on_stall(stalled: Stalled) -> None:
        told.append(stalled)
        hangs.set()

    monkeypatch.setattr(WeightsOnDisk, "read", hang)
    with load(tmp_path / "model.h5", policy=Policy(Shares(0, 0, 1))) as engine:
        with StallWatch(engine.session, 0.05, on_stall, look_every_s=0.02):
            found = engine.generate([[1, 2, 3]], Request(6, ignore_eos=True)).outputs[0]
        assert not engine.session.mover.board.now()
    assert len(found.token_ids) == 6
    assert told
    assert told[0].work.lane == "disk_in"
    assert told[0].work.what.endswith(("weights", "token rows"))


def test_the_watch_ends_with_its_block() -> None:
    session: Any = Watched()
    session.board.begin("disk_in", "layer 3 weights", "disk->host", 5)
    seen = threading.Event()
    with StallWatch(session, 0.0, lambda stalled: seen.set(), look_every_s=0.01) as watch:
        assert seen.wait(30)
    assert not watch._thread.is_alive()
