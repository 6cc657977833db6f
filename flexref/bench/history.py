"""Benchmarks kept in an SQLite file, a row for each, which several processes may write at once; it compares nothing."""

import json
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from flexref.bench.baseline import Baseline, baseline_in
from flexref.errors import BaselineError, StorageError

APPLICATION = 0x666C7862
"""SQLite's application_id of a history: tells it from any other database."""

WAIT_S = 30.0
"""How long one process waits for another's write, which takes milliseconds."""

TABLE = """
CREATE TABLE benchmarks (
    id INTEGER PRIMARY KEY,
    at TEXT NOT NULL,
    label TEXT,
    model TEXT NOT NULL,
    backend TEXT NOT NULL,
    arguments TEXT NOT NULL,
    machine TEXT NOT NULL,
    versions TEXT NOT NULL,
    tokens_per_s REAL NOT NULL,
    figures TEXT NOT NULL
)
"""
"""`at`: UTC in ISO 8601; arguments, machine, versions and figures are JSON, the last all that --json prints."""

Given = TypeVar("Given")


class BenchHistory:
    """A history to add to. Made if there is none; `StorageError` if there is a file that is none."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._do(self._prepare)

    def add(self, benchmark: Mapping[str, Any], label: str | None = None) -> None:
        """Keep one benchmark that ended, as `Report.to_json` gives it; durable when this returns."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        arguments = benchmark["arguments"]
        parts = [json.dumps(benchmark[name]) for name in ("arguments", "machine", "versions")]
        about = (now, label, benchmark["model"], arguments["backend"], *parts, benchmark["tokens_per_s"])

        def insert(file: sqlite3.Connection) -> None:
            file.execute(
                "INSERT INTO benchmarks "
                "(at, label, model, backend, arguments, machine, versions, tokens_per_s, figures) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*about, json.dumps(benchmark)),
            )

        self._do(insert)

    def _prepare(self, file: sqlite3.Connection) -> None:
        """Make the table, if the file is still empty."""
        if _is_empty(file):
            file.execute(f"PRAGMA application_id = {APPLICATION}")
            file.execute(TABLE)

    def _do(self, act: Callable[[sqlite3.Connection], None]) -> None:
        """Do it in one transaction, waiting for others."""

        def write(file: sqlite3.Connection) -> None:
            if not _is_empty(file):  # another's file is left as it is
                _check(file, self.path)
            file.execute("PRAGMA journal_mode = WAL")
            file.execute("PRAGMA synchronous = FULL")
            file.execute("BEGIN IMMEDIATE")
            act(file)
            file.execute("COMMIT")

        _with_file(self.path, "rwc", write)


def read_history(path: str, chosen: str) -> list[Baseline]:
    """The benchmarks of one label, or of one time: all whose UTC time begins with `chosen`, as 2026-11-28 does.

    Raises `StorageError` if the file is no history, `BaselineError` if nothing in it has the label or the time.
    """

    def read(file: sqlite3.Connection) -> list[tuple[int, str]]:
        _check(file, path)
        wanted = "SELECT id, figures FROM benchmarks WHERE label = ?1 OR substr(at, 1, length(?1)) = ?1 ORDER BY id"
        return file.execute(wanted, (chosen,)).fetchall()

    rows = _with_file(path, "rw", read)
    if not rows:
        raise BaselineError(f"{path}: no benchmark has the label or the UTC time {chosen!r}")
    return [baseline_in(f"{path}, row {number}", figures) for number, figures in rows]


def _with_file(path: str, mode: str, act: Callable[[sqlite3.Connection], Given]) -> Given:
    """What `act` gives on the open file. SQLite does not wait for who turns a new file into one with a write-ahead log,
    so waiting is done here, too.
    """
    name = f"file:{quote(str(Path(path).absolute()))}?mode={mode}"
    end = time.monotonic() + WAIT_S
    while True:
        try:
            with closing(sqlite3.connect(name, timeout=WAIT_S, isolation_level=None, uri=True)) as file:
                return act(file)
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise StorageError(f"{path}: the history cannot be used: {error}") from error
            time.sleep(0.01)
        except sqlite3.DatabaseError as error:
            raise StorageError(f"{path}: is no history of benchmarks: {error}") from error


def _is_empty(file: sqlite3.Connection) -> bool:
    return not file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def _check(file: sqlite3.Connection, path: str) -> None:
    if file.execute("PRAGMA application_id").fetchone()[0] != APPLICATION:
        raise StorageError(f"{path}: is a database, but no history of benchmarks")
