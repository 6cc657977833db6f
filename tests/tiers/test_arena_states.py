"""An arena beside a model of it: whatever is taken, refused, returned or fails, each byte has one holder, or none."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from tempfile import gettempdir
from typing import Any

import numpy as np
import numpy.typing as npt
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

from flexref.errors import CapacityError, StorageError, in_gib
from flexref.tiers.pool import Arena
from flexref.tiers.spill_file import SpillFile
from flexref.tiers.transfer import Region
from flexref.units import Tier

PAGE = 4096
HOLDERS = st.sampled_from(["weights", "KV cache", "scratch"])
SIZES = st.one_of(st.integers(0, 3 * PAGE), st.sampled_from([0, 1, PAGE - 1, PAGE, PAGE + 1]))
FAILURES = st.sampled_from([StorageError("the disk is full"), MemoryError(), KeyboardInterrupt()])


@dataclass(frozen=True)
class Held:
    """A region that was taken, and the byte that fills it."""

    holder: str
    region: Region
    mark: int


class ArenaStates(RuleBasedStateMachine):
    """Regions lie in memory of the numpy port or in spill files, each filled with a byte of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.port = NumpyBackend(1 << 16)
        self.live: list[Any] = []
        self.failure: BaseException | None = None
        self.held: list[Held] = []
        self.bytes_of: Counter[str] = Counter()
        self.counted: Counter[str] = Counter()
        self.peak = self.marks = 0

    @initialize(tier=st.sampled_from(Tier), budget=st.none() | st.integers(0, 12 * PAGE))
    def begin(self, tier: Tier, budget: int | None) -> None:
        self.tier, self.budget = tier, budget
        self.arena = Arena(tier, budget, self.allocate, self.free)

    def allocate(self, nbytes: int) -> Any:
        if self.failure is not None:
            raise self.failure
        assert self.arena.held_bytes == self.bytes_of.total() + nbytes, "memory was got before it was counted"
        on_disk = self.tier is Tier.DISK
        self.live.append(SpillFile(gettempdir(), nbytes) if on_disk else self.port.allocate(self.tier.value, nbytes))
        return self.live[-1]

    def free(self, place: Any) -> None:
        number = next(number for number, known in enumerate(self.live) if known is place)
        del self.live[number]
        (place.close if self.tier is Tier.DISK else lambda: self.port.release(place))()

    def contents(self, region: Region) -> npt.NDArray[np.uint8]:
        place: Any = region.place
        if self.tier is not Tier.DISK:
            return place[region.offset : region.offset + region.nbytes]  # type: ignore[no-any-return]
        found = np.empty(region.nbytes, np.uint8)
        place.read(region.offset, found)
        return found

    def add(self, holder: str, nbytes: int) -> None:
        self.bytes_of[holder] += nbytes
        self.peak = max(self.peak, self.bytes_of.total())

    def fits(self, nbytes: int) -> bool:
        return self.budget is None or self.bytes_of.total() + nbytes <= self.budget

    def refused(self, holder: str, nbytes: int, call: Callable[[], object]) -> None:
        """The error tells the tier, who asked for how much, what is free and who holds the rest."""
        with pytest.raises(CapacityError) as caught:
            call()
        error, free = caught.value, (self.budget or 0) - self.bytes_of.total()
        assert (error.tier, error.what, error.needed_bytes) == (self.tier.value, holder, nbytes)
        assert error.free_bytes == free
        assert error.holders == +self.bytes_of
        parts = [
            f"{self.tier.value} memory is too small by {in_gib(nbytes - free)}",
            f"{holder} needs {in_gib(nbytes)}",
        ]
        parts += [f"{in_gib(free)} is free"] + [f"{name} {in_gib(size)}" for name, size in error.holders.items()]
        assert all(part in str(error) for part in parts), str(error)

    @rule(holder=HOLDERS, nbytes=SIZES)
    def take(self, holder: str, nbytes: int) -> None:
        whole = -(-nbytes // PAGE) * PAGE
        if not self.fits(whole):
            self.refused(holder, whole, lambda: self.arena.take(holder, nbytes))
            return
        region = self.arena.take(holder, nbytes)
        self.add(holder, whole)
        assert (region.tier, region.nbytes) == (self.tier, whole)
        self.marks += 1
        filling = np.full(whole, self.marks % 251, np.uint8)
        place: Any = region.place
        if self.tier is Tier.DISK:
            place.write(region.offset, filling)
        else:
            assert not whole or (place.ctypes.data + region.offset) % PAGE == 0
            self.contents(region)[...] = filling
        self.held.append(Held(holder, region, self.marks % 251))

    @rule(holder=HOLDERS, nbytes=SIZES, failure=FAILURES)
    def take_where_there_is_no_memory(self, holder: str, nbytes: int, failure: BaseException) -> None:
        whole = -(-nbytes // PAGE) * PAGE
        if not self.fits(whole):
            return
        self.failure = failure
        with pytest.raises(type(failure)):
            self.arena.take(holder, nbytes)
        self.failure = None

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        held = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.arena.give_back(held.holder, held.region)
        self.bytes_of[held.holder] -= held.region.nbytes

    @precondition(lambda self: self.held)
    @rule(data=st.data(), holder=HOLDERS)
    def give_back_what_is_not_held(self, data: st.DataObject, holder: str) -> None:
        region = data.draw(st.sampled_from(self.held)).region
        if self.bytes_of[holder] < region.nbytes:
            with pytest.raises(ValueError, match=f"{holder} holds {self.bytes_of[holder]} bytes"):
                self.arena.give_back(holder, region)

    @rule(holder=HOLDERS, nbytes=SIZES)
    def count(self, holder: str, nbytes: int) -> None:
        if not self.fits(nbytes):
            self.refused(holder, nbytes, lambda: self.arena.count(holder, nbytes))
            return
        self.arena.count(holder, nbytes)
        self.add(holder, nbytes)
        self.counted[holder] += nbytes

    @rule(holder=HOLDERS)
    def count_no_more(self, holder: str) -> None:
        nbytes = self.counted.pop(holder, 0)
        self.arena.count(holder, -nbytes)
        self.bytes_of[holder] -= nbytes

    @rule()
    def restart_peak(self) -> None:
        self.arena.restart_peak()
        self.peak = self.bytes_of.total()

    @invariant()
    def the_account_is_right(self) -> None:
        assert self.arena.holders == +self.bytes_of
        assert self.arena.held_bytes == self.bytes_of.total()
        assert self.arena.peak_bytes == self.peak
        assert self.budget is None or self.arena.peak_bytes <= self.budget

    @invariant()
    def memory_is_what_was_counted_and_no_region_is_in_another(self) -> None:
        assert sum(place.nbytes for place in self.live) == self.bytes_of.total() - self.counted.total()
        for held in self.held:
            assert (self.contents(held.region) == held.mark).all()

    def teardown(self) -> None:
        for held in self.held:
            self.arena.give_back(held.holder, held.region)
        assert not self.live
        self.port.close()


def test_an_arena_does_what_its_model_does() -> None:
    run_state_machine_as_test(ArenaStates)  # type: ignore[no-untyped-call]


class FailsWithoutUndoing(Arena):
    def take(self, holder: str, nbytes: int) -> Region:
        whole = -(-nbytes // PAGE) * PAGE
        self.count(holder, whole)
        return Region(self.tier, self._allocate(whole), 0, whole)


class CountsWhatWasAskedFor(Arena):
    def take(self, holder: str, nbytes: int) -> Region:
        self.count(holder, nbytes)
        whole = -(-nbytes // PAGE) * PAGE
        return Region(self.tier, self._allocate(whole), 0, whole)


class ForgetsItsPeak(Arena):
    def give_back(self, holder: str, region: Region) -> None:
        super().give_back(holder, region)
        self.restart_peak()


class GivesTheSameMemoryTwice(Arena):
    def give_back(self, holder: str, region: Region) -> None:
        self._holders[holder] -= region.nbytes
        kept, self._allocate_anew = region.place, self._allocate
        self._allocate = lambda nbytes: kept if kept.nbytes == nbytes else self._allocate_anew(nbytes)  # type: ignore


class RefusesTheLastByte(Arena):
    def count(self, holder: str, nbytes: int) -> None:
        super().count(holder, nbytes + 1)
        self._holders[holder] -= 1
        self.peak_bytes -= 1


@pytest.mark.parametrize(
    "wrong",
    [FailsWithoutUndoing, CountsWhatWasAskedFor, ForgetsItsPeak, GivesTheSameMemoryTwice, RefusesTheLastByte],
)
def test_a_wrong_arena_is_caught(wrong: type[Arena], caught: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "Arena", wrong)
    assert isinstance(caught(ArenaStates), AssertionError | CapacityError)
