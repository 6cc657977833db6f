"""How fast a job goes and what is left of it: as a steady job has it, and as predicted until that can be told."""

import threading
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.batch_job.states import JobEvent, JobFacts, JobState
from flexref.batch_job.watching.pace import NOW_S, JobPace, Speed, View
from flexref.batch_job.watching.state_line import state_line
from flexref.policy import Policy

FACTS = JobFacts("small", "numpy", Policy(), "in.jsonl", "out.jsonl", 1000, 100, predicted_s=700.0)


def steady(lines_per_pass: int, tokens_per_line: int, pass_s: float, passes: int, load_s: float = 0.0) -> JobState:
    """After so many passes of a job whose rows take four passes, a quarter of its places ending in each."""
    working_s = passes * pass_s
    return JobState(
        load_s + working_s,
        working_s,
        lines_done=100 + lines_per_pass * max(0, passes - 2),
        passes=passes,
        live_rows=4 * lines_per_pass,
        places=4 * lines_per_pass,
        generated_tokens=tokens_per_line * lines_per_pass * passes,
        link_bytes={"disk->host": {"weights": 1000 * passes}},
        lane_busy_s={"disk_in": working_s / 2},
    )


def speed_of(pace: JobPace) -> Speed:
    assert pace.view is not None
    return pace.view.speed()


@given(
    lines=st.integers(1, 20),
    tokens=st.integers(1, 100),
    pass_s=st.floats(0.01, 50),
    load_s=st.floats(0, 1000),
    passes=st.integers(20, 40),
)
def test_a_steady_job_ends_when_its_pace_says(
    lines: int, tokens: int, pass_s: float, load_s: float, passes: int
) -> None:
    pace = JobPace(lambda: 0.0)
    pace.begin(replace(FACTS, rates={"disk->host": 4000 / pass_s}))
    for done in range(1, passes + 1):
        pace.passed(steady(lines, tokens, pass_s, done, load_s))
    speed = speed_of(pace)
    rate = lines * tokens / pass_s
    assert abs(speed.tokens_per_s / rate - 1) < 1e-6
    assert abs(speed.tokens_per_s_now / rate - 1) < 1e-6
    assert abs(speed.lane_shares["disk_in"] - 0.5) < 1e-6
    assert abs(speed.link_shares["disk->host"] - 0.25) < 1e-6
    left_lines = 1000 - (100 + lines * (passes - 2))
    if speed.left_s:
        assert not speed.left_is_predicted
        assert abs(speed.left_s - left_lines / lines * pass_s) <= 4 * pass_s


def test_what_is_left_is_predicted_until_places_have_been_used_up() -> None:
    pace = JobPace(lambda: 0.0)
    pace.begin(FACTS)
    for passes, left_s in ((1, 690), (4, 660), (5, 650)):
        pace.passed(steady(10, 5, 10, passes, 50))
        speed = speed_of(pace)
        assert speed.left_is_predicted
        assert speed.left_s == left_s
    pace.passed(steady(10, 5, 10, 6, 50))
    speed = speed_of(pace)
    assert not speed.left_is_predicted
    assert speed.left_s == 60 * (860 - 20) / (40 + 20)


def test_nothing_is_said_of_what_is_left_where_nothing_is_known() -> None:
    unknown = replace(FACTS, predicted_s=None)
    for facts in (replace(unknown, lines=None), unknown, replace(FACTS, predicted_s=1.0)):
        pace = JobPace(lambda: 0.0)
        pace.begin(facts)
        pace.passed(steady(10, 5, 10, 1))
        assert speed_of(pace).left_s is None


def test_now_is_the_last_half_minute() -> None:
    pace = JobPace(lambda: 0.0)
    pace.begin(FACTS)
    state = JobState(0.0)
    for second in range(1, 200):
        state = JobState(second, second, passes=second, generated_tokens=10 * second if second < 100 else 1000)
        pace.passed(state)
        if second == 99:
            assert speed_of(pace).tokens_per_s_now == 10
    assert speed_of(pace).tokens_per_s_now == 0
    assert speed_of(pace).tokens_per_s == 1000 / 199
    assert pace.view is not None
    assert NOW_S <= state.at_s - pace.view.before.at_s <= NOW_S + 2


def test_a_line_says_where_the_job_stands() -> None:
    now_s = 7.0
    pace = JobPace(lambda: now_s)
    pace.begin(replace(FACTS, rates={"disk->host": 200.0}))
    assert pace.view is not None
    assert state_line(pace.view, 9.0) == (
        "2 s: 100 of 1000 lines, 0 tokens/s now, 0 over all, 11 min 40 s left as predicted, no pass has ended yet"
    )
    pace.passed(replace(steady(10, 5, 10, 8), faults=1, lines_failed=3))
    pace.happened(JobEvent(80.0, "fault", "a disk"))
    assert state_line(pace.view, 69.0) == (
        "2 min 22 s: 160 of 1000 lines (3 failed), 5 tokens/s now, 5 over all, 13 min 40 s left, 40 of 40 places, "
        "disk_in 50%, disk->host 100 B/s (50%), 1 fault, pass 8 ended 1 min 2 s ago"
    )


def test_of_a_job_on_other_processes_lines_are_enough() -> None:
    pace = JobPace(lambda: 7.0)
    pace.begin(FACTS)
    for done, left_s in ((50, 650), (100, 800), (200, 700)):
        pace.passed(JobState(done, done, lines_done=100 + done, generated_tokens=7 * done))
        assert speed_of(pace).left_s == left_s
    assert pace.view is not None
    assert state_line(pace.view, 9.0) == (
        "3 min 22 s: 300 of 1000 lines, 7 tokens/s now, 7 over all, 11 min 40 s left, heard of 2 s ago"
    )


def test_an_event_of_another_thread_loses_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread is held where it has read what there is and not written it back, until a pass has ended meanwhile."""
    pace, reached, passed = JobPace(lambda: 0.0), threading.Event(), threading.Event()
    pace.begin(FACTS)
    pace.passed(JobState(1.0, 1.0, passes=1))
    replace_in_view = View._replace

    def held(view: View, **changes: Any) -> View:
        if threading.current_thread() is not threading.main_thread():
            reached.set()
            passed.wait(0.2)  # in vain, if the pass must wait for the event
        return replace_in_view(view, **changes)

    monkeypatch.setattr(View, "_replace", held)
    event = JobEvent(1.5, "warning", "a lane makes no progress")
    thread = threading.Thread(target=lambda: pace.happened(event))
    thread.start()
    assert reached.wait(10)
    pace.passed(JobState(2.0, 2.0, passes=2))
    passed.set()
    thread.join()
    assert pace.view is not None
    assert (pace.view.state.passes, pace.view.event) == (2, event)
