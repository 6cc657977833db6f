"""A job begins while its weights load: its tokens are those of loaded ones, however late these come or how it ends."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partialmethod
from typing import Any

import pytest
from flexref_numpy import NumpyBackend
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import StageKind
from flexref.block.state import BlockState
from flexref.check.models import write_model
from flexref.engine.engine import Engine
from flexref.engine.events import WeightsLoaded
from flexref.engine.request import Request
from flexref.engine.scoring import ScoredRow
from flexref.engine.session import always
from flexref.engine.wall import WallPart
from flexref.errors import FlexrefError, StorageError, WeightFileError
from flexref.loading import load
from flexref.policy import Policy, Shares
from flexref.testing import strategies as own
from flexref.tiers import weight_loading, weights_plan
from flexref.tiers.disk import WeightsOnDisk
from flexref.tiers.weights import WeightStore
from flexref.units import Tier

SPECS = {
    "tied": ModelSpec("tied", 50, 48, 16, 16, 3, 2, 32),
    "untied": ModelSpec("untied", 50, 48, 16, 16, 3, 2, 32, tied_head=False),
}
PROMPTS = [[1, 2, 3], [9], [5, 6, 7, 8]]
REQUEST = Request(3, ignore_eos=True)
ONE_AT_A_TIME, SOME = 1, 3 << 12
GIB = 1 << 30


class PoisonedMemory(NumpyBackend):
    """Holds what no weight is, until something is written to it."""

    def __init__(self, scratch_bytes: int) -> None:
        super().__init__(scratch_bytes)
        self.given: list[weakref.ref[Any]] = []

    def allocate(self, tier: str, nbytes: int) -> Any:
        buffer = super().allocate(tier, nbytes)
        buffer[...] = 0xFF
        self.given.append(weakref.ref(buffer))
        return buffer


@dataclass
class Loaded:
    engine: Engine
    events: list[WeightsLoaded]


@pytest.fixture(scope="module", params=sorted(SPECS))
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    path, events = tmp_path_factory.mktemp("models") / "model.h5", list[WeightsLoaded]()
    write_model(path, SPECS[request.param])

    def note(event: object) -> None:
        if isinstance(event, WeightsLoaded):
            events.append(event)

    with load(path, policy=Policy(), backend=PoisonedMemory(1 << 16), on_event=note) as engine:
        yield Loaded(engine, events)


@contextmanager
def late(open_bytes: int) -> Iterator[pytest.MonkeyPatch]:
    """No more than so many bytes are under way: with one, nothing is read before somebody waits for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights_plan, "CHUNK_BYTES", 1 << 12)
        patch.setattr(weight_loading, "OPEN_BYTES", open_bytes)
        yield patch


def forget_weights(engine: Engine) -> None:
    """So that the next job loads them."""
    engine.session._weights.release()
    assert not engine.session.arenas[Tier.HOST].holders


def done(engine: Engine, how: str, policy: Policy, watch: Callable[..., None] | None = None) -> Any:
    engine.session.settle = always(policy)
    if how == "score":
        return [row.logprobs.tolist() for row in engine.score([ScoredRow((*row, 4)) for row in PROMPTS]).rows]
    return [output.token_ids for output in engine.generate(PROMPTS, REQUEST, on_visit=watch).outputs]


LATENESS = st.sampled_from([ONE_AT_A_TIME, SOME, 4 << 30])


@given(policy=own.policies(), how=st.sampled_from(["generate", "score"]), open_bytes=LATENESS)
def test_weights_that_come_late_change_no_bit(model: Loaded, policy: Policy, how: str, open_bytes: int) -> None:
    engine = model.engine
    engine.session.weights_for(policy)
    expected = done(engine, how, policy)
    forget_weights(engine)
    with late(open_bytes):
        assert done(engine, how, policy) == expected
    assert "loading" not in engine.session.arenas[Tier.HOST].holders


def computes_on_what_has_not_come(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BlockState, "prepare", lambda *_: None)


def takes_every_stage_for_the_first(patch: pytest.MonkeyPatch) -> None:
    plain = WeightStore.ready
    patch.setattr(WeightStore, "ready", lambda store, stage=None: plain(store, stage and 0))


def loads_tables_last(patch: pytest.MonkeyPatch) -> None:
    plain = weights_plan.runs_to_load

    def runs(plan: Any) -> Any:
        last = len(plan.stages) - 1
        found = plain(plan)
        for needed in found:
            if needed.stage == 0:
                object.__setattr__(needed, "stage", last)
        return sorted(found, key=lambda needed: needed.stage)

    patch.setattr(weight_loading, "runs_to_load", runs)


@pytest.mark.parametrize(
    "wrong",
    [computes_on_what_has_not_come, takes_every_stage_for_the_first, loads_tables_last],
    ids=lambda f: f.__name__,
)
def test_a_block_that_does_not_wait_is_caught(model: Loaded, wrong: Callable[[pytest.MonkeyPatch], None]) -> None:
    forget_weights(model.engine)
    with late(ONE_AT_A_TIME) as patch:
        wrong(patch)
        with pytest.raises(FlexrefError, match="needed a finite one"):
            done(model.engine, "score", Policy())
    forget_weights(model.engine)


def test_the_first_layers_compute_before_the_last_weights_are_read(model: Loaded) -> None:
    shares: list[float] = []

    def watch(stage: Any, group: int, pass_number: int) -> None:
        if not pass_number and stage.kind is StageKind.LAYER:
            shares.append(model.events[-1].loaded_bytes / model.events[-1].total_bytes)

    for policy in (Policy(), Policy(Shares(0, 1, 0)), Policy(Shares.of(0.4, 0.3), overlap=False)):
        forget_weights(model.engine)
        shares.clear()
        with late(ONE_AT_A_TIME):
            done(model.engine, "generate", policy, watch)
        assert shares == sorted(shares)
        assert shares[0] < shares[-1]
        assert shares[0] < 1


def test_a_host_without_room_beside_the_block_loads_before_it(model: Loaded) -> None:
    engine, policy = model.engine, Policy(Shares(0, 1, 0), Shares(0, 1, 0))
    forget_weights(engine)
    expected = done(engine, "generate", policy)
    peak = engine.session.standing.stats.peak_bytes["host"]  # type: ignore[union-attr]
    forget_weights(engine)
    arena = engine.session.arenas[Tier.HOST]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arena, "budget_bytes", peak - 1)
        before = len(model.events)
        assert done(engine, "generate", policy) == expected
        assert arena.peak_bytes < peak
        assert model.events[-1].loaded_bytes == model.events[-1].total_bytes
        assert len(model.events) > before
    forget_weights(engine)


@pytest.mark.parametrize("shares", [Shares(1, 0, 0), Shares(0, 1, 0), Shares.of(0.4, 0.3)])
def test_memory_that_was_given_back_is_held_by_nobody(model: Loaded, shares: Shares) -> None:
    """Nor by cycles of objects: weights that are placed elsewhere would need room beside those that were there."""
    forget_weights(model.engine)
    given = model.engine.session.backend.given  # type: ignore[attr-defined]
    given.clear()
    gc.disable()
    try:
        done(model.engine, "generate", Policy(shares))
        forget_weights(model.engine)
        assert given
        assert not [buffer for known in given if (buffer := known()) is not None]
    finally:
        gc.enable()


def test_all_memory_is_taken_in_a_part_of_the_whole_time(model: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """To pin what weights pass through takes a while, and is loading."""
    forget_weights(model.engine)
    session, found = model.engine.session, list[WallPart]()
    plain = session.backend.allocate
    monkeypatch.setattr(session.backend, "allocate", lambda *of: (found.append(session.wall._at), plain(*of))[1])
    done(model.engine, "generate", Policy())
    assert set(found) == {WallPart.LOAD, WallPart.ALLOCATE}


class Ending:
    """Something happens at a place of a job, counted in what a kind of ending counts: reads, visits, checks, tokens."""

    def __init__(self, how: str, place: int, engine: Engine, patch: pytest.MonkeyPatch) -> None:
        self._how, self._place, self._count, self._lock = how, place, 0, threading.Lock()
        self._read, self._check = WeightsOnDisk.read, engine.session.interrupts.check
        patch.setattr(engine.session._disk.source, "waits_s", ())
        patch.setattr(WeightsOnDisk, "read", partialmethod(Ending._reads, self))
        patch.setattr(engine.session.interrupts, "check", self.check)

    def comes(self, how: str) -> bool:
        with self._lock:
            self._count += how == self._how
            return how == self._how and self._count == self._place

    @staticmethod
    def _reads(disk: WeightsOnDisk, self: "Ending", offset: int, into: Any, arrived: Any = None) -> None:
        if self.comes("disk"):
            raise StorageError("the disk says no")
        self._read(disk, offset, into, arrived)
        if self.comes("byte"):
            into[0] ^= 1

    def check(self) -> None:
        if self.comes("Ctrl-C"):
            raise KeyboardInterrupt
        self._check()

    def watch(self, *_: object) -> None:
        if self.comes("visit"):
            raise ZeroDivisionError


def tokens_until(ending: Ending, engine: Engine, streamed: bool) -> dict[int, list[int]]:
    """The tokens by row that a job hands over, which its caller may drop at any of them."""
    found: dict[int, list[int]] = {}
    if not streamed:
        outputs = engine.generate(PROMPTS, REQUEST, on_visit=ending.watch).outputs
        return {row: output.token_ids for row, output in enumerate(outputs)}
    with closing(engine.stream(PROMPTS, REQUEST)) as tokens:  # type: ignore[type-var]
        for token in tokens:
            found.setdefault(token.row, []).append(token.token_id)
            if ending.comes("drop"):
                break
    return found


@settings(max_examples=settings.default.max_examples // 2)  # each example is several jobs
@given(
    policy=own.policies(),
    open_bytes=LATENESS,
    how=st.sampled_from(["disk", "byte", "visit", "Ctrl-C", "drop"]),
    place=st.integers(0, 30),
)
def test_a_job_that_ends_while_weights_load_leaves_nothing(
    model: Loaded, policy: Policy, open_bytes: int, how: str, place: int
) -> None:
    engine = model.engine
    expected = done(engine, "generate", policy)
    threads = set(threading.enumerate())
    forget_weights(engine)
    failure: BaseException | None = None
    found: dict[int, list[int]] = {}
    with late(open_bytes) as patch:
        try:
            found = tokens_until(Ending(how, place, engine, patch), engine, how == "drop")
        except (FlexrefError, KeyboardInterrupt, ZeroDivisionError) as error:
            failure = error
    if how in ("disk", "byte") and failure is not None:
        assert isinstance(failure, StorageError | WeightFileError)
        assert "\n" not in str(failure)
    for row, tokens in found.items():
        assert tokens == expected[row][: len(tokens)], "a wrong token was handed over"
    assert failure is not None or how == "drop" or found == dict(enumerate(expected))
    nothing_is_left(engine)
    assert {thread for thread in threading.enumerate() if not thread.name.startswith("flexref lane")} <= threads
    assert done(engine, "generate", policy) == expected


@pytest.mark.parametrize("place", range(2, 12))
def test_a_disk_that_fails_is_told_as_that_and_not_as_damage(model: Loaded, place: int) -> None:
    """Though what comes after the bytes that were not read has gone by when the host looks at those before them."""
    forget_weights(model.engine)
    model.engine.session.settle = always(Policy())
    plain = WeightStore.ready

    def ready(store: WeightStore, stage: int | None = None) -> None:
        for piece in store._loading._open if store._loading else ():
            for ticket in piece.tickets:
                with suppress(StorageError):
                    ticket.wait()
        plain(store, stage)

    with late(4 << 30) as patch:
        patch.setattr(WeightStore, "ready", ready)
        ending = Ending("disk", place, model.engine, patch)
        with pytest.raises(StorageError, match="the disk says no"):
            tokens_until(ending, model.engine, False)
    nothing_is_left(model.engine)


def nothing_is_left(engine: Engine) -> None:
    """Nothing of the job, and no weights that still load: those that have come may stay."""
    session = engine.session
    assert not session.mover.abandoned
    assert not session.mover.board.now()
    held = {holder for arena in session.arenas.values() for holder in arena.holders}
    assert held <= {"scratch", "weights", "weight slots", "weight staging"}
    store = session._weights._store
    assert store is None or not store.is_loading
