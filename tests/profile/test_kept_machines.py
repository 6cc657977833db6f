"""This machine: measured once, kept, and measured again when what is kept is no use."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flexref_numpy import NumpyBackend

from flexref.errors import StorageError
from flexref.machine.machine import Machine
from flexref.machine.names import CACHE_VARIABLE, cache_folder
from flexref.machine.plain import plain_machine
from flexref.machine.quality import Quality
from flexref.profile import kept_machines as machines
from flexref.profile import machine_sources
from flexref.profile.environment import capacities
from flexref.profile.kept_machines import measured_machine
from flexref.profile.measure import UNMEASURED_DISK


class Measuring:
    """Stands for a measurement: counts how often it is asked for."""

    def __init__(self, quality: Quality | None = None) -> None:
        self.asked: list[dict[str, Any]] = []
        self.quality = quality

    def __call__(self, backend: Any, disk_dir: Any, **options: Any) -> Machine:
        self.asked.append(options)
        return plain_machine().changed(quality=self.quality)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "machines"


@pytest.fixture
def measured(tmp_path: Path) -> Any:
    """Asks for this machine, and hears what is told: (machine, lines)."""

    def ask(measure: Measuring, backend: Any = None) -> tuple[Machine, list[str]]:
        lines: list[str] = []
        found = measured_machine(backend or NumpyBackend(), tmp_path, tell=lines.append, measure=measure)
        return found, lines

    return ask


def test_a_machine_whose_disk_is_assumed_is_told_of_and_not_kept(measured: Any, cache: Path) -> None:
    class FullDisk(Measuring):
        def __call__(self, backend: Any, disk_dir: Any, **options: Any) -> Machine:
            machine = super().__call__(backend, disk_dir, **options)
            return machine.changed(sources={UNMEASURED_DISK: "assumed"})

    measure = FullDisk()
    for count in (1, 2):
        _, lines = measured(measure)
        assert lines[-1].endswith("cannot be written, so that this machine's disk is assumed and nothing is kept")
        assert len(measure.asked) == count
    assert not cache.exists()


def test_where_a_machine_comes_from_is_logged(measured: Any, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "flexref"):
        measured(Measuring())
        measured(Measuring())
    (path,) = cache.iterdir()
    assert caplog.messages == [f"machine plain: measured, and kept in {path}", f"machine plain: kept in {path}"]


def test_this_machine_is_measured_once(measured: Any, cache: Path) -> None:
    measure = Measuring()
    first, lines = measured(measure)
    assert [options["quick"] for options in measure.asked] == [True]
    assert lines == ["this machine is measured once, which takes about 5 seconds"]
    second, lines = measured(measure)
    assert len(measure.asked) == 1
    assert lines == []
    assert second.changed(capacity_bytes=first.capacity_bytes) == first
    assert [path.suffix for path in cache.iterdir()] == [".json"]


def test_what_is_free_is_asked_for_every_time(measured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(Measuring())
    monkeypatch.setattr(NumpyBackend, "free_bytes", lambda self, tier: 4321)
    disk = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda path: disk)  # others write to it meanwhile
    found, _ = measured(Measuring())
    assert found.capacity_bytes == capacities(NumpyBackend(), tmp_path)
    assert found.capacity_bytes["device"] == 4321


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": "flexref machine 0"}', "\x00"])
def test_a_damaged_file_is_said_and_measured_again(measured: Any, cache: Path, damage: str) -> None:
    measured(Measuring())
    (path,) = cache.iterdir()
    path.write_text(damage)
    measure = Measuring()
    _, lines = measured(measure)
    assert len(measure.asked) == 1
    assert len(lines) == 1
    assert lines[0].endswith("this machine is measured again")
    measured(measure)
    assert len(measure.asked) == 1


def test_another_port_or_version_is_another_machine(measured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = Measuring()
    measured(measure)
    measured(measure, NumpyBackend(scratch_bytes=1 << 20))
    assert len(measure.asked) == 2
    monkeypatch.setattr(machines, "versions", lambda port: {"flexref": "another"})
    measured(measure)
    monkeypatch.setattr(machines, "describe", lambda port: {"cpu": "another"})
    measured(measure)
    assert len(measure.asked) == 4


def test_other_threads_of_products_are_another_machine(tmp_path: Path) -> None:
    """In processes of their own: a library reads how many threads it may use when it is loaded."""
    code = """if True:
        from flexref_numpy import NumpyBackend
        from flexref.profile.kept_machines import cache_name, product_threads
        print(cache_name(NumpyBackend(), "."))
        import scipy.linalg  # which brings a library of its own
        print(cache_name(NumpyBackend(), "."), *product_threads())
    """
    told = []
    for threads in ("1", "2"):
        given = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=given, cwd=tmp_path, capture_output=True, text=True, check=True)
        told.append(done.stdout.split())
        assert told[-1][0] == told[-1][1]
    assert (told[0][0] == told[1][0]) == (told[0][2:] == told[1][2:])
    assert told[0][2:] == ["1"]
    assert told[1][2:] == ["2"] or len(os.sched_getaffinity(0)) < 2


def test_where_nothing_can_be_kept_it_is_said_and_it_goes_on(measured: Any, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    measure = Measuring()
    found, lines = measured(measure)
    assert found == plain_machine()
    assert lines[-1].startswith("the measured machine cannot be kept in ")
    measured(measure)
    assert len(measure.asked) == 2


def test_a_file_is_whole_or_not_there(measured: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(machines.os, "replace", full)
        _, lines = measured(Measuring())
    assert "No space left on device" in lines[-1]
    assert list(cache.iterdir()) == []


def test_the_cache_is_the_users_own_unless_a_variable_names_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/flexref/machines")


def test_the_disks_folder_need_not_exist_yet(tmp_path: Path) -> None:
    measure = Measuring()
    for folder in (tmp_path / "a" / "b", tmp_path / "c"):
        measured_machine(NumpyBackend(), folder, tell=None, measure=measure)
    assert len(measure.asked) == 1


def test_a_file_in_the_folders_place_is_said_and_nothing_is_measured_again(measured: Any, tmp_path: Path) -> None:
    measured(Measuring())
    (tmp_path / "file").write_text("")
    said: list[str] = []
    measure = Measuring()
    with pytest.raises(StorageError, match=r"cannot write in .*file: it is no folder"):
        measured_machine(NumpyBackend(), tmp_path / "file", tell=said.append, measure=measure)
    assert (said, measure.asked) == ([], [])


def test_of_a_measurement_that_takes_long_something_is_said_every_second() -> None:
    now, said = 0.0, []
    on_part = machines._now_and_then(said.append, lambda: now)
    for number in range(5):
        now += 0.6
        on_part(str(number))
    assert said == ["measuring 1", "measuring 3"]


QUIET = Quality(1e9, 4.0, 0.1, 0.0, 0.0, 10, 1, 0, {})
BUSY = replace(QUIET, others_share=0.8)
DAY_S = 86400.0


@pytest.mark.parametrize(
    ("quality", "age_s", "quiet", "why"),
    [
        (QUIET, 29 * DAY_S, True, None),
        (QUIET, 31 * DAY_S, True, "what is kept of it is 31 days old"),
        (QUIET, 31 * DAY_S, False, None),
        (QUIET, -5.0, True, "it was measured in the future, by its clock"),
        (BUSY, 500.0, True, None),
        (BUSY, 700.0, True, "it was busy 11 minutes ago (others took 80% of the processors' time)"),
        (BUSY, 700.0, False, None),
        (replace(QUIET, unstable=9), 2 * DAY_S, True, "it was busy 2 days ago (repeats of 9 points of 10 disagree)"),
        (None, 900 * DAY_S, True, None),
    ],
)
def test_what_is_doubtful_is_measured_again_when_it_is_quiet(
    tmp_path: Path, quality: Quality | None, age_s: float, quiet: bool, why: str | None
) -> None:
    said: list[str] = []
    measure = Measuring(quality)
    for at_s in (1e9, 1e9 + age_s):
        measured_machine(
            NumpyBackend(), tmp_path, tell=said.append, measure=measure, quiet=lambda: quiet, now=lambda at_s=at_s: at_s
        )
    assert len(measure.asked) == (1 if why is None else 2)
    again = [line.removeprefix("this machine is measured again: ") for line in said if "again: " in line]
    assert again == ([] if why is None else [why])


def test_that_a_machine_is_busy_is_said(measured: Any) -> None:
    _, lines = measured(Measuring(BUSY))
    assert lines[-1] == (
        "this machine is busy (others took 80% of the processors' time): it is measured again on a quiet occasion"
    )


def test_a_machine_that_is_given_knows_what_its_port_says_of_memory(tmp_path: Path) -> None:
    """A file from before that was kept says nothing of it."""
    given = machine_sources.Given(plain_machine())
    assert not given.machine.port.one_memory
    assert given.measured(NumpyBackend(), tmp_path, None).port.one_memory
