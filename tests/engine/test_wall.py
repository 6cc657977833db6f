"""Where a job's whole time goes: parts add up, to the nanosecond, and no moment counts in two parts or in two jobs."""

import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from flexref_numpy import NumpyBackend
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flexref.architecture.spec import ModelSpec
from flexref.backend.compiling import CompileTime
from flexref.backend.pinning_time import PinningTime
from flexref.backend.protocol import Lane
from flexref.check.models import write_model
from flexref.engine.engine import Engine
from flexref.engine.held_weights import HeldWeights
from flexref.engine.request import Request, RowRequest
from flexref.engine.results import Stats
from flexref.engine.scoring import ScoredRow
from flexref.engine.session import Session
from flexref.engine.wall import BEGINS, NANOSECONDS, PARTS, Wall, WallPart
from flexref.errors import PromptError
from flexref.loading import advisor, load, open_engine
from flexref.policy import Policy
from flexref.testing import strategies as own

SPEC = ModelSpec("small", 50, 48, 16, 16, 4, 2, 32)
ROUNDING_S = 1e-12
"""Bounds what adding up ten floats of seconds may lose."""

NAMED = st.sampled_from([part for part in WallPart if part is not WallPart.COMPILE])
"""What a context says; compiling is told by the port."""

SLOW_S = 0.03
"""Longer than all else in these jobs."""


class Clocked(RuleBasedStateMachine):
    """A wall beside a plain account: at every tick one part is named, by what is open and what has been compiled."""

    @initialize(age=st.integers(0, 50), at=NAMED)
    def begin(self, age: int, at: WallPart) -> None:
        self.now, self.compiling, self.pinning = 1000, CompileTime(), PinningTime()
        self.wall = Wall("process", age, at=at, clock=lambda: self.now)
        self.wall.watch(WallPart.COMPILE, self.compiling)
        self.wall.watch(WallPart.ALLOCATE, self.pinning)
        self.expected: Counter[WallPart] = Counter({at: age})
        self.pass_ns, self.age = 0, age
        self.open: list[tuple[Any, WallPart | None]] = []
        self.at: list[WallPart | None] = [at]
        self.jobs: list[dict[WallPart, int]] = []
        self.rest = WallPart.DECODE

    @rule(ticks=st.integers(0, 9), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)))
    def pass_time(self, ticks: int, shares: tuple[float, float]) -> None:
        """Of the time a share is compiling, and of the rest one is waiting for memory to be pinned."""
        compiled = int(ticks * shares[0])
        pinned = int((ticks - compiled) * shares[1])
        self.now += ticks
        self.compiling.seconds += compiled / NANOSECONDS
        self.pinning.seconds += pinned / NANOSECONDS
        read, left = dict(self.wall.read()), ticks
        for part, waited in ((WallPart.COMPILE, compiled), (WallPart.ALLOCATE, pinned)):
            if part is self.at[-1]:  # what nobody waited for goes there too
                continue
            counted = read[part] - self.expected[part]
            assert abs(counted - waited) <= 1, "but for the rounding of seconds"
            self.expected[part] += counted
            left -= counted
        if self.at[-1] is None:
            self.pass_ns += left
        else:
            self.expected[self.at[-1]] += left

    @rule(part=NAMED)
    def enter(self, part: WallPart) -> None:
        context = self.wall.part(part)
        context.__enter__()
        self.open.append((context, part))
        self.at.append(part)

    @precondition(lambda self: None not in self.at)
    @rule(rest=st.sampled_from([WallPart.PREFILL, WallPart.DECODE]))
    def enter_passes(self, rest: WallPart) -> None:
        context = self.wall.passes(rest)
        context.__enter__()
        self.open.append((context, None))
        self.at.append(None)
        self.rest = rest

    @precondition(lambda self: None in self.at)
    @rule(part=st.sampled_from([WallPart.PREFILL, WallPart.DECODE]))
    def end_pass(self, part: WallPart) -> None:
        self.wall.end_pass(part)
        self.expected[part] += self.pass_ns
        self.pass_ns = 0

    @precondition(lambda self: self.open)
    @rule(fails=st.booleans())
    def leave(self, fails: bool) -> None:
        context, part = self.open.pop()
        error = ValueError("it") if fails else None
        assert not context.__exit__(None if error is None else ValueError, error, None), "an error goes on"
        self.at.pop()
        if part is None:
            self.expected[self.rest] += self.pass_ns
            self.pass_ns = 0

    @rule()
    def a_job(self) -> None:
        """It is asked for, and ends at once: only the first has what came before it."""
        whole = self.wall.since(self.wall.begin_job(self.wall.read()))
        assert whole.wall_begins == ("job" if self.jobs else "process")
        assert whole.wall_s == (0 if self.jobs else (self.now - 1000 + self.age) / NANOSECONDS)
        self.jobs.append({})

    @invariant()
    def every_moment_is_in_one_part(self) -> None:
        if not hasattr(self, "wall"):
            return
        read = self.wall.read()
        assert sum(read.values()) == self.now - 1000 + self.age
        expected = {part: self.expected[part] for part in WallPart}
        expected[WallPart.OTHER] += self.pass_ns
        assert dict(read) == expected


TestClocked = Clocked.TestCase


def test_the_time_in_which_the_caller_has_a_result_is_its_own() -> None:
    now, closed = 0, False
    wall = Wall(clock=lambda: now)

    def steps() -> Generator[int, None, None]:
        nonlocal now, closed
        try:
            with wall.passes(WallPart.DECODE):
                now += 1
                yield 1
                now += 2
                yield 2
        finally:
            closed = True

    lent = wall.lent(steps())
    assert next(lent) == 1
    now += 10
    assert next(lent) == 2
    now += 100
    lent.close()
    assert closed
    assert {part: spent for part, spent in wall.read().items() if spent} == {WallPart.DECODE: 3, WallPart.WRITE: 110}


def check(stats: Stats, begins: str) -> None:
    assert stats.wall_begins == begins
    assert stats.wall_begins in BEGINS
    assert tuple(stats.wall_parts_s) == PARTS
    assert min(stats.wall_parts_s.values()) >= 0
    assert abs(sum(stats.wall_parts_s.values()) - stats.wall_s) <= ROUNDING_S


def test_stats_without_a_job_have_all_parts() -> None:
    check(Stats("numpy", Policy()), "job")


def generated(engine: Engine, rows: list[list[int]]) -> Stats:
    return engine.generate(rows, Request(3, ignore_eos=True)).stats


def scored(engine: Engine, rows: list[list[int]]) -> Stats:
    return engine.score([ScoredRow((*row, 1)) for row in rows]).stats


def streamed(engine: Engine, rows: list[list[int]]) -> Stats:
    list(engine.run(RowRequest(row, Request(2, ignore_eos=True)) for row in rows))
    standing = engine.session.standing
    assert standing is not None
    return standing.stats


def left(engine: Engine, rows: list[list[int]]) -> Stats:
    """A stream that is closed after its first token."""
    stream = engine.stream(rows, Request(3, ignore_eos=True))
    next(iter(stream))
    stream.close()  # type: ignore[attr-defined]
    standing = engine.session.standing
    assert standing is not None
    return standing.stats


JOBS = (generated, scored, streamed, left)


@settings(max_examples=settings.default.max_examples // 2)  # each example is several jobs
@given(
    policy=own.policies(),
    jobs=st.lists(st.tuples(st.sampled_from(JOBS), own.token_rows(SPEC.vocabulary)), min_size=1, max_size=4),
    refused=st.booleans(),
)
def test_the_parts_of_every_job_add_up_and_nothing_counts_twice(
    model_file: Any, policy: Policy, jobs: list[tuple[Any, list[list[int]]]], refused: bool
) -> None:
    """Beside a clock of the test's own; also after a job that was refused."""
    path, start = model_file(SPEC), time.perf_counter()
    with load(path, policy=policy, scratch_bytes=1 << 16) as engine:
        found = []
        for number, (job, rows) in enumerate(jobs):
            if refused:
                with pytest.raises(PromptError):
                    engine.generate([[SPEC.vocabulary]])
            before = time.perf_counter()
            stats = job(engine, rows)
            taken_s = time.perf_counter() - (before if number else start)
            check(stats, "job" if number else "engine")
            assert stats.wall_s <= taken_s
            parts = stats.wall_parts_s
            assert parts["prefill"] + parts["decode"] + parts["write"] >= stats.prefill_s + stats.decode_s - ROUNDING_S
            assert bool(parts["load"]) == (not number), "weights that lie there are not loaded again"
            found.append(stats)
    assert sum(stats.wall_s for stats in found) <= time.perf_counter() - start


class Compiling(NumpyBackend):
    """Compiles when it is asked for products, as a port of CUDA does."""

    def __init__(self) -> None:
        super().__init__()
        self.compiling, self.compiled = CompileTime(5.0), False

    def linear(self, *operands: Any, **more: Any) -> Any:
        if not self.compiled:
            time.sleep(SLOW_S)
            self.compiling.seconds += SLOW_S
            self.compiled = True
        return super().linear(*operands, **more)


class PinningWeights(NumpyBackend):
    """Has whoever submits the first copies wait for memory that is pinned beside, as a port of CUDA may."""

    def __init__(self) -> None:
        super().__init__()
        self.pinning, self.waited = PinningTime(), False

    def submit(self, lane: Lane, steps: Any, after: Any) -> Any:
        if not self.waited:
            time.sleep(SLOW_S)
            self.pinning.seconds += SLOW_S
            self.waited = True
        return super().submit(lane, steps, after)


@pytest.fixture
def path(tmp_path: Path) -> str:
    write_model(tmp_path / "model.h5", SPEC)
    return str(tmp_path / "model.h5")


def test_what_a_port_compiles_is_in_no_pass(path: str) -> None:
    """What it had compiled before the engine was opened is none of its jobs' time."""
    with load(path, policy=Policy(), backend=Compiling()) as engine:
        first, second = (generated(engine, [[1, 2, 3]]) for _ in range(2))
    assert first.wall_parts_s["compile"] == pytest.approx(SLOW_S)
    check(first, "engine")
    assert second.wall_parts_s["compile"] == 0


def test_waiting_for_memory_while_weights_load_counts_once(path: str) -> None:
    with load(path, policy=Policy(), backend=PinningWeights()) as engine:
        before_ns = engine.session.wall.spent_ns(WallPart.LOAD)
        stats = generated(engine, [[1, 2, 3]])
        loading_s = (engine.session.wall.spent_ns(WallPart.LOAD) - before_ns) / NANOSECONDS
    assert stats.wall_parts_s["allocate"] >= SLOW_S
    assert stats.load_s == pytest.approx(loading_s, abs=ROUNDING_S)
    check(stats, "engine")


def test_time_between_two_jobs_is_in_neither(path: str) -> None:
    with load(path, policy=Policy()) as engine:
        generated(engine, [[1]])
        time.sleep(SLOW_S)
        start = time.perf_counter()
        stats = generated(engine, [[1]])
        assert stats.wall_s <= time.perf_counter() - start


@pytest.mark.parametrize("part", [WallPart.LOAD, WallPart.PLAN, WallPart.ALLOCATE, WallPart.WRITE, WallPart.IMPORTS])
def test_what_takes_long_is_found_in_its_part(path: str, part: WallPart, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        def slowed(*operands: Any, **more: Any) -> Any:
            time.sleep(SLOW_S)
            return plain(*operands, **more)

        monkeypatch.setattr(owner, name, slowed)

    def on_token(token: object) -> None:
        time.sleep(SLOW_S if part is WallPart.WRITE else 0)

    settling = advisor(Policy())
    slowed: dict[WallPart, tuple[Any, str]] = {
        WallPart.LOAD: (HeldWeights, "_tell"),
        WallPart.PLAN: (Session, "memory_plan"),
        WallPart.ALLOCATE: (NumpyBackend, "release"),
        WallPart.IMPORTS: (NumpyBackend, "__init__"),
    }
    if part in slowed:
        slow(*slowed[part])
    with open_engine(path, settling, backend="numpy") as engine:
        stats = engine.generate([[1, 2]], Request(2, ignore_eos=True), on_token=on_token).stats
    parts = dict(stats.wall_parts_s)
    assert parts.pop(part) >= SLOW_S
