"""`flexref profile`: what it writes and prints, and that what is wrong is said before anything is measured."""

import json
from pathlib import Path

import pytest

from flexref.cli.main import COMMANDS, command_group, run
from flexref.machine.machine import Machine
from flexref.profile.meter import Meter
from flexref.profile.record import Record
from flexref.profile.sizes import Sizes


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles measure next to nothing."""
    monkeypatch.setattr(Sizes, "quick", Sizes.tiny)
    monkeypatch.setattr(Sizes, "full", Sizes.tiny)


def profile(*arguments: str) -> int:
    return run(command_group(COMMANDS), ["profile", *arguments])


def test_the_file_is_a_machine_and_the_tables_have_units(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    assert profile("--quick", "--disk-dir", str(tmp_path), "-o", str(path)) == 0
    shown = capsys.readouterr()
    machine = Machine.read(path)
    for expected in ("host->device", "weight file", "GB/s", "TFLOP/s", "int4", "attention", "free: device", "us"):
        assert expected in shown.out
    assert "page cache" in shown.out
    assert [line for line in shown.err.splitlines() if line.startswith("not certain: ")] == [
        f"not certain: {warning}" for warning in machine.warnings
    ]
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_one_object_that_reads_as_a_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    assert profile("--disk-dir", str(tmp_path), "--json", "-o", str(path)) == 0
    printed = json.loads(capsys.readouterr().out)
    assert Machine.from_mapping(printed, "what is printed") == Machine.read(path)


def test_unstable_figures_are_complained_of(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Record, "warnings", ("a link: it wobbles",))
    assert profile("--disk-dir", str(tmp_path)) == 0
    shown = capsys.readouterr()
    assert shown.err.splitlines() == ["not certain: a link: it wobbles"]
    assert "not certain: 1 figure, named by --json" in " ".join(shown.out.split())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--backend", "abacus"), "unknown backend 'abacus'"),
        (("--backend", "dry"), "backend dry computes nothing"),
        (("--disk-dir", "/proc/none"), "cannot write in /proc/none"),
        (("-o", "/nowhere/machine.json"), "cannot write /nowhere/machine.json: there is no folder /nowhere"),
        (("-o", "/tmp"), "cannot write /tmp: it is a folder"),
    ],
)
def test_bad_input_gets_one_clear_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], complaint: str
) -> None:
    assert profile(*arguments) == (2 if {"abacus", "dry"} & set(arguments) else 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"flexref: {complaint}")


def test_an_interrupt_leaves_with_its_exit_code(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Meter, "heat", interrupt)
    assert profile("--disk-dir", str(tmp_path), "-o", str(tmp_path / "machine.json")) == 130
    assert capsys.readouterr().err.splitlines() == ["flexref: interrupted"]
    assert list(tmp_path.iterdir()) == []
