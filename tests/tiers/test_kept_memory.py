"""Memory that an arena keeps for whoever asks next: never two holders of one buffer, never more than the budget."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
from flexref_numpy import NumpyBackend
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from flexref.architecture.spec import ModelSpec
from flexref.engine.request import Request
from flexref.errors import CapacityError
from flexref.loading import load
from flexref.policy import Policy, Shares
from flexref.tiers import pool
from flexref.tiers.pool import Arena
from flexref.tiers.transfer import Region
from flexref.units import Tier

PAGE = 4096
SPEC = ModelSpec("small", 50, 48, 16, 16, 4, 2, 32)


@dataclass(eq=False)
class Place:
    nbytes: int


class KeptStates(RuleBasedStateMachine):
    """The port beside the arena: it has so much memory that is used or kept, and sometimes refuses more."""

    @initialize(pages=st.integers(1, 40))
    def begin(self, pages: int) -> None:
        self.budget = pages * PAGE
        self.live: list[Place] = []
        self.held: list[Region] = []
        self.most = 1 << 40
        self.arena = Arena(Tier.HOST, self.budget, self.allocate, self.live.remove, keeps=True)

    def allocate(self, nbytes: int) -> Place:
        if sum(place.nbytes for place in self.live) + nbytes > self.most:
            raise CapacityError("host", "the port", nbytes, 0, {})
        self.live.append(Place(nbytes))
        return self.live[-1]

    @rule(pages=st.integers(1, 20), refuses=st.booleans())
    def take(self, pages: int, refuses: bool) -> None:
        """`refuses`: the port has no more than what is used, and what is kept."""
        nbytes, held = pages * PAGE, self.arena.held_bytes
        self.most = sum(place.nbytes for place in self.live) if refuses else 1 << 40
        fits = held + nbytes <= self.budget
        try:
            region = self.arena.take("some", nbytes)
        except CapacityError:
            region = None
        if region is None:
            assert refuses or not fits, "there was room"
            assert self.arena.held_bytes == held
            assert not fits or not self.arena.kept_bytes, "what is kept was not given up"
        else:
            assert fits
            assert not any(other.place is region.place for other in self.held), "a buffer has two holders"
            assert region.place.nbytes == nbytes  # type: ignore[union-attr]
            self.held.append(region)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        self.arena.give_back("some", self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @rule()
    def give_up(self) -> None:
        self.arena.give_up_kept()
        assert not self.arena.kept_bytes

    @invariant()
    def the_port_has_what_is_used_or_kept_within_the_budget(self) -> None:
        if hasattr(self, "arena"):
            used = sum(region.place.nbytes for region in self.held)  # type: ignore[union-attr]
            assert sum(place.nbytes for place in self.live) == used + self.arena.kept_bytes <= self.budget
            assert self.arena.held_bytes == sum(region.nbytes for region in self.held)

    def teardown(self) -> None:
        for region in getattr(self, "held", []):
            self.arena.give_back("some", region)
        if hasattr(self, "arena"):
            self.arena.give_up_kept()
            assert not self.live


def test_an_arena_keeps_what_its_budget_has_room_for() -> None:
    run_state_machine_as_test(KeptStates)


class Wasteful(pool.KeptMemory):
    """Hands out what is larger than was asked for, and counts only what was."""

    def allocate(self, nbytes: int) -> Any:
        large = [place for place in self._kept if place.nbytes > nbytes]
        if not large:
            return super().allocate(nbytes)
        self._kept.remove(large[0])
        return large[0]


class Careless(pool.KeptMemory):
    """Hands a buffer out and keeps it."""

    def allocate(self, nbytes: int) -> Any:
        kept = list(self._kept)
        found = super().allocate(nbytes)
        self._kept = kept if found in kept else self._kept
        return found


class Hoarding(pool.KeptMemory):
    """Gives nothing up for whoever needs the room."""

    def _make_room(self) -> None:
        pass


@pytest.mark.parametrize("wrong", [Wasteful, Careless, Hoarding])
def test_a_wrong_one_is_caught(wrong: type, caught: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "KeptMemory", wrong)
    assert isinstance(caught(KeptStates), AssertionError | ValueError)


class SlowMemory(NumpyBackend):
    """Its device has memory of its own, as it says: then the host's takes a while until it is pinned."""

    def __init__(self) -> None:
        super().__init__()
        self.caps, self.asked = replace(self.caps, one_memory=False), 0

    def allocate(self, tier: str, nbytes: int) -> Any:
        self.asked += tier == "host"
        return super().allocate(tier, nbytes)


def test_a_second_job_has_the_memory_of_the_first_until_the_engine_is_closed(model_file: Any) -> None:
    port = SlowMemory()
    policy = Policy(Shares(0, 1, 0), Shares(0, 1, 0), Shares(0, 1, 0))
    with load(model_file(SPEC), policy=policy, backend=port) as engine:
        first = engine.generate([[1, 2, 3]], Request(3, ignore_eos=True))
        asked = port.asked
        second = engine.generate([[1, 2, 3]], Request(3, ignore_eos=True))
        assert port.asked == asked
        assert first.outputs == second.outputs
        assert first.stats.kept_host_bytes == second.stats.kept_host_bytes > 0
        arena = engine.session.arenas[Tier.HOST]
        assert arena.kept_bytes
    assert not arena.kept_bytes
    assert not arena.held_bytes
