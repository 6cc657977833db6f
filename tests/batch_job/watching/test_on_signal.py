"""SIGUSR1 prints where the job stands, also while the main thread is in a call that lasts, and disturbs nothing."""

import os
import queue
import select
import signal
import threading
from collections.abc import Iterator
from ctypes import CDLL, c_char

import pytest

from flexref.batch_job.states import JobFacts, JobState
from flexref.batch_job.watching.on_signal import StateOnSignal
from flexref.batch_job.watching.pace import JobPace
from flexref.policy import Policy

FACTS = JobFacts("small", "numpy", Policy(), "in.jsonl", "out.jsonl", 1000)

PATIENCE_S = 60

Said = queue.Queue[str]


@pytest.fixture
def said() -> Said:
    return queue.Queue()


@pytest.fixture
def pace() -> JobPace:
    pace = JobPace(lambda: 0.0)
    pace.begin(FACTS)
    pace.passed(JobState(1.0, 1.0, passes=1))
    return pace


@pytest.fixture
def on_signal(said: Said, pace: JobPace) -> Iterator[StateOnSignal]:
    watcher = StateOnSignal(pace, said.put, lambda: said.put("also"), lambda: 5.0)
    yield watcher
    watcher.close()


def send() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


def test_it_prints_a_line_for_every_signal(on_signal: StateOnSignal, said: Said, pace: JobPace) -> None:
    for _ in range(3):
        send()
        assert said.get(timeout=PATIENCE_S).endswith("pass 1 ended 5 s ago")
        assert said.get(timeout=PATIENCE_S) == "also"
    pace.passed(JobState(2.0, 2.0, passes=2))
    send()
    assert "pass 2" in said.get(timeout=PATIENCE_S)


def test_it_prints_while_the_main_thread_is_in_a_call_that_lasts(on_signal: StateOnSignal, said: Said) -> None:
    """A call that holds the interpreter in C, where Python runs no handler: it ends when the line has been printed."""
    read_end, write_end = os.pipe()

    def wait_for_line() -> None:
        send()
        line = said.get(timeout=PATIENCE_S)
        os.write(write_end, line[:1].encode())

    thread = threading.Thread(target=wait_for_line)
    thread.start()
    letter = bytearray(1)
    assert (
        CDLL(None).read(read_end, (c_char * 1).from_buffer(letter), 1) == 1
    )  # not interrupted: the call of the system goes on
    assert bytes(letter) == b"6"
    thread.join()
    os.close(read_end)
    os.close(write_end)


def test_a_signal_before_the_job_begins_ends_nothing(said: Said) -> None:
    watcher = StateOnSignal(JobPace(), said.put)
    try:
        send()
        assert said.get(timeout=PATIENCE_S) == "the job has not begun yet"
    finally:
        watcher.close()


def test_what_was_there_before_is_there_afterwards(said: Said, pace: JobPace) -> None:
    heard: list[int] = []
    former = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    mine = signal.getsignal(signal.SIGUSR1)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    wakeup = signal.set_wakeup_fd(write_end)
    try:
        watcher = StateOnSignal(pace, said.put, clock=lambda: 5.0)
        send()
        said.get(timeout=PATIENCE_S)
        assert select.select([read_end], [], [], PATIENCE_S)[0]  # whoever waits there hears of it, too
        assert os.read(read_end, 10) == bytes([signal.SIGUSR1])
        assert heard == []
        watcher.end(JobState(1.0), "done")
        watcher.close()
        assert signal.getsignal(signal.SIGUSR1) is mine
        send()
        assert heard == [signal.SIGUSR1]
    finally:
        assert signal.set_wakeup_fd(wakeup) == write_end
        signal.signal(signal.SIGUSR1, former)
        os.close(read_end)
        os.close(write_end)


def test_outside_the_main_thread_it_does_nothing(said: Said, pace: JobPace) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    thread = threading.Thread(target=lambda: StateOnSignal(pace, said.put).close())
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGUSR1) is before
