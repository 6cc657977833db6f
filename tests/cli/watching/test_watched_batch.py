"""`flexref batch` as it is watched: log and metrics of a whole job, and a bound on disk writes that pauses it."""

import json
from pathlib import Path
from typing import Any

import pytest

from flexref.cli.main import COMMANDS, command_group, run

SPILLING = ("--percent", "30", "20", "0", "0", "0", "0", "--rows-per-group", "2", "--groups", "2")
"""Cache and activations on disk."""


@pytest.fixture
def requests(tmp_path: Path) -> str:
    path = tmp_path / "requests.jsonl"
    lines = [{"prompt": f"Chapter {number}", "max_new_tokens": 2 + number % 5} for number in range(12)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def batch(*arguments: str) -> int:
    return run(command_group(COMMANDS), ["batch", *arguments, "--model", "demo", *SPILLING])


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_job_logs_what_it_does_and_serves_figures(
    requests: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    assert batch(requests, "-o", str(tmp_path / "out.jsonl"), "--log-json", str(log), "--metrics-port", "0") == 0
    assert "metrics are served on http://127.0.0.1:" in capsys.readouterr().err
    first, *_, state, last = lines_of(log)
    assert (first["type"], first["lines"], first["policy"]["rows_per_group"]) == ("begin", 12, 2)
    assert (state["type"], state["lines_done"]) == ("state", 12)
    assert state["link_bytes"]["host->disk"]["cache"] > 0
    assert state["lane_busy_s"]["compute"] > 0
    assert (last["type"], last["ending"]) == ("end", "done")


def test_a_bound_on_disk_writes_pauses_a_job_until_it_is_raised(
    requests: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert batch(requests, "-o", str(whole)) == 0
    capsys.readouterr()
    for bound in ("0.0001", "0.0001", "0.0005"):
        assert batch(requests, "-o", str(out), "--max-disk-writes-gib", bound) == 0
        said = capsys.readouterr().err
        assert f"and --max-disk-writes-gib is {bound}: it goes on with a higher bound" in said
        assert "resume with: flexref" in said
    assert batch(requests, "-o", str(out)) == 0
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("name", "what"), [("out.jsonl", "output"), ("hard", "input"), ("out.jsonl.journal", "journal")]
)
def test_the_log_is_none_of_the_jobs_own_files(
    name: str, what: str, requests: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hard").hardlink_to(requests)
    before = Path(requests).read_bytes()
    log = tmp_path / name
    assert batch(requests, "-o", str(tmp_path / "out.jsonl"), "--log-json", str(log)) == 1
    said = capsys.readouterr().err
    assert said == f"flexref: cannot write {log}: it would be the log, and is the {what} of this job\n"
    assert Path(requests).read_bytes() == before
    assert not (tmp_path / "out.jsonl").exists()


def test_a_job_of_a_stream_is_watched_too(requests: str, tmp_path: Path, capfdbinary: Any) -> None:
    log = tmp_path / "log.jsonl"
    assert batch(requests, "-o", "-", "--log-json", str(log)) == 0
    said = capfdbinary.readouterr()
    assert len(said.out.splitlines()) == 12
    first, *_, state, last = lines_of(log)
    assert (first["lines"], state["lines_done"], last["ending"]) == (None, 12, "done")
    assert batch(requests, "-o", "-", "--log-json", "-") == 2
    assert capfdbinary.readouterr().err == b"flexref: --log-json - and -o - exclude each other: both are stdout\n"


def test_the_log_of_a_stream_may_not_be_its_input(
    requests: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path(requests).read_bytes()
    assert batch(requests, "-o", "-", "--log-json", requests) == 1
    assert capsys.readouterr().err.endswith("it would be the log, and is the input of this job\n")
    assert Path(requests).read_bytes() == before
