"""Operators that are replayed on the port that only counts: counted and timed as called ones, but for the host."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from flexref_dry import DryBackend
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import stages as stages_of
from flexref.backend.records import RecordLayout
from flexref.block.rows import AlikeRows, RowLengths
from flexref.machine.machine import HostSeconds, Machine
from flexref.machine.plain import plain_machine
from flexref.policy import Policy, Shares
from flexref.simulator.simulate import simulate
from flexref.storage.random_weights import random_file

LAYOUT = RecordLayout(2, 16, "float16")
CAPACITY = 64
SPEC = ModelSpec("small", 512, 128, 64, 64, 3, 4, 256)
HOST = HostSeconds(1e-12, 1e-5, 1e-5, 1e-4, 1e-6, replay=3e-6, record=2e-5)


def recording_machine() -> Machine:
    machine = plain_machine(memory_per_s=1e9, flops_per_s=1e12)
    return machine.changed(host_s=HOST, port=replace(machine.port, fused_rows=64, recorded_bytes=1 << 20))


class Rows:
    """Rows of one new token each, and the operators of a layer on them."""

    def __init__(self, rows: int) -> None:
        self.port = DryBackend(machine=recording_machine())
        self.records = [self._array((CAPACITY * LAYOUT.record_bytes,), "uint8") for _ in range(rows)]
        self.x, self.out = self._array((rows, 32), "float16"), self._array((rows, 32), "float16")
        self.w = self._array((32, 32), "float16")

    def _array(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self.port.view(self.port.allocate("device", 1 << 20), 0, shape, dtype)

    def handles(self, past: Sequence[int]) -> tuple[Any, Any]:
        return self.port.cache_rows(self.records, LAYOUT), self.port.segments(past, [1] * len(past))

    def operators(self, handles: tuple[Any, Any]) -> Callable[[], None]:
        def call() -> None:
            self.port.layer_norm(self.x, None, None, 1e-5, self.out)
            self.port.linear(self.x, self.w, None, out=self.out)
            self.port.append(*handles, self.x, self.x)
            self.port.attend(*handles, self.x, 1.0, self.out)

        return call

    def seconds(self) -> tuple[float, float]:
        """(of the host, of the device) until now."""
        timing = self.port.timing
        assert timing is not None
        host_s = timing.now_s
        self.port.mark().wait()
        return host_s, dict(timing.busy_s).get("compute", 0.0)


PAST = st.lists(st.integers(0, CAPACITY - 2), min_size=1, max_size=4)


@given(PAST, st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_a_replay_is_counted_and_timed_as_calls_with_the_lengths_of_now(past: Sequence[int], more: list[int]) -> None:
    called, replayed = Rows(len(past)), Rows(len(past))
    handles = replayed.handles(past)
    recording = replayed.port.record(replayed.operators(handles))
    assert not replayed.port.calls
    assert replayed.seconds()[1] == 0
    assert replayed.seconds()[0] == pytest.approx(4 * HOST.record)
    for grown in more:
        now = [min(CAPACITY - 1, tokens + grown) for tokens in past]
        called.operators(called.handles(now))()
        assert replayed.port.renew_rows([handles[0]], replayed.records)
        assert replayed.port.renew_segments(handles[1], now, [1] * len(now))
        before_s = replayed.seconds()[0]
        replayed.port.replay(recording)
        assert replayed.seconds()[0] - before_s >= HOST.replay * (1 - 1e-9)
    assert replayed.port.calls == called.port.calls
    assert replayed.port.flops == called.port.flops
    assert replayed.seconds()[1] == pytest.approx(called.seconds()[1])


def test_a_handle_of_other_rows_needs_another_recording() -> None:
    rows = Rows(2)
    caches, segments = rows.handles([3, 4])
    assert not rows.port.renew_rows([caches], rows.records[:1])
    assert len(caches.capacities) == 2
    assert not rows.port.renew_segments(segments, [3], [1])
    assert not rows.port.renew_segments(segments, [3, 4], [1, 2])
    assert segments.lengths == ((3, 1), (4, 1))


@pytest.mark.parametrize("shares", [Shares(), Shares(0, 1, 0)])
def test_of_a_job_whose_passes_are_replayed_the_hosts_calls_are_not_waited_for(shares: Shares) -> None:
    """Where calling is slow. Of 63 decode passes two at most are called and two recorded; no later one costs that."""
    slow = HostSeconds(1e-3, 1e-6, 1e-6, 1e-6, 1e-6, replay=1e-6, record=2e-3)
    machine = recording_machine().changed(host_s=slow)
    calling = machine.changed(port=replace(machine.port, recorded_bytes=0))
    file, policy, job = random_file(SPEC), Policy(weights=shares), AlikeRows(RowLengths(8, 64), 1)
    replayed, called = (simulate(file, each, policy, job) for each in (machine, calling))
    assert called.decode_s > 63 * 20 * slow.call
    more_s = replayed.prefill_s + replayed.decode_s - called.prefill_s  # a pass may be recorded in the one before it
    assert 20 * slow.record < more_s < 10 * called.decode_s / 63
    assert replayed.link_bytes == called.link_bytes


def host_visits(shares: Shares, groups: int, record_bytes: int) -> tuple[float, float, int]:
    """(prefill, decode) in seconds of a host whose visits alone take time, a second each; and the stages of a pass."""
    host = HostSeconds(1e-9, 1e-9, visit=1.0, choice=0.0, choice_row=0.0, replay=1e-9, record=1e-9)
    machine = recording_machine().changed(host_s=host)
    machine = machine.changed(port=replace(machine.port, recorded_bytes=record_bytes))
    file, policy = random_file(SPEC), Policy(weights=shares, rows_per_group=1, groups_per_block=groups)
    found = simulate(file, machine, policy, AlikeRows(RowLengths(8, 12), groups))
    return found.prefill_s, found.decode_s, len(stages_of(SPEC, file.tile_rows))


@given(st.integers(1, 3))
def test_the_host_goes_through_a_whole_pass_twice_to_record_it_and_not_to_replay_it(groups: int) -> None:
    """What lies on the device is recorded ahead, while the prefill is still under way, and so prolongs it."""
    called_s, _, stages = host_visits(Shares(), groups, 0)
    prefill_s, decode_s, _ = host_visits(Shares(), groups, 1 << 20)
    assert called_s == pytest.approx(stages * groups, rel=1e-3)
    assert prefill_s + decode_s == pytest.approx(3 * stages * groups, rel=1e-3)
    assert decode_s < 1


def test_passes_that_are_called_ahead_and_not_simulated_take_no_time_of_those_that_are() -> None:
    """Of 127 passes of decode some are run on the clock. Where nothing is the host's, each takes what its operators do,
    and so as long as if it were not called ahead."""
    machine = recording_machine().changed(host_s=HostSeconds(1e-12, 1e-12, 0.0, 0.0, 0.0, replay=1e-12, record=1e-12))
    calling = machine.changed(port=replace(machine.port, recorded_bytes=0))
    file, job = random_file(SPEC), AlikeRows(RowLengths(8, 128), 2)
    ahead, called = (simulate(file, each, Policy(rows_per_group=2), job) for each in (machine, calling))
    assert ahead.decode_s == pytest.approx(called.decode_s, rel=0.02)


@given(st.integers(1, 3))
def test_the_host_goes_through_a_visit_once_more_to_record_it(groups: int) -> None:
    """Weights that come over the link, in slots that take turns: each visit is recorded for one slot and the other."""
    _, called_s, stages = host_visits(Shares(0, 1, 0), groups, 0)
    _, decode_s, _ = host_visits(Shares(0, 1, 0), groups, 1 << 20)
    assert called_s == pytest.approx(11 * stages * groups, rel=1e-3)
    turns = 1 + stages % 2  # of an odd number of stages each finds both slots
    assert decode_s == pytest.approx((11 + turns) * stages * groups, rel=1e-3)


@pytest.mark.parametrize("fits", [True, False])
def test_recordings_that_find_no_room_are_predicted_to_be_called(fits: bool) -> None:
    """Of weights that come over the link each visit is recorded by itself: many of them hold more than there is."""
    slow = HostSeconds(1e-3, 1e-6, 1e-6, 1e-6, 1e-6, replay=1e-6, record=2e-3)
    machine, calls = recording_machine().changed(host_s=slow), 9  # of a layer
    recording_bytes, call_bytes = 64 << 10, 16 << 10
    room = (recording_bytes + calls * call_bytes) * (100 if fits else 1)
    port = replace(machine.port, recorded_bytes=room, recording_bytes=recording_bytes, recorded_call_bytes=call_bytes)
    file, policy, job = random_file(SPEC), Policy(weights=Shares(0, 1, 0)), AlikeRows(RowLengths(8, 64), 1)
    found = simulate(file, machine.changed(port=port), policy, job)
    called = simulate(file, machine.changed(port=replace(port, recorded_bytes=0)), policy, job)
    assert (found.decode_s < called.decode_s / 4) == fits
    assert fits or found.decode_s > called.decode_s / 2
