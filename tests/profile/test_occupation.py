"""What else is at work: a share of the processors' time, of which one's own work is no part."""

import os
import subprocess
import sys
import time
from collections import namedtuple

import psutil
import pytest

from flexref.profile import occupation
from flexref.profile.occupation import Occupation

Times = namedtuple("Times", ("user", "system", "idle", "iowait", "steal", "guest"))


def test_others_take_what_is_neither_idle_nor_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_times", lambda: Times(10.0, 5.0, 100.0, 1.0, 2.0, 3.0))
    monkeypatch.setattr(occupation.time, "process_time", lambda: 4.0)
    watch = Occupation()
    monkeypatch.setattr(psutil, "cpu_times", lambda: Times(14.0, 6.0, 103.0, 2.0, 3.0, 5.0))
    monkeypatch.setattr(occupation.time, "process_time", lambda: 6.0)
    taken = watch.taken()
    assert taken.others == pytest.approx(3 / 10)  # 5 of work, 2 of them one's own, in 10 of all
    assert taken.stolen == pytest.approx(1 / 10)


def test_where_no_time_has_passed_nothing_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_times", lambda: Times(10.0, 5.0, 100.0, 1.0, 2.0, 3.0))
    assert Occupation().taken() == occupation.Taken(0.0, 0.0)


def test_another_program_is_seen() -> None:
    code = "print('begun', flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"begun\n"
            watch = Occupation()
            time.sleep(0.8)
            taken = watch.taken()
        finally:
            other.kill()
    assert 0.2 / (os.cpu_count() or 1) < taken.others <= 1.0
    assert 0.0 <= taken.stolen <= 1.0


def test_a_machine_under_load_is_not_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    for load, quiet in ((0.5, True), (2.0, True), (2.5, False)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert occupation.is_quiet() == quiet
