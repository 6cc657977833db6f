"""`flexref batch` as its users call it: on the built-in model, with good and bad input, ended and begun again."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flexref
from flexref.batch_job.journal.growing_file import GrowingFile
from flexref.cli.main import COMMANDS, READER_GONE, command_group, run
from flexref.engine.request import Request
from flexref.sampling.settings import SamplingSettings

PROMPTS = ("The king", "In the beginning", "It was a fine morning, and", "He said")


def batch(*arguments: object) -> int:
    return run(command_group(COMMANDS), ["batch", *map(str, arguments), "--model", "demo"])


def completion(number: int, **body: Any) -> dict[str, Any]:
    asked = {"prompt": PROMPTS[number % 4], "max_tokens": 1 + number % 5, "temperature": number % 2, **body}
    return {"custom_id": f"request-{number}", "method": "POST", "url": "/v1/completions", "body": asked}


def write_lines(path: Path, lines: "list[dict[str, Any]]") -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    """Twelve requests, of which the eighth cannot be served."""
    lines = [completion(number, n=1 + number % 2) for number in range(12)]
    lines[7]["body"]["frequency_penalty"] = 0.5
    return write_lines(tmp_path / "requests.jsonl", lines)


@pytest.fixture
def undisturbed(requests: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("undisturbed") / "out.jsonl"
    assert batch(requests, "-o", out) == 0
    return out.read_bytes()


def test_every_line_has_an_answer_in_its_place(requests: Path, tmp_path: Path, capsys: Any) -> None:
    out, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    assert batch(requests, "-o", out, "--errors", errors, "--json") == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert (report["ending"], report["lines"], report["lines_done"], report["lines_failed"]) == ("done", 12, 12, 1)
    assert "Traceback" not in captured.err
    assert "1 of them failed" in captured.err
    assert [record["custom_id"] for record in records(out)] == [f"request-{n}" for n in range(12) if n != 7]
    (failed,) = records(errors)
    assert failed["custom_id"] == "request-7"
    assert "frequency_penalty" in failed["error"]["message"]
    assert [len(record["response"]["body"]["choices"]) for record in records(out)][:3] == [1, 2, 1]


def test_plain_prompts_get_what_generate_gives_them(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n")
    out = tmp_path / "out.jsonl"
    assert batch(prompts, "-o", out, "--temperature", "0.8", "--seed", "5", "--max-tokens", "6") == 0
    with flexref.load("demo") as engine:
        request = Request(6, SamplingSettings(0.8, seed=5))
        expected = [output.text for output in engine.generate(PROMPTS, request).outputs]
    assert [record["response"]["body"]["choices"][0]["text"] for record in records(out)] == expected


def test_a_finished_job_is_not_run_again(requests: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out.jsonl"
    assert batch(requests, "-o", out) == 0
    first = out.read_bytes()
    capsys.readouterr()
    assert batch(requests, "-o", out) == 0
    assert "12 of 12 lines are done" in capsys.readouterr().err
    assert out.read_bytes() == first


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--seed", "1"], "seed"),
        (["--max-tokens", "9"], "max_tokens"),
        (["--quantize-cache"], "cache scheme"),
        (["--no-row-invariant"], "row invariant"),
        (["--shard", "0/2"], "shard"),
    ],
)
def test_another_setting_is_another_job(
    requests: Path, tmp_path: Path, capsys: Any, change: list[str], said: str
) -> None:
    out = tmp_path / "out.jsonl"
    assert batch(requests, "-o", out) == 0
    before = out.read_bytes()
    capsys.readouterr()
    assert batch(requests, "-o", out, *change) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("flexref:")]
    assert said in line
    assert "--force" in line
    assert out.read_bytes() == before


def test_a_changed_line_is_named(requests: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out.jsonl"
    assert batch(requests, "-o", out) == 0
    lines = records(requests)
    lines[4]["body"]["prompt"] = "Once"
    write_lines(requests, lines)
    assert batch(requests, "-o", out) == 1
    assert "line 5 of the input" in capsys.readouterr().err
    assert batch(requests, "-o", out, "--force") == 0
    assert len(records(out)) == 12


def test_other_budgets_are_no_other_job(requests: Path, tmp_path: Path, undisturbed: bytes) -> None:
    out = tmp_path / "out.jsonl"
    assert batch(requests, "-o", out, "--device-mem-gib", "0.5", "--rows-per-group", "3") == 0
    assert out.read_bytes() == undisturbed


def test_a_second_process_is_refused(requests: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out.jsonl"
    held = GrowingFile(tmp_path / "out.jsonl.journal")
    try:
        assert batch(requests, "-o", out) == 1
    finally:
        held.close()
    assert "is being written by another process" in capsys.readouterr().err
    assert batch(requests, "-o", out) == 0


def test_the_input_is_never_written_over(requests: Path, capsys: Any) -> None:
    before = requests.read_bytes()
    assert batch(requests, "-o", requests) == 1
    assert batch(requests, "-o", requests.parent / "x.jsonl", "--errors", requests) == 1
    assert requests.read_bytes() == before
    assert "the input" in capsys.readouterr().err


def test_standard_streams_are_said_not_to_be_kept(
    requests: Path, tmp_path: Path, undisturbed: bytes, capfdbinary: Any
) -> None:
    assert batch(requests, "-o", "-") == 0
    captured = capfdbinary.readouterr()
    assert captured.out == undisturbed
    assert b"cannot be resumed" in captured.err
    assert os.listdir(tmp_path) == ["requests.jsonl"]


def test_a_log_that_cannot_be_written_is_an_error_that_ends_nothing(
    requests: Path, tmp_path: Path, undisturbed: bytes, capsys: Any
) -> None:
    assert batch(requests, "-o", tmp_path / "out.jsonl", "--log-json", "/dev/full", "-q") == 0
    assert capsys.readouterr().err == "nothing more is logged to /dev/full: No space left on device\n"
    assert (tmp_path / "out.jsonl").read_bytes() == undisturbed


def test_a_shard_that_there_is_not_is_a_wrong_call(requests: Path, tmp_path: Path, capsys: Any) -> None:
    assert batch(requests, "-o", tmp_path / "out.jsonl", "--shard", "3/3") == 2
    usage, *_, last = capsys.readouterr().err.splitlines()
    assert usage.startswith("Usage: flexref batch ")
    assert last == "Error: Invalid value for '--shard': shard 3 of 3: shards are numbered from 0 to 2"


@pytest.mark.parametrize("flag", [["--shard", "0/2"], ["--dry-run"], ["--json"], ["--limits", "openai"]])
def test_what_needs_files_is_refused_for_streams(requests: Path, flag: list[str], capsys: Any) -> None:
    assert batch(requests, "-o", "-", *flag) == 2
    assert flag[0] in capsys.readouterr().err


@pytest.mark.parametrize(("source", "out"), [("requests.jsonl", "out.jsonl"), ("-", "out.jsonl")])
def test_failed_lines_go_to_standard_output_only_where_all_do(
    requests: Path, tmp_path: Path, source: str, out: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert batch(source, "-o", out, "--errors", "-") == 2
    assert "--errors -" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["requests.jsonl"]
    assert batch("requests.jsonl", "-o", "-", "--errors", "-") == 0
    assert len(capsys.readouterr().out.splitlines()) == 12


def test_a_reader_that_has_seen_enough_is_no_error_of_the_input(requests: Path) -> None:
    """It goes while the job runs, when the input is open, too."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "flexref", "batch", str(requests), "-o", "-", "--model", "demo", "-q"]
    with open(writing, "wb") as gone:
        ended = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, timeout=300, check=False)
    assert (ended.returncode, ended.stderr) == (READER_GONE, b"")


def test_to_ask_a_job_that_has_not_begun_does_not_end_it(requests: Path) -> None:
    """Its input may take minutes to look over, and a monitor asks whenever it likes."""
    command = [sys.executable, "-m", "flexref", "batch", "-", "-o", "-", "--model", "demo"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
        assert job.stderr is not None
        assert b"not kept" in job.stderr.readline()  # next it waits for its input
        job.send_signal(signal.SIGUSR1)
        assert b"no job is under way" in job.stderr.readline()
        out, _ = job.communicate(requests.read_bytes(), timeout=300)
    assert (job.returncode, len(out.splitlines())) == (0, 12)


def test_a_log_and_a_result_are_not_mixed_on_standard_output(requests: Path, capsys: Any) -> None:
    assert batch(requests, "-o", requests.with_name("out.jsonl"), "--log-json", "-", "--json") == 2
    assert "both are stdout" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--stop", "--model-name"])
@pytest.mark.parametrize("value", ["", os.fsdecode(b"a\xff")])
def test_a_text_that_no_answer_can_have_is_a_wrong_call(requests: Path, option: str, value: str, capsys: Any) -> None:
    assert batch(requests, "-o", requests.with_name("out.jsonl"), option, value) == 2
    assert option in (said := capsys.readouterr().err)
    assert "Traceback" not in said
    assert os.listdir(requests.parent) == ["requests.jsonl"]


def test_a_place_for_metrics_without_a_port_is_a_wrong_call(requests: Path, capsys: Any) -> None:
    assert batch(requests, "-o", requests.with_name("out.jsonl"), "--metrics-host", "0.0.0.0") == 2
    assert "--metrics-port" in capsys.readouterr().err


def test_a_dry_run_says_what_is_wrong_and_what_the_job_takes(requests: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out.jsonl"
    assert batch(requests, "-o", out, "--dry-run", "--json", "--price-per-hour", "2") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["input"]["failed"] == 1
    assert report["input"]["rows"] == sum(1 + number % 2 for number in range(12) if number != 7)
    assert report["plan"]["seconds"] > 0
    assert report["plan"]["cost_usd"] == pytest.approx(report["plan"]["seconds"] / 3600 * 2)
    assert report["plan"]["disk_write_bytes"] > 0
    assert not out.exists()
    assert batch(requests, "-o", out, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "frequency_penalty" in said
    assert "policy:" in said


def long_job(tmp_path: Path) -> Path:
    """It takes a second or more."""
    lines = [completion(number, max_tokens=100 + 8 * number, ignore_eos=True) for number in range(10)]
    return write_lines(tmp_path / "long.jsonl", lines)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What that job comes to if it is let alone."""
    folder = tmp_path_factory.mktemp("whole")
    assert batch(long_job(folder), "-o", folder / "out.jsonl") == 0
    return (folder / "out.jsonl").read_bytes()


def started(requests: Path, out: Path) -> "subprocess.Popen[str]":
    call = [sys.executable, "-m", "flexref", "batch", str(requests), "-o", str(out), "--model", "demo"]
    options = ["--rows-per-group", "4", "--groups", "2", "--log-json", "-"]
    return subprocess.Popen([*call, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until_it_runs(process: "subprocess.Popen[str]") -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order_and_the_same_command_goes_on(tmp_path: Path, number: int, whole: bytes) -> None:
    requests, out = long_job(tmp_path), tmp_path / "out.jsonl"
    process = started(requests, out)
    next(until_it_runs(process))
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    last = said.splitlines()[-1]
    assert last.startswith(f"paused ({signal.Signals(number).name})")
    assert f"resume with: flexref batch {requests} -o {out} --model demo" in last
    assert len(records(out)) < 10
    assert batch(requests, "-o", out, "--rows-per-group", "16") == 0
    assert out.read_bytes() == whole


def test_after_a_kill_the_same_command_goes_on(tmp_path: Path, whole: bytes) -> None:
    requests, out = long_job(tmp_path), tmp_path / "out.jsonl"
    process = started(requests, out)
    next(until_it_runs(process))
    process.kill()
    process.communicate(timeout=60)
    assert batch(requests, "-o", out, "--rows-per-group", "16") == 0
    assert out.read_bytes() == whole


def test_a_disk_that_hangs_ends_the_job_with_a_line(requests: Path, tmp_path: Path, undisturbed: bytes) -> None:
    """In a process of its own, for it is ended where it stands."""
    script = """
import os, sys, time
from flexref.tiers.spill_file import SpillFile
from flexref.cli.main import COMMANDS, command_group, run
read = SpillFile.read
calls = []
def hangs(self, offset, into):
    calls.append(offset)
    if len(calls) > 40:
        time.sleep(300)
    read(self, offset, into)
SpillFile.read = hangs
sys.exit(run(command_group(COMMANDS), sys.argv[1:]))
"""
    out = tmp_path / "out.jsonl"
    call = ["batch", str(requests), "-o", str(out), "--model", "demo", "--rows-per-group", "4", "--stall-s", "1"]
    spilling = ["--percent", *("100", "0", "0", "0", "0", "0"), "--groups", "2"]
    command = [sys.executable, "-c", script, *call, *spilling]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "has made no progress" in last
    assert "disk->host" in last
    assert batch(requests, "-o", out) == 0
    assert out.read_bytes() == undisturbed
