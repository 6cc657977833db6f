"""Threads that share an operator: every unit once, with scratch of one's own; several callers, none lost, none left."""

import threading
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
