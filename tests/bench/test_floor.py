"""Floors that a run beat: which rates were wrong, and by how much; and disk rates of the ranges that a job reads."""

from pathlib import Path
from typing import Any

import pytest
from flexref_numpy import NumpyBackend
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.bench import disk_rates, host_rate
from flexref.bench.floor import RATES, PhaseFloor, beaten_floors, cache_bytes_read, floors, weight_bytes_read
from flexref.bench.rates import Rates
from flexref.bench.workload import Workload
from flexref.check.models import write_model
from flexref.engine.request import Request
from flexref.loading import load
from flexref.policy import Policy, Shares
from flexref.storage.weightfile import open_weight_file
from flexref.tiers.disk import WeightsOnDisk
from flexref.tiers.weights_plan import WeightsPlan

SECONDS = st.floats(1e-6, 1e6)


@given(terms=st.dictionaries(st.sampled_from(tuple(RATES)), SECONDS, min_size=1), seconds=SECONDS)
def test_a_run_is_slower_than_every_term_or_names_the_rates_that_were_wrong(
    terms: dict[str, float], seconds: float
) -> None:
    measured = Rates(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
    floor = PhaseFloor(terms)
    beaten = beaten_floors("decode", floor, seconds, measured)
    assert bool(beaten) == (seconds < floor.seconds)
    assert {one.term for one in beaten} == {term for term, least in terms.items() if seconds < least}
    for one in beaten:
        assert one.measured == getattr(measured, one.rate)
        amount = terms[one.term] * one.measured
        assert one.shown == pytest.approx(amount / seconds)
        assert one.shown > one.measured * (1 - 1e-12)


def test_the_disk_is_timed_by_the_ranges_of_the_file_that_a_pass_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.h5"
    write_model(path, ModelSpec("mine", 90, 40, 64, 64, 3, 2, 128))
    file = open_weight_file(path)
    plan = WeightsPlan.of(file, Shares(0.25, 0.25, 0.5), 2)
    extents = disk_rates.weight_extents(file, plan)
    assert sum(nbytes for _, nbytes in extents) >= 0.3 * file.nbytes
    read: list[tuple[int, int]] = []
    plain = WeightsOnDisk.read

    def noted(self: WeightsOnDisk, offset: int, into: Any, arrived: Any = None) -> None:
        read.append((offset, into.nbytes))
        plain(self, offset, into, arrived)

    monkeypatch.setattr(WeightsOnDisk, "read", noted)
    monkeypatch.setattr(disk_rates, "CHUNK_BYTES", 1 << 14)
    assert disk_rates.weights_rate(NumpyBackend(1 << 16), file.path, extents) > 0
    asked = {byte for offset, nbytes in extents for byte in range(offset, offset + nbytes)}
    assert {byte for offset, nbytes in set(read) for byte in range(offset, offset + nbytes)} == asked
    assert max(nbytes for _, nbytes in read) <= 1 << 14
    assert len(read) == len(set(read)) * disk_rates.REPEATS * len(disk_rates.IN_FLIGHT)


@pytest.mark.parametrize("read_ahead_gib", [0.0, 1.0])
def test_what_is_read_ahead_for_later_passes_is_no_part_of_the_prefills_floor(
    tmp_path: Path, read_ahead_gib: float
) -> None:
    path = tmp_path / "model.h5"
    write_model(path, ModelSpec("mine", 90, 40, 64, 64, 5, 2, 128))
    policy = Policy(weights=Shares(0, 0, 1), rows_per_group=2, read_ahead_gib=read_ahead_gib)
    with load(path, policy=policy) as engine:
        stats = engine.generate([[5, 6, 7], [8, 9, 10]], Request(3, ignore_eos=True)).stats
        file = engine.file
    pass_bytes = sum(nbytes for _, nbytes in disk_rates.weight_extents(file, WeightsPlan.under(file, policy)))
    rates = Rates(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    prefill, decode = floors(file, Workload.alike(2, 3, 3), stats, rates, "float32")
    assert stats.prefill_link_bytes["disk->host"]["weights"] > pass_bytes, "some of the next pass has been started"
    assert prefill.terms_s["weight file"] == pass_bytes
    assert decode.terms_s["weight file"] < 2 * pass_bytes


@given(
    pieces=st.lists(st.tuples(st.integers(0, 99), st.integers(1, 9)), min_size=1, max_size=9),
    most=st.integers(1, 40),
)
def test_every_window_holds_enough_and_goes_on_where_the_last_one_ended(
    pieces: list[tuple[int, int]], most: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(disk_rates, "DISK_BYTES", most)
        windows = disk_rates._windows(pieces)
        some = [next(windows) for _ in range(5)]
    flat = [piece for window in some for piece in window]
    assert flat == [pieces[number % len(pieces)] for number in range(len(flat))]
    least = min(most, sum(nbytes for _, nbytes in pieces))
    for window in some:
        held = sum(nbytes for _, nbytes in window)
        assert least <= held < least + window[-1][1]


@pytest.mark.parametrize(("share", "in_place"), [(0.0, 0.0), (0.5, 0.5), (0.75, 0.75), (1.0, 1.0)])
def test_of_a_divided_cache_the_device_reads_what_crosses_and_the_host_the_rest(
    tmp_path: Path, share: float, in_place: float
) -> None:
    path = tmp_path / "model.h5"
    write_model(path, ModelSpec("mine", 90, 40, 64, 64, 3, 2, 128))
    policy = Policy(cache=Shares(0, 1, 0), rows_per_group=4, attention_on="host", host_attention_share=share)
    with load(path, policy=policy) as engine:
        stats = engine.generate([[5, 6, 7]] * 4, Request(3, ignore_eos=True)).stats
        file = engine.file
    rates = Rates(1.0, 1.0, 1.0, 1.0, host_memory_bytes_per_s=1.0)
    work = Workload.alike(4, 3, 3)
    prefill, decode = floors(file, work, stats, rates, "float32")
    cache = cache_bytes_read(file.spec, policy, work, "float32")
    assert decode.terms_s["device memory"] == pytest.approx(2 * weight_bytes_read(file) + cache * (1 - in_place))
    assert decode.terms_s.get("host memory", 0.0) == pytest.approx(cache * in_place)
    assert "host memory" not in prefill.terms_s
    crossed = stats.link_bytes["host->device"].get("cache", 0)
    assert crossed == pytest.approx(cache * (1 - in_place))


@pytest.mark.parametrize(("cache", "rows"), [((0, 1, 0), 5), ((0.5, 0.5, 0), 5), ((0, 0.5, 0.5), 6), ((0, 1, 0), 8)])
def test_rows_of_a_block_that_is_not_full_lie_where_the_block_puts_them(
    tmp_path: Path, cache: tuple[float, float, float], rows: int
) -> None:
    path = tmp_path / "model.h5"
    write_model(path, ModelSpec("mine", 90, 40, 64, 64, 3, 2, 128))
    policy = Policy(cache=Shares(*cache), rows_per_group=4, attention_on="host", host_attention_share=0.5)
    with load(path, policy=policy) as engine:
        stats, file = engine.generate([[5, 6, 7]] * rows, Request(3, ignore_eos=True)).stats, engine.file
    rates = Rates(1.0, 1.0, 1.0, 1.0, from_spill_bytes_per_s=1.0, host_memory_bytes_per_s=1.0)
    work = Workload.alike(rows, 3, 3)
    _, decode = floors(file, work, stats, rates, "float32")
    away = stats.link_bytes["device->host"]["activations"] / (4 * 3 * 64) / 3  # tokens that were attended to there
    in_place = away / 2 * (3 + 4) * 2 * 64 * 4 * 3  # a row's two find 3 and 4 records in each of three layers
    assert decode.terms_s["host memory"] == pytest.approx(in_place)
    whole = cache_bytes_read(file.spec, policy, work, "float32")
    passes = 2 * work.rounds(policy.rows_per_block)
    assert decode.terms_s["device memory"] == pytest.approx(passes * weight_bytes_read(file) + whole - in_place)


def test_the_hosts_memory_is_timed_in_memory_that_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_rate, "HOST_BYTES", 1 << 16)
    held: list[Any] = []

    class Counting(NumpyBackend):
        def allocate(self, tier: str, nbytes: int) -> Any:
            held.append(super().allocate(tier, nbytes))
            return held[-1]

        def release(self, buffer: Any) -> None:
            held.remove(buffer)
            super().release(buffer)

    assert host_rate.host_memory_rate(Counting()) > 0
    assert not held
