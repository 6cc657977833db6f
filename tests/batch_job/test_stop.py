"""A signal stops a job after its pass, or where it stands if no pass comes; a second one ends it at once."""

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from flexref.batch_job.stop import STOPPING, Stop
from flexref.engine.interrupts import Interrupts
from flexref.errors import JobPaused

NAMES = [signal.Signals(number).name for number in STOPPING]


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOPPING}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in STOPPING[1:]:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOPPING)
def test_the_first_is_noted_and_acts_after_the_pass(number: int) -> None:
    stop = Stop()
    with stop.on_signals():
        stop.check()
        send(number)
        assert stop.reason == signal.Signals(number).name
        with pytest.raises(JobPaused, match=signal.Signals(number).name):
            stop.check()


@pytest.mark.parametrize("number", STOPPING)
def test_before_the_first_pass_it_ends_the_job_where_it_stands(number: int) -> None:
    with pytest.raises(JobPaused, match=signal.Signals(number).name), Stop().on_signals():
        send(number)


@pytest.mark.parametrize("number", STOPPING)
def test_an_engine_at_work_holds_it_back_before_the_first_pass(number: int) -> None:
    stop, interrupts, reached = Stop(), Interrupts(), False
    with stop.on_signals(), interrupts:
        send(number)
        reached = True
        with pytest.raises(JobPaused, match=signal.Signals(number).name):
            interrupts.check()
    assert reached


@pytest.mark.parametrize("first", STOPPING)
@pytest.mark.parametrize("second", STOPPING)
def test_a_second_one_ends_it_at_once(first: int, second: int) -> None:
    stop = Stop()
    with stop.on_signals():
        stop.check()
        send(first)
        with pytest.raises(KeyboardInterrupt):
            send(second)


def test_afterwards_all_is_as_it_was_and_what_was_ignored_stays_so() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    before = [signal.getsignal(number) for number in STOPPING]
    stop = Stop()
    with stop.on_signals():
        send(signal.SIGHUP)
        stop.check()
        assert stop.reason is None
    assert [signal.getsignal(number) for number in STOPPING] == before


def test_in_another_thread_nothing_is_changed() -> None:
    before, seen = [signal.getsignal(number) for number in STOPPING], list[Any]()

    def other() -> None:
        with Stop().on_signals():
            seen.extend(signal.getsignal(number) for number in STOPPING)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == before
