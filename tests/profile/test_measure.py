"""Profiles of this machine: complete, bounded in memory, given back however they end; and what slowdowns are."""

import json
import threading
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flexref_dry import DryBackend
from flexref_numpy import NumpyBackend
from hypothesis import given
from hypothesis import strategies as st

from flexref.errors import CapacityError, PolicyError, StorageError
from flexref.machine.durations import Durations
from flexref.machine.machine import COPIES, WEIGHT_FILE, Machine
from flexref.machine.plain import plain_machine
from flexref.profile import attention as profile_attention
from flexref.profile import environment, links
from flexref.profile.measure import UNMEASURED_DISK, measure_machine
from flexref.profile.meter import Meter
from flexref.profile.sizes import Sizes
from flexref.profile.slowdowns import overlap_slowdowns
from flexref.units import LINKS, MIB

TINY = Sizes.tiny()


@given(
    st.tuples(st.floats(1, 5), st.floats(1, 5)),
    st.tuples(st.floats(0.5, 2), st.floats(0.5, 2)),
    st.floats(-0.05, 0.05),
)
def test_slowdowns_follow_from_what_two_did_side_by_side(
    factors: tuple[float, float], alone: tuple[float, float], late: float
) -> None:
    starts, left, now, ends = [max(0.0, -late), max(0.0, late)], list(alone), 0.0, [0.0, 0.0]
    while any(left):
        working = [place for place in range(2) if left[place] and starts[place] <= now]
        speeds = {place: 1 / factors[place] if len(working) == 2 else 1.0 for place in working}
        events = [now + left[place] / speed for place, speed in speeds.items()]
        following = min([*events, *(start for start in starts if start > now)])
        for place, speed in speeds.items():
            left[place] -= (following - now) * speed
            if left[place] < 1e-12:
                left[place], ends[place] = 0.0, following
        now = following
    found = overlap_slowdowns(((starts[0], ends[0]), (starts[1], ends[1])), alone)
    for place in range(2):
        assert np.isnan(found[place]) or found[place] == pytest.approx(factors[place], rel=1e-6)
    common = min(ends) - max(starts)
    outside = [ends[place] - starts[place] - common for place in range(2)]
    for place in range(2):
        assert np.isnan(found[place]) == (alone[place] - outside[place] < 0.25 * alone[place])


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A tiny profile of this machine."""
    return measure_machine(NumpyBackend(), tmp_path_factory.mktemp("disk"), sizes=TINY)


def test_a_profile_has_all_that_a_simulation_asks_for(here: Machine) -> None:
    durations = Durations(here)
    assert set(here.copies) == set(COPIES)
    for link, weights in product(LINKS, (False, True)):
        assert durations.copy(link, 1 << 22, weights=weights) > 0
    for stored in ("float32", "float16", "int4"):
        assert durations.linear(7, 512, 128, stored) > 0
        assert durations.expand(1 << 20, stored) > 0
    for place, scheme in product(("device", "host"), ("none", "int4")):
        for rows in ([(100, 1)] * 3, [(0, 32)] * 3):
            assert durations.attend((place, scheme, 80), 4, 640, rows) > 0
        assert durations.append(place, scheme, 1 << 16) > 0
    for name in ("layer_norm", "activate", "gather", "add_rows", "assign", "sample", "token rows"):
        assert durations.operator(name, 1 << 16) > 0
    assert not here.port.asynchronous
    assert all(here.capacity_bytes[tier] > 1 << 20 for tier in ("device", "host", "disk"))
    assert {"measured", "machine", "copies"} <= set(here.sources)


class RememberingBackend(NumpyBackend):
    """A port that remembers whether rows were apart whenever a product was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.apart, self.seen = True, set[bool]()

    def keep_rows_apart(self, on: bool) -> None:
        super().keep_rows_apart(on)
        self.apart = on

    def linear(self, x: Any, w: Any, b: Any, *, out: Any = None, add: bool = False) -> Any:
        self.seen.add(self.apart)
        return super().linear(x, w, b, out=out, add=add)


def test_a_port_is_measured_as_jobs_use_it_unless_they_are_told_otherwise(tmp_path: Path) -> None:
    port = RememberingBackend()
    port.keep_rows_apart(False)  # by the job before
    measure_machine(port, tmp_path, sizes=TINY)
    assert port.seen == {True}
    port.close()


def test_a_profile_goes_through_its_file(here: Machine, tmp_path: Path) -> None:
    here.write(tmp_path / "machine.json")
    assert Machine.read(tmp_path / "machine.json") == here
    assert json.loads((tmp_path / "machine.json").read_text())["name"].startswith("numpy on ")


def test_full_and_quick_profiles_have_one_structure() -> None:
    full, quick = Sizes.full(), Sizes.quick()
    for entry in ("copies", "spills", "reads", "widths", "tokens", "elements", "pointwise_tokens", "sampled_rows"):
        assert set(getattr(quick, entry)) <= set(getattr(full, entry)) | {8 * MIB, 2048}, entry
        assert 1 < len(getattr(quick, entry)) <= len(getattr(full, entry))


class Interrupted(NumpyBackend):
    """Ctrl-C comes with some call of an operator, and so to the main thread: a lane's calls do not count."""

    def __init__(self, operator: str, at: int) -> None:
        super().__init__()
        self.live: dict[int, tuple[str, int]] = {}
        self.peak: dict[str, int] = {"device": 0, "host": 0}
        self._calls, called = 0, getattr(self, operator)

        def call(*arguments: Any, **options: Any) -> Any:
            self._calls += threading.current_thread() is threading.main_thread()
            if self._calls == at:
                raise KeyboardInterrupt
            return called(*arguments, **options)

        setattr(self, operator, call)

    def allocate(self, tier: str, nbytes: int) -> Any:
        buffer = super().allocate(tier, nbytes)
        self.live[id(buffer)] = (tier, nbytes)
        self.peak[tier] = max(self.peak[tier], sum(size for at, size in self.live.values() if at == tier))
        return buffer

    def release(self, buffer: Any) -> None:
        del self.live[id(buffer)]
        super().release(buffer)


@pytest.mark.parametrize(
    ("operator", "at"), [("linear", 2), ("linear", 60), ("expand", 3), ("attend", 5), ("submit", 9)]
)
def test_an_interrupted_profile_gives_everything_back(operator: str, at: int, tmp_path: Path) -> None:
    port = Interrupted(operator, at)
    with pytest.raises(KeyboardInterrupt):
        measure_machine(port, tmp_path, sizes=TINY)
    assert port.live == {}
    assert list(tmp_path.iterdir()) == []


def test_a_profile_stays_within_its_memory_and_gives_it_back(tmp_path: Path) -> None:
    port = Interrupted("linear", -1)
    measure_machine(port, tmp_path, sizes=TINY)
    assert port.live == {}
    assert max(port.peak.values()) <= TINY.most_bytes
    assert list(tmp_path.iterdir()) == []


def test_memory_beyond_the_bound_is_refused(tmp_path: Path) -> None:
    with (
        Meter(NumpyBackend(), TINY) as meter,
        meter.memory() as memory,
        pytest.raises(CapacityError, match="a profile needs"),
    ):
        memory.buffer("host", TINY.most_bytes + 1)


def test_a_port_that_computes_nothing_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="backend dry computes nothing"):
        measure_machine(DryBackend(), tmp_path, sizes=TINY)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot write in .*file"):
        measure_machine(NumpyBackend(), tmp_path / "file", sizes=TINY)


def test_a_full_disk_hinders_no_profile_and_has_plain_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(directory: Path, nbytes: int) -> None:
        raise StorageError(f"the disk of {directory} is full")

    monkeypatch.setattr(links, "SpillFile", full)
    machine = measure_machine(NumpyBackend(), tmp_path, sizes=TINY)
    plain = plain_machine().copies
    assert [name for name in COPIES if machine.copies[name] == plain[name]] == [LINKS[2], LINKS[3], WEIGHT_FILE]
    assert not {LINKS[2], LINKS[3]} & {*machine.beside, *(name for told in machine.beside.values() for name in told)}
    (said,) = (line for line in machine.warnings if "is full" in line)
    assert (
        said == f"the disk was not measured: the disk of {tmp_path} is full; the rates of a plain machine stand for it"
    )
    assert UNMEASURED_DISK in machine.sources
    assert Machine.from_mapping(machine.to_mapping(), "there and back") == machine
    assert list(tmp_path.iterdir()) == []


def test_a_tiny_profile_takes_a_moment(tmp_path: Path) -> None:
    said: list[str] = []
    begin = time.perf_counter()
    measure_machine(NumpyBackend(), tmp_path, sizes=TINY, tell=said.append)
    assert time.perf_counter() - begin < 60
    assert any("products" in line for line in said)


@pytest.mark.parametrize("one_memory", [False, True])
def test_records_on_the_host_of_a_device_do_not_fit_into_the_processors_caches(
    one_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    class Port(NumpyBackend):
        def allocate(self, tier: str, nbytes: int) -> Any:
            if tier == "host":
                taken.append(nbytes)
            return super().allocate(tier, nbytes)

    port = Port()
    port.caps = replace(port.caps, one_memory=one_memory)
    monkeypatch.setattr(profile_attention, "host_cache_bytes", lambda: 4 * MIB)
    with Meter(port, replace(Sizes.tiny(), most_bytes=64 * MIB)) as meter:
        profile_attention.attention_curves(meter)
    assert (max(taken) >= 8 * MIB - 8192) != one_memory  # whole records


def test_the_largest_cache_is_told_by_the_system_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "CACHES_FOLDER", tmp_path)
    assert environment.host_cache_bytes() == 0
    for number, size in enumerate(["48K", "2048K", "307200K", "unknown"]):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "size").write_text(f"{size}\n", encoding="utf-8")
    assert environment.host_cache_bytes() == 300 * MIB
