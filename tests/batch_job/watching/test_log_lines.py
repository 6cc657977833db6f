"""The log of a job: an object a line, and a reader who is slow or has gone ends nothing."""

import json
import logging
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from flexref.batch_job.states import JobEvent, JobFacts, JobState
from flexref.batch_job.watching.log_lines import LINES_MOST, JsonLog
from flexref.batch_job.watching.pace import JobPace
from flexref.errors import StorageError
from flexref.policy import Policy

FACTS = JobFacts("small", "numpy", Policy(), "in.jsonl", "out.jsonl", 1000, rates={"disk->host": 1e9})
STATE = JobState(
    12.5,
    12.0,
    lines_done=7,
    lines_failed=1,
    passes=3,
    live_rows=8,
    places=8,
    prompt_tokens=20,
    generated_tokens=50,
    link_bytes={"disk->host": {"weights": 100}},
    link_s={"disk->host": {"weights": 1.5}},
    timed_bytes={"disk->host": {"weights": 90}},
    timed_copies={"disk->host": {"weights": 9}},
    lane_busy_s={"disk_in": 1.5},
    held_bytes={"device": 5, "host": 6, "disk": 7},
    budget_bytes={"device": 50, "host": None, "disk": None},
    faults=1,
)


class Clock:
    """A second a call."""

    calls = 0

    def __call__(self) -> datetime:
        self.calls += 1
        return datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=self.calls)


def run(log: JsonLog, pace: JobPace) -> None:
    """A short job."""
    for watcher in (pace, log):
        watcher.begin(FACTS)
    for at_s in (1.0, 9.9, 10.0, 12.0, 19.9, 20.5, 31.0):
        state = JobState(at_s, at_s, passes=int(at_s))
        pace.passed(state)
        log.passed(state)
    log.happened(JobEvent(32.0, "warning", "a link is slow", {"link": "disk->host", "share": 0.3, "left_s": None}))
    for watcher in (pace, log):
        watcher.end(STATE, "paused")
    log.close()


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_log_has_a_line_for_everything_and_a_state_every_ten_seconds(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    pace = JobPace()
    run(JsonLog(str(path), pace, Clock()), pace)
    lines = lines_of(path.read_text())
    assert [line["type"] for line in lines] == ["begin", "state", "state", "state", "event", "state", "end"]
    assert [line["at_s"] for line in lines[1:]] == [10.0, 20.5, 31.0, 32.0, 12.5, 12.5]
    assert lines[0]["time"] == "2026-01-01T00:00:01.000Z"
    assert lines[-1]["ending"] == "paused"
    assert lines[-2]["tokens_per_s"] > 0


def test_a_log_that_is_there_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"type": "begin"}\n')
    pace = JobPace()
    run(JsonLog(str(path), pace), pace)
    assert len(lines_of(path.read_text())) == 8


def test_the_log_may_be_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    pace = JobPace()
    run(JsonLog("-", pace), pace)
    assert len(lines_of(capfd.readouterr().out)) == 7
    os.write(1, b"still open\n")
    assert capfd.readouterr().out == "still open\n"


def test_a_log_that_cannot_be_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no/log: the log cannot be written: No such file or directory"):
        JsonLog(str(tmp_path / "no" / "log"), JobPace())


def test_a_reader_who_has_gone_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    pace = JobPace()
    log = JsonLog(str(pipe), pace)
    os.close(reader)
    with caplog.at_level(logging.WARNING, "flexref"):
        run(log, pace)
    assert caplog.messages == [f"nothing more is logged to {pipe}: Broken pipe"]


def test_a_reader_who_is_slow_holds_nothing_up_and_is_told_what_was_left_out(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    log = JsonLog(str(pipe), JobPace())
    text = "x" * 1000
    for number in range(3 * LINES_MOST):  # more than the pipe and those that wait have room for
        log.happened(JobEvent(number, "warning", text))
    os.set_blocking(reader, True)
    with open(reader, encoding="utf-8") as stream:
        first = [json.loads(stream.readline()) for _ in range(LINES_MOST)]
        log.happened(JobEvent(0.0, "fault", "the last"))
        found = first
        while found[-1]["text"] != "the last":
            found.append(json.loads(stream.readline()))
    assert len(found) + sum(line.get("lines_left_out", 0) for line in found) == 3 * LINES_MOST + 1
    log.close()
