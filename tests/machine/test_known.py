"""Machines by name and by path."""

from pathlib import Path

import pytest

from flexref.errors import PolicyError, StorageError
from flexref.machine.known import machine_named
from flexref.machine.names import CACHE_VARIABLE, cache_folder, known_machines
from flexref.machine.plain import plain_machine


def test_a_machine_that_ships_is_found_by_its_name() -> None:
    assert known_machines()
    assert list(known_machines()) == sorted(known_machines())
    for name in known_machines():
        assert machine_named(name).capacity_bytes["device"] > 0


def test_a_file_is_found_by_its_path_and_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_machine().write(tmp_path / "mine.json")
    assert machine_named(str(tmp_path / "mine.json")) == plain_machine()
    name = known_machines()[0]
    plain_machine().write(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert machine_named(name).name == "plain"


def test_a_machine_that_is_kept_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    with pytest.raises(StorageError, match="'numpy-0123' is neither"):
        machine_named("numpy-0123")
    cache_folder().mkdir()
    plain_machine().write(cache_folder() / "numpy-0123.json")
    assert machine_named("numpy-0123") == plain_machine()
    with pytest.raises(StorageError, match=r"known: .*, numpy-0123$"):
        machine_named("abacus")


def test_what_is_neither_is_an_error_that_lists_the_names(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=known_machines()[0]) as caught:
        machine_named("abacus")
    assert "'abacus' is neither a machine's file nor a known machine" in str(caught.value)
    (tmp_path / "text").write_text("no JSON")
    with pytest.raises(PolicyError, match="is not JSON"):
        machine_named(str(tmp_path / "text"))
    with pytest.raises(StorageError, match="cannot read machine"):
        machine_named(str(tmp_path))
