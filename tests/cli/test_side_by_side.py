"""Calls in several processes: results in their order, failures told, and nothing left behind."""

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from flexref.cli.side_by_side import side_by_side
from flexref.errors import FlexrefError

SLEEPERS = "from flexref.cli.side_by_side import side_by_side; import time; print('on', flush=True); "


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Beside those that there were: other tests' clusters may still be there."""
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) <= before


def several(calls: list[tuple[object, ...]]) -> bool:
    """Whether calls get processes at all on this machine."""
    return min(len(os.sched_getaffinity(0)), len(calls) - 1) > 1


@pytest.mark.parametrize("pool_from_s", [0.0, math.inf])
def test_results_come_in_the_order_of_the_calls(pool_from_s: float) -> None:
    calls = [(number,) for number in (9, 16, 4, 25, 1)]
    assert list(side_by_side(math.isqrt, calls, pool_from_s=pool_from_s)) == [3, 4, 2, 5, 1]
    assert list(side_by_side(math.isqrt, [], pool_from_s=pool_from_s)) == []


def test_quick_calls_stay_in_this_process() -> None:
    assert set(side_by_side(os.getpid, [()] * 4)) == {os.getpid()}


def test_slow_calls_get_processes() -> None:
    calls: list[tuple[object, ...]] = [()] * 4
    found = list(side_by_side(os.getpid, calls, pool_from_s=0.0))
    assert found[0] == os.getpid()
    assert (os.getpid() not in found[1:]) == several(calls)


def test_a_failure_is_raised_in_its_place_and_ends_the_others() -> None:
    calls = [(4,), (9,), (-1,), (16,)]
    found = side_by_side(math.isqrt, calls, pool_from_s=0.0)
    assert [next(found), next(found)] == [2, 3]
    with pytest.raises(ValueError, match="nonnegative"):
        next(found)


def test_a_process_that_is_killed_is_said() -> None:
    calls: list[tuple[object, ...]] = [(0, 0), (0, signal.SIGKILL), (0, signal.SIGKILL)]
    if not several(calls):
        pytest.skip("one core: there are no processes to be killed")
    found = side_by_side(_kill_me, calls, pool_from_s=0.0)
    next(found)
    with pytest.raises(FlexrefError, match="has been ended"):
        next(found)


def _kill_me(_: int, number: int) -> None:
    if number:
        os.kill(os.getpid(), number)


def test_an_interrupt_ends_all_processes() -> None:
    code = SLEEPERS + "list(side_by_side(time.sleep, [(0,), (600,), (600,)], pool_from_s=0.0))"
    calling = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert calling.stdout is not None
        calling.stdout.readline()
        wanted = 2 if several([(), (), ()]) else 0
        children: list[psutil.Process] = []
        until = time.monotonic() + 60
        while time.monotonic() < until and len(children) < wanted:
            own = psutil.Process(calling.pid).children(recursive=True)
            children = [child for child in own if "spawn_main" in " ".join(child.cmdline())]
            time.sleep(0.05)
        time.sleep(1.0)  # until they are at work
        calling.send_signal(signal.SIGINT)
        _, complaint = calling.communicate(timeout=60)
    finally:
        calling.kill()
    assert "KeyboardInterrupt" in complaint
    assert psutil.wait_procs(children, timeout=30)[1] == []
