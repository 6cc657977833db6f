"""A block on any plan, whose rows enter, are read, generate, leave, are cancelled or interrupted, beside rows alone.

What is looked at: tokens and logits, to the bit; places, of which none is lost or used twice; memory; who waits.
"""

from collections.abc import Generator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from flexref.architecture.spec import ModelSpec
from flexref.block import executor
from flexref.block.admission import Waiting
from flexref.block.block_rows import BlockRows
from flexref.block.budgets import lasting_needs, totals
from flexref.block.generate_block import GenerateBlock
from flexref.block.group import Group
from flexref.block.places import TierPlaces
from flexref.block.rows import Row
from flexref.block.watch import Watch
from flexref.engine.engine import Engine
from flexref.loading import load
from flexref.policy import Policy
from flexref.sampling.settings import SamplingSettings
from flexref.schedule.zigzag import Visit
from flexref.testing import strategies as own
from flexref.tiers.arrangement import arrange
from flexref.tiers.cache import CacheStore
from flexref.tiers.cache_plan import RowPlace
from flexref.units import Tier

SPEC = ModelSpec("small", 50, 48, 16, 16, 2, 2, 32)
LONGEST, MOST_NEW = 9, 5
KEPT = {"weights", "weight slots", "weight staging", "scratch"}
"""What is held between two blocks."""

Logits = npt.NDArray[np.float32]
SAMPLING = st.sampled_from([SamplingSettings(), SamplingSettings(), SamplingSettings(1.0, seed=3)])


class Asked(NamedTuple):
    """A row before it has begun."""

    prompt: tuple[int, ...]
    limit: int
    sampling: SamplingSettings


ASKED = st.builds(
    Asked,
    st.lists(st.integers(0, 49), min_size=1, max_size=LONGEST).map(tuple),
    st.integers(1, MOST_NEW),
    SAMPLING,
)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    chunk = draw(st.none() | st.integers(1, 4))
    return draw(own.policies(cache_group_size=16, rows_per_group=draw(st.integers(1, 3)), prompt_chunk_tokens=chunk))


class Running:
    """A block at work."""

    def __init__(self, engine: Engine, policy: Policy, waiting: Waiting, stops: frozenset[int], on_logits: Any) -> None:
        session = self.session = engine.session
        weights = session.weights_for(policy)
        session.backend.keep_rows_apart(True)
        waiting.refill()
        self.planned = session.planned(policy, [row.lengths for row in waiting.rows])
        for arena in session.arenas.values():
            arena.restart_peak()

        def judge(row: Row) -> str | None:
            return "stop" if row.tokens[-1] in stops else None

        watch = Watch(on_logits=on_logits)
        self.block = GenerateBlock(self.planned, weights, session.mover, waiting, judge, watch=watch)
        self.needs = totals([*lasting_needs(weights.plan, session.backend.caps), *self.planned.memory.needs()])
        self.block.allocate(session.arenas)
        self.visits: Generator[Visit, None, None] = executor.run(
            session.mover, self.block, self.planned.shape, overlap=policy.overlap
        )

    def end(self) -> None:
        self.visits.close()
        self.block.release()


class Alone:
    """What every row has if nobody else is there: tokens without stops, and their logits; each is computed once."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._known: dict[Any, tuple[list[int], list[Logits]]] = {}

    def __call__(self, number: int, asked: Asked, scheme: str) -> tuple[list[int], list[Logits]]:
        key = (number, asked.prompt, asked.sampling, scheme)
        if key not in self._known:
            row, logits = Row(number, asked.prompt, MOST_NEW, sampling=asked.sampling), list[Logits]()
            home = Policy(rows_per_group=1, overlap=False, cache_scheme=scheme, cache_group_size=16)
            waiting = Waiting([row], 2)
            running = Running(self.engine, home, waiting, frozenset(), lambda *found: logits.append(found[2][0]))
            list(running.visits)
            running.end()
            self._known[key] = row.tokens, logits
        return self._known[key]


class BlockStates(RuleBasedStateMachine):
    """Blocks one after the other on one engine; rows that were interrupted begin again in the next one."""

    path: str
    port_of: type
    alone: Alone
    right: tuple[type, str, Any] | None = None
    """What a wrong part stands for: rows are computed alone with the right one."""

    def __init__(self) -> None:
        super().__init__()
        self.running: Running | None = None
        self.rows = dict[int, Row]()
        self.asked = dict[int, Asked]()
        self.interrupted = list[Row]()

    @initialize()
    def load(self) -> None:
        self.port = self.port_of()
        self.engine = load(self.path, policy=Policy(), backend=self.port)

    # A block begins

    @precondition(lambda self: self.running is None)
    @rule(
        policy=policies(),
        asked=st.lists(ASKED, min_size=1, max_size=8),
        beyond=st.integers(1, 4),
        stops=st.frozensets(st.integers(0, 49), max_size=4),
    )
    def begin(self, policy: Policy, asked: list[Asked], beyond: int, stops: frozenset[int]) -> None:
        if self.interrupted:  # what they had was computed on caches of one scheme
            policy = policy.changed(cache_scheme=self.policy.cache_scheme)
        self.policy, self.stops = policy, stops
        self.rows = {}
        for old in self.interrupted:
            tokens, sampling = list(old.tokens), old.sampling
            self.rows[old.number] = Row(old.number, old.prompt, old.limit, tokens, sampling=sampling)
        self.interrupted = []
        for number, each in enumerate(asked, start=max(self.asked, default=-1) + 1):
            self.asked[number] = each
            self.rows[number] = Row(number, each.prompt, each.limit, sampling=each.sampling)
        self.arrived, self.gone_by = list[Row](), 0
        self.told = {number: len(row.tokens) for number, row in self.rows.items()}
        window = policy.rows_per_block + beyond
        self.waiting = Waiting(self.arrive(), len(self.rows))  # the plan is cut to all of them
        self.running = Running(self.engine, policy, self.waiting, stops, self.on_logits)
        self.waiting.window = self.bound = window
        self.waiting.overtakes = window
        self.look_at_who_waits()

    def arrive(self) -> Generator[Row, None, None]:
        for row in self.rows.values():
            self.arrived.append(row)
            yield row

    # It goes on

    @precondition(lambda self: self.running is not None)
    @rule(visits=st.integers(1, 12))
    def go_on(self, visits: int) -> None:
        for _ in range(visits):
            if self.running is None or not self.visit():
                return

    @precondition(lambda self: self.running is not None)
    @rule()
    def go_on_to_the_end(self) -> None:
        while self.running is not None:
            self.visit()

    def visit(self) -> bool:
        assert self.running is not None
        visit = next(self.running.visits, None)
        for event in self.running.block.take_events():
            row, (tokens, _) = self.rows[event.row], self.expected(event.row)
            place = self.told[event.row]
            assert event.token_id == tokens[place], f"row {event.row}, token {place}"
            self.told[event.row] += 1
            assert self.told[event.row] <= row.limit
            ends = event.token_id in self.stops or self.told[event.row] == row.limit
            assert ends <= (event.finish_reason is not None)
        self.look_at_who_waits()
        if visit is None:
            self.end()
            return False
        self.look_at_places()
        return True

    def expected(self, number: int) -> tuple[list[int], list[Logits]]:
        with pytest.MonkeyPatch.context() as patch:
            if self.right is not None:
                patch.setattr(*self.right)
            return self.alone(number, self.asked[number], self.policy.cache_scheme)

    def on_logits(self, numbers: npt.NDArray[np.int64], steps: npt.NDArray[np.int64], found: Logits) -> None:
        for number, step, logits in zip(numbers.tolist(), steps.tolist(), found, strict=True):
            np.testing.assert_array_equal(logits, self.expected(number)[1][step], err_msg=f"row {number}, step {step}")

    # Rows are given up, or all of them

    @precondition(lambda self: self.running is not None)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        assert self.running is not None
        inside = [row for group in self.running.block.groups for row in group.rows]
        if inside:
            data.draw(st.sampled_from(inside)).finish_reason = "stop"

    @precondition(lambda self: self.running is not None and len(self.waiting))
    @rule(data=st.data())
    def cancel_one_that_waits(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(self.waiting.rows))
        self.waiting.drop(row)
        self.arrived.remove(row)
        row.finish_reason = "stop"

    @precondition(lambda self: self.running is not None)
    @rule()
    def interrupt(self) -> None:
        assert self.running is not None
        self.running.end()
        self.interrupted = [row for row in self.rows.values() if row.finish_reason is None]
        self.look_at_memory()
        self.running = None

    def end(self) -> None:
        """All rows have ended."""
        assert self.running is not None
        block, admission = self.running.block, self.running.block.rows.admission
        assert self.waiting.come_to_an_end
        assert all(row.finish_reason is not None for row in self.rows.values())
        assert admission.admitted == admission.retired <= len(self.rows)
        for room, places in zip(block.plan.cache.groups, admission.places, strict=True):
            whole = [(tier, 0, room.tokens[tier]) for tier in Tier if room.tokens[tier]]
            assert list(places.free_runs()) == whole, "places were lost"
            assert places.rows_left == room.rows
        for tier, arena in self.engine.session.arenas.items():
            assert arena.peak_bytes == self.running.needs[tier], f"{tier}: the plan says another peak"
        self.running.end()
        self.look_at_memory()
        self.running = None

    # What is always so

    @invariant()
    def look_at_places(self) -> None:
        if self.running is None:
            return
        block, chunk = self.running.block, self.policy.prompt_chunk_tokens
        for group, room, places in zip(block.groups, block.plan.cache.groups, block.rows.admission.places, strict=True):
            free = list(places.free_runs())
            homes = [row.place for row in group.rows if row.place is not None]
            assert len(homes) == len(group.rows) == room.rows - places.rows_left
            taken = [(place.home, place.start, place.end) for place in homes]
            for tier in Tier:
                spans = sorted(span[1:] for span in [*free, *taken] if span[0] is tier)
                edges = [0, *(edge for span in spans for edge in span), room.tokens[tier]]
                assert all(end == start for end, start in zip(edges[::2], edges[1::2], strict=True)), "lost, or twice"
                runs = [span[1:] for span in free if span[0] is tier]
                assert all(end < start for (_, end), (start, _) in pairwise(runs)), "runs that touch are one"
                cut = room.crossing_tokens(tier)
                here = [place for place in homes if place.home is tier]
                assert all(place.end <= cut or place.start >= cut for place in here)
                assert all(place.in_place == (place.start >= cut) for place in here)
                new = sum(row.new for row in group.in_pass if row.place.home is tier)
                assert new <= room.new_tokens[tier]
            assert [row.lengths.capacity_tokens for row in group.rows] == [place.capacity_tokens for place in homes]
            assert chunk is None or all(row.new <= chunk for row in group.in_pass)

    def look_at_who_waits(self) -> None:
        """No row is overtaken by more than the bound; the caller's rows are taken up to the window."""
        waits = {id(row) for row in self.waiting.rows}
        for number, row in enumerate(self.arrived):
            if id(row) in waits:
                overtaken = sum(id(later) not in waits for later in self.arrived[number:])
                assert overtaken <= self.bound
        self.waiting.refill()

    def look_at_memory(self) -> None:
        arenas = self.engine.session.arenas
        for tier, arena in arenas.items():
            assert arena.holders.keys() <= KEPT, f"{tier} still has {arena.holders}"
        assert self.port.live["device"] == arenas[Tier.DEVICE].held_bytes - arenas[Tier.DEVICE].holders["scratch"]
        assert self.port.live["host"] == arenas[Tier.HOST].held_bytes

    def teardown(self) -> None:
        if self.running is not None:
            self.running.end()
        self.engine.close()
        assert not +self.port.live


@pytest.fixture
def machine(model_file: Any, counting: type) -> Generator[type[BlockStates], None, None]:
    path = model_file(SPEC)
    with load(path, policy=Policy(), scratch_bytes=1 << 16) as engine:
        BlockStates.path, BlockStates.port_of, BlockStates.alone = path, counting, Alone(engine)
        BlockStates.right = None
        yield BlockStates


def test_a_block_does_what_its_model_does(machine: type[BlockStates]) -> None:
    run_machine(machine, settings=settings(stateful_step_count=12))  # type: ignore[no-untyped-call]


# Blocks that are wrong


def gives_nothing_back(places: TierPlaces, place: RowPlace) -> None:
    places.rows_left += 1


def lends_twice(places: TierPlaces, tokens: int) -> RowPlace | None:
    if places.longest < tokens:
        return None
    places.rows_left -= 1
    return RowPlace(places.home, places._free[0][0], tokens)


def leaves_holes(places: TierPlaces, place: RowPlace) -> None:
    places._free = sorted([*places._free, (place.start, place.end)])
    places.rows_left += 1


def takes_whoever_fits(waiting: Waiting, fits: Any) -> Row | None:
    for arrived in waiting._longest_first:
        if fits(arrived.row):
            return waiting._take(arrived)
    return None


def reads_without_end(group: Group, row: Row, left: int) -> int:
    return min(row.due_tokens, left)


def begins_at_the_prompt(row: Row, new: int) -> tuple[int, ...]:
    return (*row.prompt, *row.tokens)[-new:]


def keeps_handles_of_rows_that_left(store: CacheStore, group: int, rows: Any) -> Any:
    known = store._arranged.get(group)
    if known is None or known.rows is not rows:
        known = store._arranged[group] = arrange(store.plan, group, rows)
    return known


def expects_nobody(rows: BlockRows, pass_number: int) -> bool:
    return any(group.lasts_longer() for group in rows.groups)


def releases_nothing(block: GenerateBlock) -> None:
    """Stands for what is not done."""


WRONG = (
    (TierPlaces, "give_back", gives_nothing_back),
    (TierPlaces, "take", lends_twice),
    (TierPlaces, "give_back", leaves_holes),
    (Waiting, "take", takes_whoever_fits),
    (Group, "_piece", reads_without_end),
    (Row, "fed", begins_at_the_prompt),
    (CacheStore, "_arrangement", keeps_handles_of_rows_that_left),
    (BlockRows, "goes_on", expects_nobody),
    (GenerateBlock, "release", releases_nothing),
)


@pytest.mark.parametrize(("part", "name", "wrong"), WRONG, ids=lambda part: getattr(part, "__name__", part))
def test_a_block_that_does_not_is_caught(
    machine: type[BlockStates], part: type, name: str, wrong: Any, caught: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.right = part, name, getattr(part, name)
    monkeypatch.setattr(part, name, wrong)
    assert isinstance(caught(machine), Exception)
