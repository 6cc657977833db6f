"""The mover keeps its promises: when it has settled nothing runs, a failure is raised once, broken waiting shows."""

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flexref_numpy import NumpyBackend

from flexref.errors import StorageError
from flexref.tiers import transfer
from flexref.tiers.mover import Mover
from flexref.tiers.pool import Arena
from flexref.tiers.transfer import Copy, Gather, Region, Traffic
from flexref.units import Kind, Tier

LATE_S = 0.05
"""Work that takes so long is still under way when the next line runs."""


def work(call: Any, what: str = "work of a test") -> Gather:
    return Gather(Kind.WEIGHTS, what, 0, 0, call)


@pytest.fixture
def port() -> Iterator[NumpyBackend]:
    made = NumpyBackend(1 << 16)
    yield made
    made.close()


def fail() -> None:
    raise StorageError("the disk says no")


def test_a_failure_is_raised_once_when_nothing_runs_any_more(port: NumpyBackend) -> None:
    mover, ended = Mover(port, Traffic()), []
    mover.submit("disk_in", [work(fail)], ())
    mover.submit("cache_in", [work(lambda: time.sleep(LATE_S)), work(lambda: ended.append(True))], ())
    with pytest.raises(StorageError, match="says no"):
        mover.settle()
    assert ended
    assert not mover.abandoned
    mover.settle()
    mover.harvest()
    mover.run("disk_in", [work(lambda: ended.append(True))])
    assert len(ended) == 2


def test_a_submission_whose_ticket_was_lost_is_waited_for(port: NumpyBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    mover, ended, submit = Mover(port, Traffic()), [], port.submit

    def lose(lane: str, steps: Any, after: Any) -> Any:
        submit(lane, steps, after)
        monkeypatch.setattr(port, "submit", submit)
        raise KeyboardInterrupt  # between the port's call and the note of its ticket

    monkeypatch.setattr(port, "submit", lose)
    with pytest.raises(KeyboardInterrupt):
        mover.run("disk_in", [work(lambda: time.sleep(LATE_S)), work(lambda: ended.append(True))])
    assert ended


def test_waiting_that_is_broken_off_shows(port: NumpyBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    mover = Mover(port, Traffic())

    def interrupt() -> Any:
        raise KeyboardInterrupt

    mover.settle()
    assert not mover.abandoned
    monkeypatch.setattr(port, "mark", interrupt)
    with pytest.raises(KeyboardInterrupt):
        mover.settle()
    assert mover.abandoned


@pytest.mark.parametrize("first", [0, 1])
def test_waiting_that_was_broken_off_beside_is_not_begun_again(
    port: NumpyBackend, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """What hangs need be given up once, and not once for every mover that has something on a lane."""
    main = Mover(port, Traffic())
    movers, over = (main, main.beside()), threading.Event()
    for mover, lane in zip(movers, ("disk_in", "loading"), strict=True):
        mover.submit(lane, [work(lambda: over.wait(10 * LATE_S) and None)], ())

    def interrupt() -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(movers[first]._open[0][2], "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            movers[first].settle()
    assert all(mover.abandoned for mover in movers)
    begin_s = time.perf_counter()
    movers[1 - first].settle()
    assert time.perf_counter() - begin_s < 5 * LATE_S
    assert all(mover.abandoned for mover in movers)
    over.set()


def test_the_check_comes_after_a_run_and_may_end_the_work(port: NumpyBackend) -> None:
    done: list[str] = []

    def check() -> None:
        assert done == ["copied"]
        done.append("checked")
        raise KeyboardInterrupt

    mover = Mover(port, Traffic(), check)
    with pytest.raises(KeyboardInterrupt):
        mover.run("disk_in", [work(lambda: done.append("copied"))])
    assert done == ["copied", "checked"]
    assert not mover.abandoned
    mover.settle()


def test_a_peak_starts_again_from_what_is_held() -> None:
    arena = Arena(Tier.HOST, None, lambda nbytes: np.empty(nbytes, np.uint8), lambda place: None)
    kept, gone = arena.take("kept", 4096), arena.take("gone", 8192)
    arena.give_back("gone", gone)
    assert arena.peak_bytes == 3 * 4096
    arena.restart_peak()
    assert arena.peak_bytes == arena.held_bytes == 4096
    arena.give_back("kept", kept)
    assert arena.peak_bytes == 4096


class Asked(type):
    def __instancecheck__(cls, instance: object) -> bool:
        raise AssertionError("a look at all members of a file takes a tenth of a millisecond, for every copy")


class Untold(metaclass=Asked):
    """In the place of a protocol."""


@pytest.mark.parametrize(
    ("tier", "direct", "written"), [("device", False, 0), ("disk", False, 9), ("disk", True, 8192)]
)
def test_counting_a_copy_asks_a_file_for_no_more_than_whether_it_is_direct(
    port: NumpyBackend, monkeypatch: pytest.MonkeyPatch, tier: str, direct: bool, written: int
) -> None:
    monkeypatch.setattr(transfer, "FileOfPieces", Untold)
    place: Any = port.allocate("device", 8192) if tier == "device" else SimpleNamespace(direct=direct)
    source, target = Region(Tier.HOST, port.allocate("host", 9), 0, 9), Region(Tier(tier), place, 4090, 9)
    traffic = Traffic()
    traffic.started(Copy(Kind.CACHE, "records", source, target))
    (flow,) = traffic.flows.values()
    assert (flow.nbytes, flow.written_bytes) == (9, written)
