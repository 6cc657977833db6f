"""What a job's account says of memory: seconds to take it, the most that the job held, and what loading needs."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flexref_numpy import NumpyBackend
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.block.budgets import engine_needs, lasting_needs, loading_need, totals
from flexref.block.rows import RowLengths
from flexref.block.tracing.trace import Trace
from flexref.check.models import write_model
from flexref.engine.engine import Engine
from flexref.engine.events import Event
from flexref.engine.request import Request
from flexref.engine.scoring import ScoredRow
from flexref.errors import CapacityError
from flexref.loading import load
from flexref.policy import Policy, Shares
from flexref.storage.weightfile import open_weight_file
from flexref.testing import strategies as own
from flexref.tiers.weights_plan import WeightsPlan
from flexref.units import Tier, slots_of

SPEC = ModelSpec("small", 50, 48, 16, 16, 4, 2, 32)
GIB = 1 << 30
SLOW_S = 1000.0
"""What an allocation, or giving it back, takes on the slow port: longer than all else in these jobs."""


class SlowMemory(NumpyBackend):
    """Takes its time to allocate and to release, as pinning does: on a clock that jumps while it is at it."""

    allocate_s = release_s = 0.0
    calls = 0

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.slept_s, plain = 0.0, time.perf_counter
        monkeypatch.setattr(time, "perf_counter", lambda: plain() + self.slept_s)

    def allocate(self, tier: str, nbytes: int) -> Any:
        self.slept_s += self.allocate_s
        self.calls += 1
        return super().allocate(tier, nbytes)

    def release(self, buffer: Any) -> None:
        self.slept_s += self.release_s
        super().release(buffer)


def generated(engine: Engine, rows: list[list[int]], new: int = 2) -> Any:
    return engine.generate(rows, Request(new, ignore_eos=True)).stats


def scored(engine: Engine, rows: list[list[int]]) -> Any:
    return engine.score([ScoredRow(tuple(row)) for row in rows]).stats


JOBS: tuple[Callable[..., Any], ...] = (generated, scored)


@pytest.fixture
def path(tmp_path: Path) -> str:
    write_model(tmp_path / "model.h5", SPEC)
    return str(tmp_path / "model.h5")


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("slow", ["allocate_s", "release_s"])
def test_the_seconds_of_taking_and_returning_memory_are_in_the_account(
    path: str, job: Callable[..., Any], slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = SlowMemory(monkeypatch)
    with load(path, policy=Policy(cache=Shares(0, 1, 0), rows_per_group=1), backend=port) as engine:
        job(engine, [[1, 2, 3]])
        port.calls = 0
        job(engine, [[1, 2, 3]])
        calls_alone, port.calls = port.calls, 0
        setattr(port, slow, SLOW_S)
        start = time.perf_counter()
        stats = job(engine, [[1, 2, 3]] * 3)
        whole_s = time.perf_counter() - start
        setattr(port, slow, 0.0)
    assert (stats.blocks, stats.rows_admitted, stats.rows_retired) == (1, 3, 3)
    assert port.calls == calls_alone, "a place is used again without an allocation"
    assert stats.allocate_s >= SLOW_S * port.calls
    assert stats.prefill_s + stats.decode_s < SLOW_S * port.calls
    assert stats.allocate_s + stats.prefill_s + stats.decode_s <= whole_s
    assert stats.to_json()["allocate_s"] == stats.allocate_s


@pytest.mark.parametrize("job", JOBS)
def test_a_peak_is_that_of_its_own_job(path: str, job: Callable[..., Any]) -> None:
    policy = Policy(cache=Shares(0, 1, 0), activations=Shares(0, 1, 0), rows_per_group=4)
    with load(path, policy=policy) as engine:
        engine.session.weights_for(policy)
        small = job(engine, [[1, 2, 3]]).peak_bytes
        large = job(engine, [[1] * 20] * 4).peak_bytes
        assert large["device"] > small["device"]
        assert large["host"] > small["host"] or job is scored
        assert job(engine, [[1, 2, 3]]).peak_bytes == small
        held = {tier.value: arena.held_bytes for tier, arena in engine.session.arenas.items()}
    assert all(held[tier] <= small[tier] for tier in held)


@settings(max_examples=settings.default.max_examples // 2)  # each example is several jobs
@given(policy=own.policies(), rows=st.integers(1, 4), prompt=st.integers(1, 12), new=st.integers(1, 6))
def test_the_plan_counts_what_loading_needs_to_the_byte(
    model_file: Any, policy: Policy, rows: int, prompt: int, new: int
) -> None:
    """A budget of what the plan names is enough to load and to run; a byte less is refused before anything is read."""
    path = model_file(SPEC)
    prompts = [[1] * prompt] * rows
    policy = policy.changed(read_ahead_gib=policy.read_ahead_gib or 0)  # what is chosen is less where there is less
    with load(path, policy=policy, scratch_bytes=1 << 16) as engine:
        weights = WeightsPlan.under(engine.file, policy)
        block = engine.session.memory_plan(policy, weights, [RowLengths(prompt, new)] * rows)
        lasting = lasting_needs(weights, engine.backend.caps)
        both = [totals([*lasting, *block.needs()]), totals([*lasting, loading_need(weights)])]
        peak = max(each[Tier.HOST] for each in both)
        # Where there is room, weights load beside the first pass.
        beside = peak + weights.loading_beside_bytes
        assert peak <= generated(engine, prompts, new).peak_bytes["host"] <= beside
    if not peak:
        return
    with load(path, policy=policy, scratch_bytes=1 << 16, host_mem_gib=peak / GIB) as engine:
        assert generated(engine, prompts, new).peak_bytes["host"] == peak
    loaded: list[Event] = []
    options: dict[str, Any] = {"scratch_bytes": 1 << 16, "host_mem_gib": (peak - 1) / GIB, "on_event": loaded.append}
    refused = pytest.raises(CapacityError, match="host memory is too small by")
    with load(path, policy=policy, **options) as engine, refused:
        generated(engine, prompts, new)
    assert not loaded


def test_a_policy_that_fits_but_for_its_loading_is_refused_by_the_plan(path: str) -> None:
    policy = Policy(Shares(0.3, 0.7, 0))
    weights = WeightsPlan.of(open_weight_file(path), policy.weights, slots_of(policy.overlap))
    assert weights.loading_bytes
    with load(path, policy=policy) as engine:
        plan = engine.session.memory_plan(policy, weights, [RowLengths(3, 6)])
        need = totals(iter([*engine_needs(engine.backend.caps), *weights.needs(), *plan.needs()]))[Tier.HOST]
    with load(path, policy=policy, host_mem_gib=need / GIB) as engine:
        with pytest.raises(CapacityError, match="loading") as error:
            engine.session.memory_plan(policy, weights, [RowLengths(3, 6)])
        assert error.value.needed_bytes == need + weights.loading_bytes


def test_lanes_go_by_plain_names_in_the_account_and_in_a_trace(path: str, tmp_path: Path) -> None:
    policy = Policy(cache=Shares(0, 1, 0))
    with load(path, policy=policy, backend=NumpyBackend()) as engine, Trace(tmp_path / "trace.json") as trace:
        stats = engine.generate([[1, 2, 3]], Request(2, ignore_eos=True), trace=trace).stats
    assert {"loading", "cache_in", "cache_out", "compute"} == stats.lane_busy.keys()
    assert {type(name) for name in stats.lane_busy} == {str}
    events = json.loads((tmp_path / "trace.json").read_text())
    threads = [event["args"]["name"] for event in events if event["name"] == "thread_name"]
    assert sorted(threads) == sorted(stats.lane_busy)
