"""What a job whose disk hangs leaves where it stands: one line, and a terminal as it was."""

import sys
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from rich.live import Live

from flexref.batch_job.stall import Stalled
from flexref.cli.batch.watched import ends_at_once
from flexref.cli.show.console import table_console
from flexref.errors import StorageError
from flexref.tiers.open_work import OpenWork


def test_a_job_that_hangs_says_what_it_cannot_sync(capsys: Any) -> None:
    """In the one line that it ends with, and not as a traceback of a thread."""

    class Full:
        def commit(self) -> None:
            raise StorageError("the disk is full")

    left = list[int]()
    job: Any = SimpleNamespace(keeper=Full())
    ends_at_once(job, left.append)(Stalled(OpenWork("disk_in", "layer 3 weights", "disk->host", 5, 1), 600.0))
    (line,) = capsys.readouterr().err.splitlines()
    assert "has made no progress for 600 s" in line
    assert "the disk is full" in line
    assert left == [1]


def test_a_job_that_hangs_gives_the_terminal_its_cursor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    job: Any = SimpleNamespace(keeper=SimpleNamespace(commit=lambda: None))
    table = Live(console=table_console(err=True), auto_refresh=False)
    table.start()
    ends_at_once(job, lambda code: None)(Stalled(OpenWork("disk_in", "token rows", "disk->host", 5, 1), 600.0))
    shown = terminal.getvalue()
    table.stop()
    assert "has made no progress" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
