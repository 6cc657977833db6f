"""Profiles of a port that makes its times up, by a clock that nothing else moves: every curve must be those times."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flexref_numpy import NumpyBackend

from flexref.backend.protocol import HostWork, LaneStep, QuantizedMatrix
from flexref.block.compute import BlockComputation
from flexref.machine.machine import HOST_ATTENTION, RESOURCES, WEIGHT_FILE, Machine, attention_key
from flexref.profile import slowdowns as profile_slowdowns
from flexref.profile.host import REPLAYED, host_seconds
from flexref.profile.links import copy_curves, files
from flexref.profile.measure import measure_machine
from flexref.profile.meter import REPLAYED_S, Meter
from flexref.profile.operands import Memory
from flexref.profile.points import Call, Point
from flexref.profile.products import product_surfaces
from flexref.profile.sizes import Sizes
from flexref.profile.slowdowns import slowdowns
from flexref.schedule.zigzag import Visit
from flexref.units import LINKS, MIB

TINY = Sizes.tiny()

LANES_OF = {LINKS[0]: "weights_in", LINKS[1]: "cache_out", LINKS[2]: "disk_in", LINKS[3]: "disk_out"}


class FakeTicket:
    """Over at times that were known from the start."""

    def __init__(self, port: "FakePort", times: Sequence[tuple[float, float]]) -> None:
        self._port, self._times = port, list(times)

    def wait(self) -> None:
        self._port.now = max(self._port.now, self._times[-1][1])

    def done(self) -> bool:
        return self._port.now >= self._times[-1][1]

    def times(self) -> Sequence[tuple[float, float]]:
        return self._times


class FakePort(NumpyBackend):
    """A port whose operators and copies take times that it makes up, by a clock that nothing else moves.

    An asynchronous one's calls take the host `call_s`, and the device works them off after that.
    """

    def __init__(self, asynchronous: bool, call_s: float = 0.0, segments_s: float = 0.0) -> None:
        super().__init__()
        self.asynchronous, self.call_s, self.segments_s = asynchronous, call_s, segments_s
        self.now = self.device_end = 0.0
        self.lane_end: dict[str, float] = {}
        self.disk_bytes: Counter[str] = Counter()
        self.on_lane: float | None = None
        """Seconds of the operators that a lane is calling."""

    def clock(self) -> float:
        return self.now

    @staticmethod
    def step_s(lane: str, nbytes: int) -> float:
        """Of one step on a lane; a different line for each."""
        of_byte = {"weights_in": 1e-9, "loading": 1e-9, "cache_out": 2e-9, "disk_in": 3e-11, "disk_out": 7e-11}
        return 1e-6 + nbytes * of_byte[lane]

    @staticmethod
    def linear_s(stored: str, elements: int, tokens: int) -> float:
        return 1e-6 + elements * {"float32": 4e-9, "float16": 2e-9, "int4": 1e-9, "int8": 1.5e-9}[stored] * (
            1 + tokens / 3
        )

    @staticmethod
    def bytes_s(operator: str, nbytes: int) -> float:
        """Of operators whose time follows from bytes: another rate for every name."""
        return 2e-6 + nbytes * 1e-10 * (1 + len(operator))

    host_beside_link = 1.5
    """How many times as long operators on a lane take while weights come to the device."""

    def _run(self, seconds: float) -> None:
        if self.on_lane is not None:
            self.on_lane += seconds
            return
        self.now += self.call_s
        self.device_end = max(self.device_end, self.now) + seconds
        if not self.asynchronous:
            self.now = self.device_end

    def submit(self, lane: str, steps: Sequence[LaneStep], after: Sequence[Any]) -> Any:
        begin = max([self.now, self.lane_end.get(lane, 0.0), *(ticket.times()[-1][1] for ticket in after)])
        times = []
        for step in steps:
            operators = isinstance(step, HostWork) and step.operators
            end = self._called(step, begin) if operators else begin + self.step_s(lane, step.nbytes)
            times.append((begin, end))
            begin = end
            if isinstance(step, HostWork):
                self.disk_bytes[lane] += step.nbytes
        self.lane_end[lane] = begin
        return FakeTicket(self, times)

    def _called(self, step: Any, begin: float) -> float:
        """When operators that a lane calls from `begin` on have ended."""
        self.on_lane = 0.0
        step.call()
        alone, self.on_lane = self.on_lane, None
        beside = max(0.0, self.lane_end.get("weights_in", 0.0) - begin)
        return begin + min(alone * self.host_beside_link, alone + beside * (1 - 1 / self.host_beside_link))

    def mark(self) -> Any:
        at = max(self.now, self.device_end)
        return FakeTicket(self, [(at, at)])

    def wait(self, ticket: Any) -> None:
        self.device_end = max(self.device_end, ticket.times()[-1][1])

    def linear(self, x: Any, w: Any, b: Any, *, out: Any = None, add: bool = False) -> Any:
        stored = f"int{w.bits}" if isinstance(w, QuantizedMatrix) else str(w.dtype)
        self._run(self.linear_s(stored, w.shape[0] * w.shape[1], x.shape[0]))
        return super().empty((x.shape[0], w.shape[0]), "float32") if out is None else out

    def expand(self, w: Any, out: Any) -> Any:
        self._run(self.bytes_s("expand", out.size))
        return out

    def gather(self, table: Any, ids: Any, first: int, out: Any) -> Any:
        self._run(self.bytes_s("gather", out.nbytes))
        return out

    def add_rows(self, x: Any, table: Any, ids: Any) -> Any:
        self._run(self.bytes_s("add_rows", x.nbytes))
        return x

    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float, out: Any = None) -> Any:
        self._run(self.bytes_s("layer_norm", x.nbytes))
        return super().empty(x.shape, "float32") if out is None else out

    def activate(self, x: Any, activation: str) -> Any:
        self._run(self.bytes_s("activate", x.nbytes))
        return x

    def assign(self, target: Any, source: Any) -> None:
        self._run(self.bytes_s("assign", target.nbytes))

    def sample(self, logits: Any, *settings: Any) -> Any:
        self._run(self.bytes_s("sample", logits.nbytes))
        self.now = max(self.now, self.device_end)
        return np.zeros(logits.shape[0], np.int64)

    def segments(self, past: Sequence[int], new: Sequence[int]) -> Any:
        self.now += self.segments_s
        return super().segments(past, new)

    def append(self, rows: Any, segments: Any, k: Any, v: Any) -> None:
        self._run(self.bytes_s(f"append {rows.layout.scheme}", sum(segments.new) * rows.layout.record_bytes))

    @staticmethod
    def attend_s(scheme: str, head_width: int, amount: int) -> float:
        return 3e-6 + amount * (1e-10 if scheme == "none" else 3e-10) * head_width

    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        pairs = list(zip(segments.past, segments.new, strict=True))
        if all(new == 1 for _, new in pairs):
            amount = sum(past + new for past, new in pairs) * rows.layout.record_bytes
        else:
            amount = 4 * q.shape[1] * sum(past * new + new * (new + 1) // 2 for past, new in pairs)
        self._run(self.attend_s(rows.layout.scheme, rows.layout.head_width, amount))
        return out


@pytest.fixture(scope="module", params=[False, True], ids=["synchronous", "asynchronous"])
def fake(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """What a profile says of a port that makes its times up."""
    port = FakePort(request.param, call_s=5e-6 if request.param else 0.0)
    disk = tmp_path_factory.mktemp("disk")
    machine = measure_machine(port, disk, sizes=TINY, clock=port.clock)
    assert machine.port.asynchronous == request.param
    return machine


def same(curve: Any, expected: Callable[[int], float]) -> None:
    """Every point of a curve is what the port took."""
    assert len(curve.points) > 1
    for size, seconds in curve.points:
        assert seconds == pytest.approx(expected(round(size)), rel=1e-6), size


def test_copies_take_what_the_lanes_took(fake: Machine) -> None:
    for link in LINKS:
        same(fake.copies[link], lambda nbytes, link=link: FakePort.step_s(LANES_OF[link], nbytes))
    same(fake.copies[WEIGHT_FILE], lambda nbytes: FakePort.step_s("disk_in", nbytes))


def test_products_take_what_the_port_took(fake: Machine) -> None:
    assert set(fake.products) == {"float32", "float16", "int4", "int8"}
    for stored, surface in fake.products.items():
        assert [elements for elements, _ in surface.curves] == [width**2 for width in TINY.widths]
        for elements, curve in surface.curves:
            assert [tokens for tokens, _ in curve.points] == list(TINY.tokens)
            same(curve, lambda tokens, at=elements, stored=stored: FakePort.linear_s(stored, at, tokens))


class ReplayingPort(FakePort):
    """An asynchronous port that records: replayed operators leave out what stands between two of them."""

    GAP_S, REPLAY_S, RECORD_S = 1e-6, 3e-6, 2e-5

    def __init__(self) -> None:
        super().__init__(True, call_s=5e-6)
        self.caps = replace(self.caps, recorded_bytes=1 << 20)
        self.recording: list[float] | None = None
        self.held = self.replays = 0

    def _run(self, seconds: float) -> None:
        if self.recording is None:
            super()._run(seconds)
        else:
            self.now += self.RECORD_S
            self.recording.append(seconds - self.GAP_S)

    def record(self, operators: Callable[[], None]) -> Any:
        self.recording, self.held = [], self.held + 1
        operators()
        found, self.recording = self.recording, None
        return found

    def replay(self, recording: Any) -> None:
        self.replays += 1
        self.now += self.REPLAY_S
        self.device_end = max(self.device_end, self.now) + sum(recording)

    def forget(self, recording: Any) -> None:
        self.held -= 1


def test_short_operators_are_timed_as_they_are_replayed_and_no_recording_is_left(tmp_path: Path) -> None:
    port = ReplayingPort()
    with Meter(port, TINY, clock=port.clock) as meter:
        surfaces = product_surfaces(meter)
        host = host_seconds(meter, tmp_path)
    for stored, surface in surfaces.items():
        for elements, curve in surface.curves:
            for tokens, seconds in curve.points:
                own_s = FakePort.linear_s(stored, round(elements), round(tokens))
                assert seconds == pytest.approx(own_s - (port.GAP_S if own_s < REPLAYED_S else 0))
    assert port.replays
    assert not port.held
    assert host.replay == pytest.approx(port.REPLAY_S)
    assert host.record == pytest.approx(port.RECORD_S + port.REPLAY_S / REPLAYED)
    assert host.call == pytest.approx(port.call_s)


def test_what_there_is_no_time_for_is_no_time_of_the_host() -> None:
    """An operator of microseconds, called once and waited for, costs the host as much again."""
    port = FakePort(True, call_s=5e-6)
    with Meter(port, replace(TINY, bound_s=0.0), clock=port.clock) as meter:
        surfaces = product_surfaces(meter)
        for stored, surface in surfaces.items():
            for elements, curve in surface.curves:
                for tokens, seconds in curve.points:
                    assert seconds == pytest.approx(FakePort.linear_s(stored, round(elements), round(tokens)))
        assert meter.record.warnings


def test_operators_take_what_the_port_took(fake: Machine) -> None:
    for name in ("layer_norm", "activate", "gather", "add_rows", "assign", "append none", "append int4"):
        same(fake.operators[name], lambda nbytes, name=name: FakePort.bytes_s(name, nbytes))
    assert set(fake.expansions) == {"float16", "int4", "int8"}
    for curve in fake.expansions.values():
        same(curve, lambda elements: FakePort.bytes_s("expand", elements))


def test_attention_takes_what_the_port_took(fake: Machine) -> None:
    for place, scheme, width in product(("device", "host"), ("none", "int4"), TINY.head_widths):
        key = attention_key(place, scheme, width)
        for curves in (fake.decode_attention, fake.prefill_attention):
            same(curves[key], lambda amount, scheme=scheme, width=width: FakePort.attend_s(scheme, width, amount))


def test_a_sample_is_timed_with_its_end(fake: Machine) -> None:
    """Its call waits: of an asynchronous port it contains at most one call's time on the host."""
    for nbytes, seconds in fake.operators["sample"].points:
        own_s = FakePort.bytes_s("sample", round(nbytes))
        assert own_s * (1 - 1e-6) <= seconds <= own_s + 6e-6


def test_the_hosts_own_work_is_told_apart_by_visits_and_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = BlockComputation.compute
    for port in (FakePort(False, 0.0, 2e-4), FakePort(True, 5e-6, 2e-4)):

        def visit_slowly(block: BlockComputation, visit: Visit, port: FakePort = port) -> None:
            port.now += 3e-5
            compute(block, visit)

        monkeypatch.setattr(BlockComputation, "compute", visit_slowly)
        with Meter(port, TINY, None, port.clock) as meter:
            found = host_seconds(meter, tmp_path)
        assert found.call == pytest.approx(5e-6 if port.asynchronous else 1e-9, rel=1e-6)
        assert found.visit == pytest.approx(3e-5, rel=0.02)
        assert found.choice == pytest.approx(2e-4, rel=0.02)  # segments are made once per group and pass
        assert found.choice_row == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_attention_on_the_host_is_slowed_as_much_as_the_port_slows_it(asynchronous: bool) -> None:
    port = FakePort(asynchronous)
    with Meter(port, replace(TINY, beside_s=0.02), None, port.clock) as meter:
        found = slowdowns(meter, None)
    slowed = {LINKS[0]: pytest.approx(port.host_beside_link, rel=1e-6)}
    assert {name: found.get(name) for name in HOST_ATTENTION.values()} == dict.fromkeys(HOST_ATTENTION.values(), slowed)
    assert not any(name in told for told in found.values() for name in HOST_ATTENTION.values())


def test_caches_for_attention_on_the_host_take_no_time_from_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    port, make = FakePort(True), profile_slowdowns.host_attends

    def slowly(meter: Meter, memory: Memory, scheme: str) -> list[Call]:
        port.now += 60.0
        return make(meter, memory, scheme)

    monkeypatch.setattr(profile_slowdowns, "host_attends", slowly)
    with Meter(port, replace(TINY, beside_s=0.02, bound_s=20.0), None, port.clock) as meter:
        slowdowns(meter, None)
        assert meter.record.cut_curves == 0


@pytest.mark.parametrize(
    ("sizes", "most"), [(Sizes.full(), 1024 * MIB), (Sizes.quick(), 128 * MIB)], ids=["full", "quick"]
)
def test_the_traffic_of_the_disk_is_bounded(sizes: Sizes, most: int, tmp_path: Path) -> None:
    port = FakePort(asynchronous=False)
    with Meter(port, sizes, None, port.clock) as meter, files(meter, tmp_path) as found:
        copy_curves(meter, found)
        slowdowns(meter, found)
    assert sizes.file_bytes < port.disk_bytes["disk_in"] <= most
    before = found.spill_bytes + sizes.file_bytes  # what is written without being timed
    assert sizes.file_bytes < port.disk_bytes["disk_out"] + before <= most


def test_what_spreads_widely_is_named_with_its_spread() -> None:
    with Meter(FakePort(asynchronous=False), TINY) as meter:
        assert meter.record.figure("steady", "4 bytes", [1.0, 1.01, 1.02, 1.0, 9.0]) == 1.01
        meter.record.figure("shaky", "4 bytes", [1.0, 1.3, 1.0, 1.3, 1.1])
        meter.record.figure("shaky", "8 bytes", [1.0, 2.0, 1.0, 2.0, 1.5])
        (warning,) = meter.record.warnings
    assert warning.startswith("shaky: ")
    assert warning.endswith("spreads over 67% of their median at 8 bytes")


def test_a_curve_ends_where_a_call_takes_too_long(tmp_path: Path) -> None:
    port = FakePort(asynchronous=False)

    def points() -> Any:
        for power in range(20):
            yield Point(2.0**power, str(power), [lambda power=power: port._run(0.001 * 2**power)])

    with Meter(port, TINY, None, port.clock) as meter:
        curve = meter.curve("slow", points(), 20)
    assert curve.points[-2][1] <= TINY.longest_s < curve.points[-1][1]


class SlowPort(FakePort):
    """Whatever it does takes as long as thousands of times would on another."""

    slower = 20_000.0

    def _run(self, seconds: float) -> None:
        super()._run(seconds * self.slower)

    @staticmethod
    def step_s(lane: str, nbytes: int) -> float:
        return FakePort.step_s(lane, nbytes) * 100


def test_a_bound_on_its_seconds_is_kept_and_what_was_not_measured_has_a_safe_bound(tmp_path: Path) -> None:
    """Safe: no shorter than what the port would have taken. Each curve has its first point whatever that takes."""
    port = SlowPort(asynchronous=False)
    unbounded = measure_machine(port, tmp_path, sizes=TINY, clock=port.clock)
    whole_s, begin = port.now, port.now
    machine = measure_machine(port, tmp_path, sizes=replace(TINY, bound_s=5.0), clock=port.clock)
    assert whole_s > 100
    assert port.now - begin < 0.3 * whole_s
    assert any("there was no time to measure" in warning for warning in machine.warnings)
    for kind in ("copies", "expansions", "decode_attention", "prefill_attention", "operators"):
        bounded, whole = getattr(machine, kind), getattr(unbounded, kind)
        assert bounded.keys() == whole.keys()
        for name in whole:
            for size, seconds in whole[name].points:
                assert bounded[name].seconds(size) >= seconds * (1 - 1e-6), (name, size)
    for stored, surface in unbounded.products.items():
        for elements, curve in surface.curves:
            for tokens, seconds in curve.points:
                assert machine.products[stored].seconds(elements, tokens) >= seconds * (1 - 1e-6), (stored, tokens)
    pairs = combinations(RESOURCES, 2)
    assert all(machine.slowdown(one, other) >= unbounded.slowdown(one, other) for one, other in pairs)


def test_a_bound_that_is_wide_enough_changes_nothing(tmp_path: Path) -> None:
    found = []
    for bound_s in (math.inf, 1e6):
        port = FakePort(asynchronous=False)
        machine = measure_machine(port, tmp_path, sizes=replace(TINY, bound_s=bound_s), clock=port.clock)
        found.append(machine.changed(sources={}, quality=None, capacity_bytes={"device": 1, "host": 1, "disk": 1}))
    assert found[0] == found[1]


class CompilingPort(FakePort):
    """An operator takes the host two seconds when it is first called with anything of a kind."""

    def __init__(self) -> None:
        super().__init__(asynchronous=True, call_s=5e-6)
        self._compiled: set[str] = set()
        for name in (
            "linear",
            "expand",
            "gather",
            "add_rows",
            "layer_norm",
            "activate",
            "assign",
            "sample",
            "append",
            "attend",
        ):
            setattr(self, name, self._compiling(name, getattr(self, name)))

    def _compiling(self, name: str, operator: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            kind = name + " ".join(type(argument).__name__ for argument in arguments)
            if kind not in self._compiled:
                self._compiled.add(kind)
                self.now += 2.0
            return operator(*arguments, **options)

        return call


def test_what_a_port_compiles_cuts_no_curve_and_is_in_none(tmp_path: Path) -> None:
    found = []
    for port in (FakePort(True, 5e-6), CompilingPort()):
        machine = measure_machine(port, tmp_path, sizes=replace(TINY, bound_s=5.0), clock=port.clock)
        assert not [warning for warning in machine.warnings if "there was no time" in warning]
        found.append(machine)
    for kind in ("copies", "expansions", "decode_attention", "prefill_attention", "operators"):
        for name, curve in getattr(found[0], kind).items():
            assert dict(getattr(found[1], kind)[name].points) == pytest.approx(dict(curve.points), rel=1e-3), name


def test_no_size_of_a_copy_takes_the_time_of_the_others(tmp_path: Path) -> None:
    """Small copies on a device that is kept busy take much longer than what is counted of them."""
    port = FakePort(True, 5e-6)
    sizes = replace(TINY, sustained_s=0.05, bound_s=3.0)
    machine = measure_machine(port, tmp_path, sizes=sizes, clock=port.clock)
    for link in LINKS[:2]:
        assert [size for size, _ in machine.copies[link].points] == list(TINY.copies)


STALL_S, STALLED = 0.1, 40
"""How long the stall is, and the number of the copy: one of the first size."""


class StallingPort(FakePort):
    """One copy from the device takes `STALL_S` longer, as when another virtual machine has the processors."""

    def __init__(self) -> None:
        super().__init__(True, 5e-6)
        self.submitted = Counter[str]()

    def submit(self, lane: str, steps: Sequence[LaneStep], after: Sequence[Any]) -> Any:
        self.submitted[lane] += 1
        ticket = super().submit(lane, steps, after)
        if lane == "cache_out" and self.submitted[lane] == STALLED:
            (begin, end), *_ = ticket.times()
            self.lane_end[lane] = end + STALL_S
            return FakeTicket(self, [(begin, end + STALL_S)])
        return ticket


@pytest.mark.parametrize(
    "sizes", [Sizes.quick(), replace(Sizes.quick(), sustained_s=0.7, bound_s=4.0)], ids=["quick", "bounded"]
)
def test_a_stall_does_not_stand_for_all_copies_of_its_size(sizes: Sizes) -> None:
    """Nor where a profile was to measure for long, and has not the time."""
    port = StallingPort()
    with Meter(port, sizes, None, port.clock) as meter:
        curves = copy_curves(meter, None)
    for nbytes, seconds in curves[LINKS[1]].points:
        assert seconds == pytest.approx(port.step_s("cache_out", nbytes), rel=1e-3)


@pytest.mark.parametrize("sizes", [Sizes.full(), Sizes.quick()], ids=["full", "quick"])
def test_a_copy_takes_no_longer_than_one_of_more_bytes(sizes: Sizes) -> None:
    class Uneven(FakePort):
        """Copies of the first size take longer than those of the second."""

        @staticmethod
        def step_s(lane: str, nbytes: int) -> float:
            return FakePort.step_s(lane, nbytes) + (1e-3 if nbytes == sizes.copies[0] else 0.0)

    port = Uneven(True, 5e-6)
    with Meter(port, sizes, None, port.clock) as meter:
        curves = copy_curves(meter, None)
    for link in LINKS[:2]:
        (_, first_s), (second, second_s), *_ = curves[link].points
        assert first_s == second_s == pytest.approx(port.step_s(LANES_OF[link], second), rel=1e-3)
