"""A history of benchmarks: rows of several processes, labels and times, and files that are none."""

import json
import multiprocessing
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flexref.bench import benchmark
from flexref.bench.history import BenchHistory, read_history
from flexref.bench.rates import Rates
from flexref.bench.suites import Arguments
from flexref.cli.main import COMMANDS, command_group, run
from flexref.errors import BaselineError, StorageError

SMALL = ("--model", "tiny", "--prompt-len", "3", "--gen-len", "2", "--rows", "2")
WRITERS, EACH = 4, 8


def kept(rows: int) -> dict[str, Any]:
    """A benchmark, as far as a history and a comparison read it."""
    about = {"model": "tiny", "weights_scheme": "none", "weights_dtype": "float16", "cut_short": None}
    settings: dict[str, Any] = {"machine": {"cpu": "one"}, "versions": {"flexref": "1"}, "policy": {}}
    figures = {"prefill_s": 1.0, "decode_s": 1.0, "decode_step_s": None, "tokens_per_s": 2.0}
    return {"arguments": Arguments("tiny", rows=rows).to_json(), **about, **settings, **figures, "runs": [figures]}


def write(path: str, writer: int) -> None:
    history = BenchHistory(path)
    for number in range(EACH):
        history.add(kept(1 + writer * EACH + number), f"writer {writer}")


def test_no_row_of_processes_that_write_at_once_is_lost(tmp_path: Path) -> None:
    path = str(tmp_path / "runs of today?.sqlite")
    spawned = multiprocessing.get_context("spawn")
    writers = [spawned.Process(target=write, args=(path, writer)) for writer in range(WRITERS)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    assert [one.exitcode for one in writers] == [0] * WRITERS
    for writer in range(WRITERS):
        found = [one.arguments.rows for one in read_history(path, f"writer {writer}")]
        assert found == [1 + writer * EACH + number for number in range(EACH)]
    assert len(read_history(path, "20")) == WRITERS * EACH
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_what_is_no_history_is_refused_in_one_line_and_left_as_it_is(tmp_path: Path) -> None:
    text, other = tmp_path / "text", tmp_path / "other.sqlite"
    text.write_text("no database at all, and long enough for a header" * 20)
    with closing(sqlite3.connect(other)) as file:
        file.execute("CREATE TABLE mine (x)")
    for path in (text, other):
        before = path.read_bytes()
        for act in (lambda path=path: BenchHistory(path), lambda path=path: read_history(str(path), "x")):
            with pytest.raises(StorageError, match="no history of benchmarks") as refused:
                act()
            assert "\n" not in str(refused.value)
        assert path.read_bytes() == before
    with pytest.raises(StorageError, match="unable to open"):
        read_history(str(tmp_path / "none"), "x")
    assert not (tmp_path / "none").exists()
    BenchHistory(tmp_path / "new").add(kept(1))
    with pytest.raises(BaselineError, match="no benchmark has the label or the UTC time 'x'"):
        read_history(str(tmp_path / "new"), "x")


def test_the_command_keeps_what_ended_and_compares_labels(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(benchmark, "measure", lambda backend: Rates(1e15, 1e15, 1e15, 1e18))
    path = str(tmp_path / "runs.sqlite")

    def bench(*arguments: str) -> int:
        return run(command_group(COMMANDS), ["bench", *arguments])

    printed = []
    for label in ("one", "two"):
        assert bench(*SMALL, "--repeat", "3", "--history", path, "--label", label, "--json") == 0
        printed.append(json.loads(capsys.readouterr().out))
    assert [dict(read_history(path, label)[0].values) for label in ("one", "two")] == printed
    assert bench("compare", "--history", path, "one", "two", "--json") == 0
    (joined,) = json.loads(capsys.readouterr().out)["joined"]
    assert (joined["before"], joined["now"]) == (f"{path}, row 1", f"{path}, row 2")
    assert joined["figures"]["tokens_per_s"]["runs_now"] == 3
    assert bench(*SMALL, "--label", "one") == 2
    assert bench(*SMALL, "--history", str(tmp_path)) == 1
    assert "it is a folder" in capsys.readouterr().err
