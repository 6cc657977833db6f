"""Threads that share an operator: every unit once, with scratch of one's own; several callers, none lost, none left."""

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.backend.compiling import CompileTime

threads = pytest.importorskip("flexref_numba.threads", reason="numba is not installed")
compiled = pytest.importorskip("flexref_numba.compiled", reason="numba is not installed")


def make_marks(step: int) -> Callable[..., Any]:
    """Adds to a unit's mark, and to the first number of a thread's scratch for a while; tells how often others did."""
    from flexref_numba.kernels.sharing import take_and_add

    def marks(address, first, last, weight: float, busy, scratch) -> int:  # type: ignore[no-untyped-def]
        interferes = 0
        for unit in range(first, last):
            before = take_and_add(scratch, 1)
            for _ in range(busy):
                interferes += take_and_add(scratch, 0) != before + 1
            take_and_add(address + 8 * unit, step * int(weight))
            take_and_add(scratch, -1)
        return interferes

    return marks


@pytest.fixture(scope="module")
def functions() -> Any:
    return compiled.Functions(CompileTime())


@pytest.fixture(scope="module")
def some(functions: Any) -> Iterator[Any]:
    made = threads.Threads(4, functions)
    yield made
    made.close()


def shared(some: Any, functions: Any, units: int, wanted: int, busy: int = 1000) -> tuple[Any, int]:
    marks = np.zeros(max(1, units), np.int64)
    call = functions.shared(make_marks, 5)
    found = some.share(call, (threads.address_of(marks), 2.0, busy), units, wanted, 64)
    return marks[:units], found


@given(units=st.integers(0, 300), wanted=st.integers(1, 9), callers=st.integers(1, 4))
def test_every_unit_is_called_once_by_a_thread_with_scratch_of_its_own(
    some: Any, functions: Any, units: int, wanted: int, callers: int
) -> None:
    found: list[tuple[Any, int]] = []
    asking = [
        threading.Thread(target=lambda: found.append(shared(some, functions, units, wanted))) for _ in range(callers)
    ]
    for caller in asking:
        caller.start()
    for caller in asking:
        caller.join()
    assert len(found) == callers
    for marks, interferes in found:
        assert (marks == 10).all()
        assert interferes == 0
    assert some._board[3 * 8] == 0  # nobody is counted as working


def make_lengths() -> Callable[..., Any]:
    """Leaves at its first unit how many it was called for."""
    from flexref_numba.kernels.sharing import take_and_add

    def lengths(address, first, last, scratch) -> None:  # type: ignore[no-untyped-def]
        take_and_add(address + 8 * first, last - first)

    return lengths


@given(units=st.integers(0, 300), wanted=st.integers(1, 4), step=st.integers(1, 30))
def test_units_are_divided_at_multiples_of_a_step(
    some: Any, functions: Any, units: int, wanted: int, step: int
) -> None:
    found = np.zeros(units + 1, np.int64)
    some.share(functions.shared(make_lengths), (threads.address_of(found),), units, wanted, step=step)
    assert found.sum() == units
    assert (np.flatnonzero(found) % step == 0).all()


def test_more_threads_than_parts_or_than_there_are_change_nothing(functions: Any) -> None:
    alone = threads.Threads(1, functions)
    marks, _ = shared(alone, functions, 7, 9)
    assert (marks == 10).all()
    assert not alone._helpers
    alone.close()


def test_threads_end_when_they_are_closed_and_then_share_nothing(functions: Any) -> None:
    some = threads.Threads(3, functions)
    shared(some, functions, 50, 3)
    helpers = list(some._helpers)
    assert [helper.is_alive() for helper in helpers] == [True, True]
    some.close()
    assert not any(helper.is_alive() for helper in helpers)
    with pytest.raises(RuntimeError, match="have ended"):
        shared(some, functions, 50, 3)


def test_a_helper_that_comes_late_is_not_waited_for(functions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that the system starts late, or never: after a fork a copy of the process has none of them."""
    some = threads.Threads(3, functions)
    monkeypatch.setattr(threading.Thread, "start", lambda self: None)
    for _ in range(3):
        marks, _ = shared(some, functions, 50, 3)
        assert (marks == 10).all()
    monkeypatch.undo()
    some._helpers.clear()
    some.close()


def test_that_the_system_has_no_thread_is_said_and_nothing_is_left_half_done(
    functions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = threads.Threads(3, functions)

    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(RuntimeError, match="start new thread"):
        shared(some, functions, 50, 3)
    monkeypatch.undo()
    marks, _ = shared(some, functions, 50, 3)
    assert (marks == 10).all()
    some.close()


def make_places() -> Callable[..., Any]:
    """Leaves where the scratch of each unit lies, after a while."""
    from flexref_numba.kernels.sharing import take_and_add

    def places(address, first, last, busy, scratch) -> None:  # type: ignore[no-untyped-def]
        for unit in range(first, last):
            for _ in range(busy):
                take_and_add(scratch, 0)
            take_and_add(address + 8 * unit, scratch)

    return places


@given(wanted=st.integers(1, 4), lines=st.integers(1, 4))
def test_whichever_threads_begin_their_scratch_is_among_as_many_parts_as_were_wanted(
    some: Any, functions: Any, wanted: int, lines: int
) -> None:
    shared(some, functions, 50, 4)  # there are more threads than may be wanted
    found = np.zeros(50, np.int64)
    call = functions.shared(make_places)
    some.share(call, (threads.address_of(found), 2000), len(found), wanted, 64 * lines)
    parts = (found - found.min()) // (64 * lines)
    assert (found % 64 == 0).all()
    assert parts.max() < wanted


def test_threads_of_what_was_dropped_end_too(functions: Any) -> None:
    some = threads.Threads(3, functions)
    shared(some, functions, 50, 3)
    helpers = list(some._helpers)
    del some
    for helper in helpers:
        helper.join(60)
        assert not helper.is_alive()


def test_a_thread_whose_beginning_was_interrupted_disturbs_nobody_and_ends(
    functions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = threads.Threads(3, functions)
    start, begun = threading.Thread.start, []

    def interrupted(self: threading.Thread) -> None:
        start(self)
        begun.append(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            shared(some, functions, 50, 3)
    for _ in range(50):
        marks, interferes = shared(some, functions, 50, 3)
        assert (marks == 10).all()
        assert interferes == 0
    begun += some._helpers
    some.close()
    assert len(begun) == 3
    for helper in begun:
        helper.join(60)
        assert not helper.is_alive()


def test_a_forked_process_begins_threads_of_its_own(functions: Any) -> None:
    some = threads.Threads(3, functions)
    shared(some, functions, 50, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks beside threads: they are the test
        child = os.fork()
    if not child:
        signal.alarm(60)
        try:
            marks, _ = shared(some, functions, 50, 3)
            alive = [helper.is_alive() for helper in some._helpers]
            some.close()
            os._exit(0 if (marks == 10).all() and alive == [True, True] else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    some.close()
