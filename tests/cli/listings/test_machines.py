"""`flexref machines`: what ships and what is kept is listed, shown, measured anew and deleted, and nothing else."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flexref_numpy import NumpyBackend

from flexref.cli.completion import listed_machines
from flexref.cli.main import COMMANDS, command_group, run
from flexref.machine.machine import Machine
from flexref.machine.names import CACHE_VARIABLE, cache_folder, known_machines
from flexref.machine.plain import plain_machine
from flexref.machine.quality import Quality
from flexref.profile.kept_machines import kept_path

QUALITY = Quality(0.0, 4.0, 0.1, 0.8, 0.0, 10, 1, 2, {"a": {"1": 0.2, "2": 0.2}})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    cache_folder().mkdir(parents=True)
    return cache_folder()


@pytest.fixture
def kept(cache: Path) -> str:
    """The name of this machine, which was measured two hours ago, and busy."""
    name = kept_path(NumpyBackend(), "/tmp").stem
    quality = replace(QUALITY, measured_at_s=time.time() - 7205)
    plain_machine().changed(name="here", quality=quality).write(cache / f"{name}.json")
    return name


def machines(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert run(command_group(COMMANDS), ["machines", *arguments]) == code
    return capsys.readouterr()


def test_shipped_and_kept_machines_are_listed(capsys: pytest.CaptureFixture[str], kept: str, cache: Path) -> None:
    found = json.loads(machines(capsys, "--json").out)["machines"]
    assert [machine["name"] for machine in found] == [*known_machines(), kept]
    last = found[-1]
    assert (last["origin"], last["port"], last["path"]) == ("kept", "numpy", str(cache / f"{kept}.json"))
    assert last["used"]
    assert not any(machine["used"] for machine in found[:-1])
    assert 7200 < last["age_s"] < 7300
    assert last["busy"] == ["others took 80% of the processors' time"]
    assert last["spread"] == pytest.approx(0.2)
    assert (last["quality"]["unstable"], last["quality"]["cut"]) == (1, 2)
    shown = machines(capsys).out
    (line,) = [line for line in shown.splitlines() if kept in line and "kept in" not in line]
    assert line.split()[:6] == ["*", kept, "numpy", "2", "hours", "20%,"]


def test_without_any_that_is_kept_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing is kept yet" in machines(capsys, "list").out


def test_a_kept_file_that_is_damaged_is_listed_with_what_is_wrong(
    capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    (cache / "numpy-0.json").write_text("{")
    found = json.loads(machines(capsys, "--json").out)["machines"][-1]
    assert (found["name"], found["machine"]) == ("numpy-0", None)
    assert "numpy-0.json" in found["problem"]
    assert "numpy-0.json" in machines(capsys, "show", "numpy-0", code=1).err
    machines(capsys, "delete", "numpy-0")
    assert list(cache.iterdir()) == []


def test_one_is_shown(capsys: pytest.CaptureFixture[str], kept: str) -> None:
    assert Machine.from_mapping(json.loads(machines(capsys, "show", kept, "--json").out), "m").name == "here"
    shown = machines(capsys, "show", kept).out
    assert "measured 2 hours ago: busy: others took 80% of the processors' time; 1 of 10 points unstable" in shown
    assert "GB/s" in machines(capsys, "show", "h100").out


def test_this_one_is_measured_anew_and_kept(
    capsys: pytest.CaptureFixture[str], kept: str, cache: Path, tmp_path: Path
) -> None:
    before = Machine.read(cache / f"{kept}.json")
    (found,) = json.loads(machines(capsys, "measure", "--json", "--disk-dir", "/tmp").out)["machines"]
    assert found["name"] == kept
    assert found["age_s"] < 600
    assert Machine.read(cache / f"{kept}.json") != before
    assert [path.stem for path in cache.iterdir()] == [kept]


def test_what_cannot_be_kept_is_told_all_the_same(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    cache.rmdir()
    cache.write_text("a file where the folder should be")
    shown = machines(capsys, "measure", "--json", "--disk-dir", "/tmp")
    (found,) = json.loads(shown.out)["machines"]
    assert (found["origin"], found["path"], found["port"]) == ("not kept", None, "numpy")
    assert "cannot be kept" in shown.err


def test_what_is_kept_is_deleted_and_nothing_else(capsys: pytest.CaptureFixture[str], kept: str, cache: Path) -> None:
    (cache / "numpy-1.json").write_text("{}")
    assert "numpy-2" in machines(capsys, "delete", kept, "numpy-2", code=2).err
    assert "h100 ships with flexref" in machines(capsys, "delete", kept, "h100", code=2).err
    assert "there are" in machines(capsys, "delete", f"../machines/{kept}", code=2).err
    assert len(list(cache.iterdir())) == 2
    assert machines(capsys, "delete", kept).out == f"deleted {kept}\n"
    assert [path.stem for path in cache.iterdir()] == ["numpy-1"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["list", "h100"], "list takes no name"),
        (["measure", "h100"], "measure takes no name"),
        (["show"], "show takes one name"),
        (["show", "a", "b"], "show takes one name"),
        (["delete"], "delete takes names"),
        (["--full"], "belong to measure"),
        (["show", "nowhere"], "no machine is called 'nowhere'"),
        (["measure", "--backend", "dry"], "backend dry computes nothing"),
        (["measure", "--backend", "abacus"], "abacus"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_a_wrong_call_is_told(capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str) -> None:
    assert complaint in machines(capsys, *arguments, code=2).err


def test_names_are_completed(kept: str) -> None:
    offered = [item.value for item in listed_machines(None, None, "")]  # type: ignore[arg-type]
    assert {"h100", kept} <= set(offered)
