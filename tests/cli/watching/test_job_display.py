"""What a job shows of itself: a table on a terminal of any width, plain lines elsewhere, nothing if so asked."""

import io
import logging
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flexref.batch_job.states import FILE_OF_FAULT, JobEvent, JobFacts, JobState, Watcher
from flexref.batch_job.watching.disk_bound import DiskWrites
from flexref.batch_job.watching.log_lines import JsonLog
from flexref.batch_job.watching.pace import JobPace
from flexref.cli.logs import logging_at
from flexref.cli.watching.job_display import JobLines, JobTable, rows_said
from flexref.cli.watching.watch_options import WatchOptions, watchers_of
from flexref.engine.events import Event, FaultSeen, logged
from flexref.errors import BatchError, JobPaused, StorageError, WrongCall
from flexref.policy import Policy

FACTS = JobFacts("opt-30b", "cupy", Policy(), "in.jsonl", "out.jsonl", 1_000_000, rates={"disk->host": 2e9})

STATE = JobState(
    40.0,
    30.0,
    lines_done=123_456,
    lines_failed=17,
    passes=9,
    live_rows=59,
    places=64,
    prompt_tokens=3000,
    generated_tokens=1500,
    link_bytes={"disk->host": {"weights": 30_000_000_000}, "host->device": {"weights": 5, "cache": 7}},
    lane_busy_s={"disk_in": 15.0, "compute": 27.0},
    held_bytes={"device": 15 << 30, "host": 70 << 30, "disk": 0},
    budget_bytes={"device": 16 << 30, "host": 96 << 30, "disk": None},
    faults=2,
)

CODES = re.compile("\x1b\\[([0-9;?]*)([A-Za-z])")


def shown_on(console: Console) -> None:
    """The table of a job on this console, drawn once more before it ends."""
    pace = JobPace(lambda: 0.0)
    table = JobTable(console, pace, lambda: 3.0)
    for watcher in (pace, table):
        watcher.begin(FACTS)
    pace.passed(STATE)
    assert table._live is not None
    table._live.refresh()
    pace.happened(JobEvent(38.0, "retry", "layer 3 was read again"))
    table._live.refresh()
    table.end(STATE, "done")
    table.close()


def test_a_table_says_where_the_job_stands() -> None:
    console = Console(file=io.StringIO(), width=80)
    pace = JobPace(lambda: 0.0)
    table = JobTable(console, pace, lambda: 3.0)
    console.print(table)  # nothing before the job begins
    pace.begin(FACTS)
    pace.passed(STATE)
    pace.happened(JobEvent(38.0, "retry", "layer 3 was read again"))
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    rows = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert rows[:-1] == [
        "job        in.jsonl -> out.jsonl, opt-30b on cupy",
        "lines      123456 of 1000000 lines (17 failed), 12%",
        "tokens     50 per second now, 50 over all",
        "read       100 per second now, 100 over all (of prompts)",
        "time       43 s so far, 3 min 33 s left, pass 9 ended 3 s ago",
        "occupancy  59 of 64 places, 92%",
        "lanes      compute 90%, disk_in 50%",
        "links      disk->host 1 GB/s (50%), host->device 0.4 B/s",
        "memory     device 15.00 GiB of 16.00 GiB, host 70.00 GiB of 96.00 GiB,",
        "           disk 0 bytes",
        "faults     2, latest: retry, 5 s ago",
    ]
    assert set(rows[-1]) <= set("━╸╺─-")


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=60, _environ={"TERM": "xterm"})
    shown_on(console)
    assert isinstance(console.file, io.StringIO)
    text = CODES.sub("", console.file.getvalue())
    lines = re.split("[\r\n]+", text)
    assert max(map(len, lines)) <= width
    assert "in.jsonl" in text


def test_without_colour_there_are_only_codes_that_move() -> None:
    environment = {"TERM": "xterm-256color", "NO_COLOR": "1"}
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=40, _environ=environment)
    shown_on(console)
    assert isinstance(console.file, io.StringIO)
    codes = CODES.findall(console.file.getvalue())
    assert codes
    assert {figures for figures, letter in codes if letter == "m"} <= {"0", "1"}


class Clock:
    """A clock that goes as it is told."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_elsewhere_a_line_comes_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", lambda thread: None)
    monkeypatch.setattr(threading.Thread, "join", lambda *_: None)
    clock, said = Clock(), []
    pace = JobPace(clock)
    lines = JobLines(pace, said.append, clock)
    for watcher in (pace, lines):
        watcher.begin(FACTS)
    assert lines._lines is not None
    while clock.now_s < 100:
        clock.now_s += lines._lines.write_due()
        pace.passed(replace(STATE, at_s=clock.now_s, working_s=clock.now_s))
    assert len(said) == 5
    assert said[0].startswith("5 s: 123456 of 1000000 lines (17 failed), ")
    lines.end(STATE, "done")


@pytest.fixture
def told() -> list[tuple[str, str, Mapping[str, Any]]]:
    return []


def job(watchers: list[Watcher]) -> Iterator[None]:
    for watcher in watchers:
        watcher.begin(FACTS)
    yield
    for watcher in watchers:
        watcher.happened(JobEvent(1.0, "retry", "layer 3 was read again"))
    for watcher in watchers:
        watcher.end(STATE, "done")


@pytest.mark.parametrize(
    ("level", "expected"), [(logging.WARNING, "retry: layer 3 was read again\n"), (logging.ERROR, "")]
)
def test_events_are_told_on_stderr_unless_errors_alone_are_wanted(
    level: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with logging_at(level), watchers_of(WatchOptions(), print, DiskWrites()) as watchers:
        list(job(watchers))
    assert capsys.readouterr() == ("", expected)


def test_a_fault_of_a_disk_which_the_engine_has_logged_is_not_told_again(capsys: pytest.CaptureFixture[str]) -> None:
    def happened(event: Event) -> None:
        assert isinstance(event, FaultSeen)
        for watcher in watchers:
            watcher.happened(JobEvent(1.0, event.kind, event.text, {FILE_OF_FAULT: event.path}))

    with logging_at(logging.WARNING), watchers_of(WatchOptions(), print, DiskWrites()) as watchers:
        logged(happened)(FaultSeen("retry", "a, byte 7: read again", "a", 7, 1, 1))
    assert capsys.readouterr() == ("", "a, byte 7: read again\n")


def test_options_make_their_watchers_and_give_up_what_they_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = WatchOptions(str(tmp_path / "log.jsonl"), 0, "127.0.0.1", 1.0)
    with watchers_of(options, print, DiskWrites()) as watchers:
        list(job(watchers))
        with pytest.raises(JobPaused):
            watchers[-1].passed(replace(STATE, spilled_bytes=2 << 30))
    said = capsys.readouterr().err
    assert said.startswith("metrics are served on http://127.0.0.1:")
    port = int(re.findall(r":(\d+)/metrics", said)[0])
    with watchers_of(replace(options, metrics_port=port), print, DiskWrites()):  # it is free again
        pass
    assert (tmp_path / "log.jsonl").read_text().count("\n") == 4


def test_what_cannot_be_had_is_refused_before_the_job_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError), watchers_of(WatchOptions(str(tmp_path)), print, DiskWrites()):
        pass
    with pytest.raises(WrongCall, match="--log-json - and -o - exclude each other"):
        WatchOptions("-").check("-")
    WatchOptions("-").check("out.jsonl")
    monkeypatch.setitem(sys.modules, "flexref.batch_job.watching.metrics", None)
    with (
        pytest.raises(BatchError, match=r"--metrics-port needs prometheus-client: pip install '.\[metrics\]'"),
        watchers_of(WatchOptions(metrics_port=0), print, DiskWrites()),
    ):
        pass


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"FORCE_COLOR": "1", "TERM": "xterm"}, JobTable),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, JobLines),
        ({}, JobLines),
    ],
)
def test_a_table_is_for_terminals_that_can_move_their_cursor(
    environment: dict[str, str], shown: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with watchers_of(WatchOptions(), print, DiskWrites()) as watchers:
        assert any(isinstance(watcher, shown) for watcher in watchers)
        for watcher in watchers:
            watcher.begin(FACTS)


def test_a_terminal_that_shows_the_log_shows_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(JsonLog, "__init__", lambda *_: None)
    monkeypatch.setattr(JsonLog, "close", lambda _: None)
    with watchers_of(WatchOptions("-"), print, DiskWrites()) as watchers:
        assert not any(isinstance(watcher, JobTable | JobLines) for watcher in watchers)


def test_of_a_job_on_other_processes_nothing_is_said_of_places_and_tiers() -> None:
    pace = JobPace(lambda: 0.0)
    pace.begin(FACTS)
    pace.passed(JobState(40.0, 40.0, lines_done=10, generated_tokens=50))
    assert pace.view is not None
    assert [name for name, _ in rows_said(pace.view, 1.0)] == ["job", "lines", "tokens", "read", "time", "faults"]
