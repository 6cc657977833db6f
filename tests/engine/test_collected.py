"""Streams and engines that are dropped in a circle of references, and collected by the thread of a lane."""

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flexref.architecture.spec import ModelSpec
from flexref.check.models import write_model
from flexref.engine.engine import Engine
from flexref.engine.request import Request, RowRequest
from flexref.loading import load
from flexref.policy import Policy, Shares
from flexref.tiers.disk import WeightsOnDisk

SPEC = ModelSpec("small", 50, 48, 16, 16, 2, 2, 32)
POLICY = Policy(Shares(0, 0, 1), Shares(0, 1, 0), Shares(0, 1, 0), rows_per_group=2)
REQUEST = Request(6, ignore_eos=True)
PATIENCE_S = 30.0
"""Bounds how long a test waits for what should happen at once."""

READ_S = 0.1
"""So long a lane is in every read, so that it is in one when a stream is left."""


class Collector:
    """Collects what was dropped, once, in the thread of the lane that reads weights while it reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.armed, self.done, self.thread = threading.Event(), threading.Event(), ""
        read = WeightsOnDisk.read

        def collecting(disk: WeightsOnDisk, *arguments: Any) -> None:
            name = threading.current_thread().name
            if "lane" in name and not self.thread and self.armed.wait(READ_S):
                self.thread = name
                gc.collect()
                self.done.set()
            read(disk, *arguments)

        monkeypatch.setattr(WeightsOnDisk, "read", collecting)

    def collect(self) -> None:
        """Once it returns, a lane has collected all that was dropped."""
        self.armed.set()
        assert self.done.wait(PATIENCE_S), f"{self.thread or 'no lane'} does not come back"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Of this test alone: nothing else is collected meanwhile."""
    gc.collect()
    gc.disable()
    yield Collector(monkeypatch)
    gc.enable()


def drop_in_a_circle(*things: object) -> None:
    circle: list[object] = [*things]
    circle.append(circle)


def suspended(engine: Engine) -> Iterator[Any]:
    stream = engine.stream([[1, 2, 3]], REQUEST)
    next(stream)
    return stream


def test_a_stream_that_a_lane_collects_frees_the_engine(tmp_path: Path, collector: Collector) -> None:
    write_model(tmp_path / "model.h5", SPEC)
    with load(tmp_path / "model.h5", policy=POLICY) as engine:
        drop_in_a_circle(suspended(engine))
        collector.collect()
        assert len(engine.generate([[1, 2, 3]], REQUEST).outputs[0].token_ids) == 6


def test_an_engine_that_is_closed_when_a_lane_has_collected_its_stream_waits_for_its_end(
    tmp_path: Path, collector: Collector
) -> None:
    write_model(tmp_path / "model.h5", SPEC)
    engine = load(tmp_path / "model.h5", policy=POLICY)
    drop_in_a_circle(suspended(engine))
    collector.collect()
    engine.close()
    assert all(not arena.holders.keys() - {"scratch"} for arena in engine.session.arenas.values())


@pytest.mark.filterwarnings("ignore:an engine was dropped")
def test_an_engine_that_one_of_its_lanes_collects_with_its_stream_is_closed(
    tmp_path: Path, collector: Collector
) -> None:
    write_model(tmp_path / "model.h5", SPEC)
    threads = set(threading.enumerate())
    engine = load(tmp_path / "model.h5", policy=POLICY)
    drop_in_a_circle(engine, suspended(engine))
    del engine
    collector.collect()
    end_s = time.monotonic() + PATIENCE_S
    while set(threading.enumerate()) - threads and time.monotonic() < end_s:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= threads


def test_a_stream_that_its_own_requests_refer_to_is_collected_and_frees_the_engine(tmp_path: Path) -> None:
    """Requests that depend on results refer to the stream, and the engine to what is left of its job."""
    write_model(tmp_path / "model.h5", SPEC)
    with load(tmp_path / "model.h5", policy=POLICY) as engine:
        begin_in_a_circle(engine)
        gc.collect()
        assert len(engine.generate([[1, 2, 3]], REQUEST).outputs[0].token_ids) == 6


def begin_in_a_circle(engine: Engine) -> None:
    results = list[Iterator[Any]]()

    def requests() -> Iterator[RowRequest]:
        while results:
            yield RowRequest([1, 2, 3], REQUEST)

    results.append(engine.run(requests()))
    next(results[0])
