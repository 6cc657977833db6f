"""Tables and lines for people: one width for pipes, no empty columns, counts in words, whatever the command."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flexref.cli.main import COMMANDS, command_group, run
from flexref.cli.show.compare_machines_report import print_machines
from flexref.cli.show.console import PIPED_WIDTH, FilledTable, print_named, table_console
from flexref.cli.show.profile_report import print_machine
from flexref.errors import how_many
from flexref.machine.known import machine_named

PIPED = (
    "plan --model 125m --machine t4-gcp --gen-len 4 --rows 4",
    "compare-machines --model 125m --machine t4-gcp --gen-len 4 --rows 4",
    "generate --model demo --prompt King --max-new-tokens 2",
    "generate --model demo --prompt King --max-new-tokens 2 --percent 0 100 0 100 0 100",
    "eval --model demo --text {text} --window 64",
    "compare-models demo demo --text {text} --window 64",
    "check --model demo --backend numpy --no-contract --max-new-tokens 1 --prompt King",
    "bench --model tiny --prompt-len 4 --gen-len 2 --rows 1 --percent 0 100 0 100 0 100",
    "info",
    "models",
    "backends",
)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text"
    path.write_text("In the beginning God created the heaven and the earth. " * 20)
    return path


def flexref(call: str, columns: str | None = None) -> subprocess.CompletedProcess[str]:
    size = {} if columns is None else {"COLUMNS": columns}
    return subprocess.run(
        [sys.executable, "-m", "flexref", *call.split()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, **size},
    )


@pytest.mark.parametrize("call", PIPED)
def test_no_line_in_a_pipe_is_wider_than_the_rule(call: str, text: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In this process, whose output is a file; that a pipe of another process is as wide is asked below."""
    assert run(command_group(COMMANDS), call.format(text=text).split()) == 0
    found = capfd.readouterr()
    assert found.out
    for stream in found:
        assert max(map(len, stream.splitlines()), default=0) <= PIPED_WIDTH
        assert "(s)" not in stream
        assert not re.search(r"\b1 (rows|blocks|tokens|windows|questions)\b", re.sub(r"x 1 rows", "", stream))
        assert "0 bytes │" not in stream.replace("10 bytes", "") or call == "backends"


def test_a_pipe_of_another_process_is_as_wide() -> None:
    done = flexref("plan --model 125m --machine t4-gcp --gen-len 4 --rows 4")
    assert 80 < max(map(len, done.stdout.splitlines())) <= PIPED_WIDTH
    assert max(map(len, done.stderr.splitlines()), default=0) <= PIPED_WIDTH


def test_columns_says_otherwise(text: Path) -> None:
    lines = flexref(f"eval --model demo --text {text} --window 64", columns="60").stdout.splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[-1].startswith(" " * 15)


@pytest.mark.parametrize("size", ["", "0", "1", "19", "-80", "1e3", "²", "٣٣", "9" * 5000])
def test_columns_and_lines_that_say_no_size_are_not_heard(monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    monkeypatch.setenv("COLUMNS", size)
    monkeypatch.setenv("LINES", size)
    assert table_console().width == PIPED_WIDTH


def test_a_shell_that_knows_no_width_gets_its_table_all_the_same() -> None:
    assert flexref("models", columns="0").stdout == flexref("models").stdout


def test_numbers_stay_whole_where_there_is_little_room() -> None:
    console = table_console()
    console.width = 40
    with console.capture() as shown:
        rows = [("a name with several words in it", "123456.789", "why it is so, in many words"), ("b", "1", "")]
        console.print(FilledTable("title", ("", "figure", "why"), rows, left=("why",)))
    assert "123456.789" in shown.get()
    assert max(map(len, shown.get().splitlines())) <= 40


def test_names_and_numbers_stay_whole_on_a_terminal_of_80(capsys: pytest.CaptureFixture[str]) -> None:
    console = table_console()
    console.width = 80
    policy = "4-bit weights, 4-bit cache, attention on device; 22 x 5 rows; weights 76% on host; cache 100% on host"
    figures = {"tokens_per_s": 1.673, "cost_per_million_tokens": 58.1, "disk_written_bytes_per_million_tokens": 6e13}
    about = {"model": "175b", "machine": "a100-40g", "problem": None, "in_short": policy}
    print_machines(console, [{**about, **figures}])
    lines = capsys.readouterr().out.splitlines()
    assert {len(line) for line in lines[1:]} == {80}
    assert re.search(r"│ 175b  │ a100-40g │ +1.673 │ +58.10 │ 55879.35 GiB │", "\n".join(lines))
    assert " ".join(policy.split()[:3]) in "\n".join(lines)


@pytest.mark.parametrize("width", [80, 120])
def test_a_machine_has_as_many_sizes_as_fit(capsys: pytest.CaptureFixture[str], width: int) -> None:
    console = table_console()
    console.width = width
    print_machine(console, machine_named("t4-gcp"))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "│ decode attention, device none 128 │" in text
    assert "host->device 1.07 times as long while device->host works" in " ".join(text.split())


def test_empty_columns_vanish_and_brackets_are_no_markup() -> None:
    console = table_console()
    with console.capture() as shown:
        console.print(FilledTable("", ("", "empty", "full"), [("[bold]a[/bold]", "", "1"), ("b", "", "")]))
        print_named(console, [("name", "[red]text[/red]")], 6)
    assert "empty" not in shown.get()
    assert "full" in shown.get()
    assert "[bold]a[/bold]" in shown.get()
    assert shown.get().endswith("name   [red]text[/red]\n")


def test_counts_are_said_in_words() -> None:
    assert [how_many(count, "row") for count in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
