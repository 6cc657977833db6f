"""A cache store beside a model that keeps every token's K and V, on any plan, whose rows come and go.

The moves of a block are not made in the executor's order but in any in which each comes after all that it requires.
"""

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from tempfile import gettempdir
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flexref_numpy import NumpyBackend
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from flexref.backend.protocol import Lane
from flexref.backend.records import RecordLayout
from flexref.block.places import GroupPlaces
from flexref.errors import StorageError
from flexref.schedule.hazards import requirements
from flexref.schedule.zigzag import Computation, Hop, Kind, Movement, Operation, Shape, Visit
from flexref.tiers.arrangement import Stretch, arrange
from flexref.tiers.cache import CacheStore
from flexref.tiers.cache_plan import CachePlan, GroupRoom, InPlace, RowPass, RowPlace
from flexref.tiers.mover import Mover
from flexref.tiers.pool import Arena
from flexref.tiers.spill_file import SpillFile
from flexref.tiers.transfer import Traffic
from flexref.units import Tier, aligned

PAGE = 4096
POISON = 0xFF
"""Fills fresh memory: as a float it is no number, and whoever reads it has a wrong answer."""

WAYS = {
    Hop.FETCH: ("disk->host", Lane.DISK_IN),
    Hop.LOAD: ("host->device", Lane.CACHE_IN),
    Hop.STORE: ("device->host", Lane.CACHE_OUT),
    Hop.SPILL: ("host->disk", Lane.DISK_OUT),
}
"""The link and the lane of every hop of a cache."""

MOST_PASSES = 5

Tokens = npt.NDArray[np.float32]
"""(T, H D): K or V of some tokens."""


@st.composite
def rooms(draw: st.DrawFn, transient: bool) -> GroupRoom:
    """Room for a few short rows on some tiers; a pass that fills a transient cache fills it as a whole."""
    here = (Tier.DEVICE,) if transient else draw(st.lists(st.sampled_from(Tier), min_size=1, unique=True))
    tokens = {tier: draw(st.integers(1, 12)) if tier in here else 0 for tier in Tier}
    new = tokens if transient else {tier: draw(st.integers(1, most)) if most else 0 for tier, most in tokens.items()}
    within, new_within = dict.fromkeys(Tier, 0), dict.fromkeys(Tier, 0)
    for tier in (Tier.HOST, Tier.DISK):
        if new[tier] and draw(st.booleans()):
            new_within[tier] = draw(st.integers(1, new[tier]))
            least = 1 if new_within[tier] < new[tier] else tokens[tier]
            within[tier] = draw(st.integers(min(least, tokens[tier]), tokens[tier]))
    in_place = InPlace(within, new_within, sum(new_within.values()))
    return GroupRoom(draw(st.integers(1, 4)), tokens, new, in_place=in_place)


@st.composite
def plans(draw: st.DrawFn) -> CachePlan:
    scheme = draw(st.sampled_from(["none", "int4"]))
    layout = RecordLayout(
        draw(st.integers(1, 2)), draw(st.integers(1, 5)), "float32", scheme, group_size=draw(st.integers(1, 4))
    )
    transient = draw(st.integers(0, 4)) == 0
    made = tuple(draw(st.lists(rooms(transient), min_size=1, max_size=3)))
    layers = 1 if transient else draw(st.integers(1, 3))
    return CachePlan(layout, layers, made, draw(st.integers(1, 2)), transient)


@dataclass
class Known:
    """All K and V of one row in one layer."""

    k: Tokens
    v: Tokens


class CacheStates(RuleBasedStateMachine):
    """Blocks one after the other, each on a plan of its own, given up at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.port = self.made_port()
        self.traffic = Traffic()
        self.mover = Mover(self.port, self.traffic)
        self.refuse_after = -1
        self.arenas = {tier: Arena(tier, None, self.allocator(tier), self.free) for tier in Tier}
        self.store: CacheStore | None = None

    @staticmethod
    def made_port() -> NumpyBackend:
        return NumpyBackend(1 << 16)

    def allocator(self, tier: Tier) -> Any:
        def allocate(nbytes: int) -> Any:
            self.refuse_after -= 1
            if self.refuse_after == -1:
                raise StorageError("there is no memory")
            poison = np.full(nbytes, POISON, np.uint8)
            if tier is Tier.DISK:
                file = SpillFile(gettempdir(), nbytes)
                file.write(0, poison)
                return file
            buffer = self.port.allocate(tier.value, nbytes)
            buffer[...] = poison
            return buffer

        return allocate

    def free(self, place: Any) -> None:
        if isinstance(place, SpillFile):
            place.close()

    # A block begins and ends

    @precondition(lambda self: self.store is None)
    @rule(plan=plans(), data=st.data())
    def begin(self, plan: CachePlan, data: st.DataObject) -> None:
        self.store, self.plan = CacheStore(plan, self.port), plan
        self.store.allocate(self.arenas)
        needs: Counter[Tier] = Counter()
        for tier, _, nbytes in plan.needs():
            needs[tier] += aligned(nbytes, PAGE)
        assert {tier: arena.held_bytes for tier, arena in self.arenas.items()} == {tier: needs[tier] for tier in Tier}
        self.layers = data.draw(st.integers(1, 3)) if plan.transient else plan.layers
        passes = 1 if plan.transient else MOST_PASSES
        # As in a model, a stage without a cache comes first, and one in which tokens are chosen last.
        self.shape = Shape(passes, self.layers + 2, len(plan.groups), plan.slots, frozenset((Kind.CACHE,)))
        self.done: set[Operation] = set()
        self.computed = 0
        self.known: dict[tuple[int, int, RowPlace], Known] = {}
        self.places = [GroupPlaces(room) for room in plan.groups]
        self.past: list[dict[RowPlace, int]] = [{} for _ in plan.groups]
        self.passes = {(0, group): self.next_pass(group, data) for group in range(len(plan.groups))}

    def next_pass(self, group: int, data: st.DataObject) -> tuple[RowPass, ...]:
        """Rows enter as far as there is room, and a pass feeds some tokens of each, or of some of them."""
        places, past = self.places[group], self.past[group]
        while places.longest and data.draw(st.integers(0, 4)):
            alike = [place.capacity_tokens for place in past if place.capacity_tokens <= places.longest]
            tokens = data.draw(st.integers(1, places.longest) | st.sampled_from(alike or [1]))
            place = places.take(tokens)
            assert place is not None
            past[place] = 0
        room, found = self.plan.groups[group], []
        left = {(tier, True): new for tier, new in room.in_place.new_tokens.items()}
        left |= {(tier, False): new - left[tier, True] for tier, new in room.new_tokens.items()}
        for place, seen in past.items():
            most = min(place.capacity_tokens - seen, left[place.home, place.in_place])
            new = most if self.plan.transient else data.draw(st.just(min(1, most)) | st.integers(0, most))
            left[place.home, place.in_place] -= new
            if new:
                found.append(RowPass(place, seen, new))
        return tuple(found[number] for number in self.plan.in_order(found))

    @precondition(lambda self: self.store is None)
    @rule(plan=plans(), refuse_after=st.integers(0, 4))
    def begin_where_memory_is_refused(self, plan: CachePlan, refuse_after: int) -> None:
        self.refuse_after = refuse_after
        store = CacheStore(plan, self.port)
        if refuse_after < len(list(plan.needs())):
            with pytest.raises(StorageError):
                store.allocate(self.arenas)
        else:
            store.allocate(self.arenas)
        self.refuse_after = -1
        store.release()
        assert not any(arena.held_bytes for arena in self.arenas.values())

    @precondition(lambda self: self.store is not None)
    @rule(again=st.booleans(), data=st.data())
    def end(self, again: bool, data: st.DataObject) -> None:
        assert self.store is not None
        self.store.release()
        assert not any(arena.held_bytes for arena in self.arenas.values())
        self.store = None
        if again:
            self.begin(self.plan, data)

    # A block goes on

    @precondition(lambda self: self.store is not None)
    @rule(data=st.data(), operations=st.integers(1, 12))
    def go_on(self, data: st.DataObject, operations: int) -> None:
        for _ in range(operations):
            ready = self.ready()
            if not ready:
                return
            operation = ready[data.draw(st.integers(0, len(ready) - 1))]
            self.do(operation, data)
            self.done.add(operation)

    @precondition(lambda self: self.store is not None)
    @rule(data=st.data())
    def go_on_to_the_end_of_the_pass(self, data: st.DataObject) -> None:
        in_all = self.shape.stages * self.shape.groups
        stop = min(self.shape.passes * in_all, (self.computed // in_all + 1) * in_all)
        while self.computed < stop:
            self.go_on(data, 1)

    def ready(self) -> list[Operation]:
        """What is not done and requires nothing that is not done either; operators are called in order."""
        first = max(0, self.computed - 2 * self.shape.slots)
        open_operations: list[Operation] = []
        for number in range(first, self.computed + self.shape.slots + 1):
            visit = self.shape.visit(number)
            if visit is not None:
                open_operations += [Movement(hop, Kind.CACHE, visit) for hop in Hop]
                open_operations += [Computation(visit)] if number == self.computed else []
        return [
            operation
            for operation in open_operations
            if operation not in self.done and self.done.issuperset(requirements(operation, self.shape))
        ]

    def do(self, operation: Operation, data: st.DataObject) -> None:
        visit, layer = operation.visit, operation.visit.stage - 1
        if isinstance(operation, Computation):
            self.computed += 1
            if visit.stage == self.shape.stages - 1:
                self.choose(visit, data)
                return
        if not 0 <= layer < self.layers:
            return
        rows = self.passes[visit.pass_number, visit.group]  # by now they are known: the law leaves a load no other time
        if not rows:
            return
        assert self.store is not None
        if isinstance(operation, Computation):
            self.attend(visit, layer, rows)
            return
        link, lane = WAYS[operation.hop]
        before = self.traffic.snapshot()
        moves = (self.store.fetch, self.store.load, self.store.store, self.store.spill)
        copies = moves[tuple(Hop).index(operation.hop)](layer, visit.group, rows, self.shape.data_slot(visit))
        self.mover.run(lane, copies)
        moved = {link: kinds["cache"] for link, kinds in self.traffic.since(before).items() if kinds}
        tokens = self.tokens_moved(operation, rows)
        expected = {link: tokens * self.plan.layout.record_bytes} if tokens else {}
        assert moved == expected, f"{operation} moved {moved}, expected {expected}"

    def tokens_moved(self, operation: Movement, rows: tuple[RowPass, ...]) -> int:
        """Of so many tokens the records cross the operation's link, if each row's go no further than they must."""
        homes = (Tier.DISK,) if operation.hop in (Hop.FETCH, Hop.SPILL) else (Tier.HOST, Tier.DISK)
        inward = operation.hop in (Hop.FETCH, Hop.LOAD)
        away = operation.hop in (Hop.LOAD, Hop.STORE)
        rows = tuple(row for row in rows if row.place.home in homes and not (away and row.place.in_place and row.past))
        return sum(row.past if inward else row.new for row in rows)

    def choose(self, visit: Visit, data: st.DataObject) -> None:
        """The group's next pass: rows that are full leave, and others as it happens; new ones take their places."""
        group = visit.group
        for row in self.passes[visit.pass_number, group]:
            self.past[group][row.place] += row.new
        for place, past in list(self.past[group].items()):
            if past == place.capacity_tokens or data.draw(st.integers(0, 3)) == 0:
                self.places[group].give_back(place)
                del self.past[group][place]
                for layer in range(self.layers):
                    self.known.pop((layer, group, place), None)
        self.passes[visit.pass_number + 1, group] = self.next_pass(group, data)

    # What attention reads

    def attend(self, visit: Visit, layer: int, rows: tuple[RowPass, ...]) -> None:
        assert self.store is not None
        group, slot = visit.group, self.shape.data_slot(visit)
        near, away = self.store.handles(layer, group, rows, slot)
        live = self.store.near_rows(group, rows)
        places = [record for there in (near, away) if there is not None for record in there.records]
        assert len(places) == len(rows)
        spans = sorted((place.ctypes.data, place.ctypes.data + place.nbytes) for place in places)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans)), "a row's place is another's too"
        for rows_there, part in ((near, rows[:live]), (away, rows[live:])):
            assert (rows_there is None) == (not part)
            if part:
                self.attend_there(visit, layer, rows_there, part)

    def attend_there(self, visit: Visit, layer: int, rows_there: Any, rows: tuple[RowPass, ...]) -> None:
        """Append each row's new tokens and attend to all: as if every row had a cache of its own, just filled."""
        layout, tokens = self.plan.layout, sum(row.new for row in rows)
        draw = np.random.default_rng([visit.pass_number, layer, visit.group, rows[0].place.start, len(rows)])
        q, k, v = (draw.standard_normal((tokens, layout.heads * layout.head_width), np.float32) for _ in range(3))
        segments = self.port.segments([row.past for row in rows], [row.new for row in rows])
        self.port.append(rows_there, segments, k, v)
        found = self.port.attend(rows_there, segments, q, 0.5, np.empty_like(q))
        first = 0
        for row in rows:
            some = slice(first, first + row.new)
            first = some.stop
            whole = self.remember((layer, visit.group, row), k[some], v[some])
            cache = self.port.cache_rows([np.empty(len(whole.k) * layout.record_bytes, np.uint8)], layout)
            self.port.append(cache, self.port.segments([0], [len(whole.k)]), whole.k, whole.v)
            one = self.port.segments([row.past], [row.new])
            expected = self.port.attend(cache, one, q[some], 0.5, np.empty_like(q[some]))
            np.testing.assert_array_equal(found[some], expected, err_msg=f"{visit}, row {row.place}")

    def remember(self, key: tuple[int, int, RowPass], k: Tokens, v: Tokens) -> Known:
        layer, group, row = key
        old = self.known.get((layer, group, row.place))
        assert (0 if old is None else len(old.k)) == row.past
        whole = Known(k, v) if old is None else Known(np.concatenate([old.k, k]), np.concatenate([old.v, v]))
        self.known[layer, group, row.place] = whole
        return whole

    def teardown(self) -> None:
        if self.store is not None:
            self.store.release()
        self.port.close()


class Renewing(NumpyBackend):
    """Handles stand for other rows as the contract says: each one's lie as far from the first one's as they did."""

    def __init__(self, scratch_bytes: int) -> None:
        super().__init__(scratch_bytes)
        self.buffers: list[npt.NDArray[np.uint8]] = []

    def allocate(self, tier: str, nbytes: int) -> npt.NDArray[np.uint8]:
        self.buffers.append(super().allocate(tier, nbytes))
        return self.buffers[-1]

    def renew_rows(self, rows: Any, records: Any, prefixes: Any = None) -> bool:
        shapes = [[_address(record) - _address(each.records[0]) for record in each.records] for each in rows]
        if len(records) != len(rows[0].records) or any(shape != shapes[0] for shape in shapes):
            return False
        firsts = [_address(each.records[0]) for each in rows]
        for each, first in zip(rows, firsts, strict=True):
            moved = tuple(self.bytes_at(_address(one) + first - firsts[0], one.nbytes) for one in records)
            vars(each).pop("rows", None)
            vars(each)["records"] = moved
        return True

    def bytes_at(self, address: int, nbytes: int) -> npt.NDArray[np.uint8]:
        for buffer in self.buffers:
            first = address - _address(buffer)
            if first >= 0 and first + nbytes <= buffer.nbytes:
                return buffer[first : first + nbytes]
        raise AssertionError("a handle was renewed so that another one's rows lie in no memory")


def _address(array: Any) -> int:
    return int(array.ctypes.data)


class RenewedStates(CacheStates):
    """The same on a port whose handles are renewed."""

    @staticmethod
    def made_port() -> NumpyBackend:
        return Renewing(1 << 16)


@pytest.mark.parametrize("states", [CacheStates, RenewedStates])
def test_a_cache_store_does_what_its_model_does(states: type[CacheStates]) -> None:
    run_state_machine_as_test(states)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("homes", [(Tier.DEVICE, Tier.HOST), (Tier.HOST, Tier.DEVICE)])
def test_a_row_in_a_slot_follows_one_at_home_on_the_device_or_the_other_way_round(homes: tuple[Tier, Tier]) -> None:
    """In a slot all layers lie at one place, and at home each at its own: no handle of the one stands for the other."""
    port, room = Renewing(1 << 16), {Tier.DEVICE: 4, Tier.HOST: 8, Tier.DISK: 0}
    plan = CachePlan(RecordLayout(1, 2, "float32"), 3, (GroupRoom(2, room, room),), 2)
    store = CacheStore(plan, port)
    store.allocate({tier: Arena(tier, None, partial(port.allocate, tier.value), port.release) for tier in Tier})
    for home in homes:
        rows = [RowPass(RowPlace(home, 0, 4), 1, 1)]
        assert store.near_rows(0, rows) == 1
        found = [_address(store.handles(layer, 0, rows, 0)[0].records[0]) for layer in range(3)]
        fresh = CacheStore(plan, port)
        fresh._homes, fresh._slots = store._homes, store._slots
        assert found == [_address(fresh.handles(layer, 0, rows, 0)[0].records[0]) for layer in range(3)]
    store.release()


class ForgetsNothing(CacheStore):
    def _arrangement(self, group: int, rows: Any) -> Any:
        """The handles of rows that have left stay."""
        known = self._arranged.get(group)
        if known is None or known.rows is not rows:
            known = self._arranged[group] = arrange(self.plan, group, rows)
        return known


class JoinsRowsThatAreNoNeighbours(CacheStore):
    def _arrangement(self, group: int, rows: Any) -> Any:
        def goes_on(one: Stretch, other: Stretch) -> bool:
            return one.place.home is other.place.home and one.new == other.new

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Stretch, "goes_on", goes_on)
            return super()._arrangement(group, rows)


class SpillsFromTheStartOfThePrompt(CacheStore):
    def _leaving(self, stretch: Any, slot: int) -> Any:
        return replace(super()._leaving(stretch, slot), origin=max(0, stretch.past - 1))


class HasOneStagingForAllVisits(CacheStore):
    def _staged(self, stretch: Any, slot: int) -> Any:
        return super()._staged(stretch, 0)


class KeepsAllLayersInOnePlace(CacheStore):
    def _layer(self, layer: int) -> int:
        return 0


class KeepsAllGroupsInOnePlace(CacheStore):
    def _at_home(self, layer: int, group: int, place: Any) -> Any:
        return super()._at_home(layer, 0, place)


class LoadsWhatIsNotThereYet(CacheStore):
    def load(self, layer: int, group: int, rows: Any, slot: int) -> Any:
        return super().load(layer, group, [replace(row, past=max(row.past - 1, 0)) for row in rows], slot)


class KeepsStretchesOfTheLastPass(CacheStore):
    def _arrangement(self, group: int, rows: Any) -> Any:
        found = super()._arrangement(group, rows)
        return replace(found, stretches=self.kept.setdefault(group, found).stretches)  # type: ignore[attr-defined]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.kept: dict[int, Any] = {}


class ShowsMoreThanTheNewRecords(CacheStore):
    def _near(self, layer: int, group: int, found: Any, slot: int) -> Any:
        place, in_slot, tokens = found
        if in_slot is not None:
            tokens = min(place.capacity_tokens, self.plan.slot_bytes // self._record - in_slot)
        return super()._near(layer, group, (place, in_slot, tokens), slot)


class PutsFirstPassesOverRowsThatCross(CacheStore):
    """New records of rows that will be read in place take the beginning of a slot."""

    def _arrangement(self, group: int, rows: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(GroupRoom, "crossing_tokens", lambda room, tier: 0)
            return super()._arrangement(group, rows)


class LoadsNothingBesideRowsInPlace(CacheStore):
    def load(self, layer: int, group: int, rows: Any, slot: int) -> Any:
        return [] if any(row.place.in_place for row in rows) else super().load(layer, group, rows, slot)


class LoadsWhatIsReadInPlaceToo(CacheStore):
    def load(self, layer: int, group: int, rows: Any, slot: int) -> Any:
        there = [replace(row, place=replace(row.place, in_place=False)) for row in rows]
        return super().load(layer, group, there, slot)


class GivesBackAllButStaging(CacheStore):
    def release(self) -> None:
        self._taken = [taken for taken in self._taken if not taken[1].endswith("out")]
        super().release()


WRONG = (
    ForgetsNothing,
    JoinsRowsThatAreNoNeighbours,
    SpillsFromTheStartOfThePrompt,
    HasOneStagingForAllVisits,
    KeepsAllLayersInOnePlace,
    KeepsAllGroupsInOnePlace,
    LoadsWhatIsNotThereYet,
    KeepsStretchesOfTheLastPass,
    ShowsMoreThanTheNewRecords,
    PutsFirstPassesOverRowsThatCross,
    LoadsNothingBesideRowsInPlace,
    LoadsWhatIsReadInPlaceToo,
    GivesBackAllButStaging,
)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_cache_store_is_caught(wrong: type[CacheStore], caught: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "CacheStore", wrong)
    assert isinstance(caught(CacheStates), AssertionError | IndexError)
