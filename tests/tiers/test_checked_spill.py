"""Spilled rows beside a model of them: they grow, leave, are read, and come back damaged once or for good."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from flexref.architecture.spec import ModelSpec
from flexref.check.models import write_model
from flexref.engine.engine import Engine
from flexref.engine.events import FaultSeen
from flexref.engine.request import Request
from flexref.engine.results import Output
from flexref.errors import SpillDamaged, StorageError
from flexref.loading import load
from flexref.policy import Policy, Shares
from flexref.tiers import spill_file
from flexref.tiers.checked_spill import STRETCH_BYTES, CheckedSpill, SpilledRuns
from flexref.tiers.spill_file import SpillFile
from flexref.units import Tier

PLACES, CAPACITY = 4, 64
STRETCH = 24
"""Bytes: rows lie in several stretches of the runs' table."""
FAULTS = st.sampled_from(["", "", "", "flip", "error"])


class FaultySpill(SpillFile):
    """Reads fail or come back with another bit, as often as they are told to."""

    faults: list[tuple[str, int]]

    def read(self, offset: int, into: npt.NDArray[np.uint8]) -> None:
        super().read(offset, into)
        kind, place = self.faults.pop() if self.faults else ("", 0)
        if kind == "error":
            raise StorageError("the disk says no")
        if kind == "flip" and into.nbytes:
            into[place % into.nbytes] ^= 1


class SpillStates(RuleBasedStateMachine):
    """Rows have places of one size, beginning at any byte; a place that a row has left is another's, maybe shifted."""

    folder: str
    make: Callable[..., CheckedSpill] = CheckedSpill

    def __init__(self) -> None:
        super().__init__()
        self.told: list[FaultSeen] = []
        self.raw = FaultySpill(self.folder, (PLACES + 1) * CAPACITY)
        self.raw.faults = []
        self.spill = type(self).make(self.raw, self.told.append)
        self.spill.runs._stretch_bytes = STRETCH
        self.rows: dict[int, bytearray] = {}
        self.starts: dict[int, int] = {}

    @rule(place=st.integers(0, PLACES - 1), shift=st.integers(0, CAPACITY - 1), data=st.binary(min_size=1, max_size=16))
    def enter(self, place: int, shift: int, data: bytes) -> None:
        """A row comes; those that lay where it may grow to have left."""
        start = place * CAPACITY + shift
        for other in [other for other, at in self.starts.items() if abs(at - start) < CAPACITY]:
            del self.rows[other], self.starts[other]
        number = max(self.rows, default=0) + 1
        self.rows[number], self.starts[number] = bytearray(), start
        self.append(number, data)

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), more=st.binary(min_size=1, max_size=16))
    def grow(self, data: st.DataObject, more: bytes) -> None:
        self.append(data.draw(st.sampled_from(sorted(self.rows))), more)

    def append(self, number: int, data: bytes) -> None:
        row = self.rows[number]
        data = data[: CAPACITY - len(row)]
        self.spill.write(self.starts[number] + len(row), np.frombuffer(data, np.uint8))
        row += data

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), first=FAULTS, second=FAULTS, place=st.integers(0, CAPACITY))
    def read(self, data: st.DataObject, first: str, second: str, place: int) -> None:
        number = data.draw(st.sampled_from(sorted(self.rows)))
        into = np.zeros(len(self.rows[number]), np.uint8)
        self.raw.faults = [(second, place), (first, place)]
        before = len(self.told)
        try:
            self.spill.read(self.starts[number], into)
        except SpillDamaged:
            assert first
            assert second
            assert [fault.kind for fault in self.told[before:]] == ["retry", "fault"]
        else:
            assert not (first and second), "damage was not found"
            assert into.tobytes() == self.rows[number]
            assert [fault.kind for fault in self.told[before:]] == ["retry"] * bool(first)
            assert len(self.spill.runs.covering(self.starts[number], self.starts[number] + into.nbytes)) == 1
        self.raw.faults = []

    @invariant()
    def every_row_has_runs_of_its_own(self) -> None:
        for number, row in self.rows.items():
            assert self.spill.runs.covering(self.starts[number], self.starts[number] + len(row))

    @invariant()
    def no_run_lies_over_another(self) -> None:
        each = sorted(
            run for table in self.spill.runs._stretches.values() for run in zip(table.starts, table.ends, strict=True)
        )
        assert all(end <= start for (_, end), (start, _) in pairwise(each)), "what was overwritten is kept"

    def teardown(self) -> None:
        self.spill.close()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[SpillStates]:
    """Without a wait for the disk at every step: how bytes come there is a matter of test_spill_file.py."""
    monkeypatch.setattr(spill_file, "_bypasses_page_cache", lambda file: False)
    SpillStates.folder = str(tmp_path)
    return SpillStates


def test_spilled_rows_come_back_as_they_were_or_not_at_all(machine: type[SpillStates]) -> None:
    run_state_machine_as_test(machine)  # type: ignore[no-untyped-call]


class ChecksTheFirstRunAlone(CheckedSpill):
    def _trouble(self, offset: int, into: Any, runs: Any) -> str:
        trouble = super()._trouble(offset, into, runs)
        return trouble if f"from byte {offset} on" in trouble or "no" in trouble.split() else ""


class NeverJoins(CheckedSpill):
    def _trouble(self, offset: int, into: Any, runs: Any) -> str:
        trouble = super()._trouble(offset, into, runs)
        start = offset
        for end, checksum in runs:
            self.runs.put(start, end, checksum)
            start = end
        return trouble


class KeepsWhatWasOverwritten(CheckedSpill):
    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.runs.forget = lambda start, end: None  # type: ignore[method-assign]


@pytest.mark.parametrize("wrong", [ChecksTheFirstRunAlone, NeverJoins, KeepsWhatWasOverwritten])
def test_a_wrong_check_is_caught(
    machine: type[SpillStates], wrong: type, caught: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "make", wrong)
    assert isinstance(caught(machine), AssertionError | ValueError)


@given(
    cuts=st.lists(st.integers(0, 40), min_size=2, max_size=6, unique=True).map(sorted),
    stretch=st.integers(1, 41),
    data=st.data(),
)
def test_what_was_not_written_so_is_not_read_so(cuts: list[int], stretch: int, data: st.DataObject) -> None:
    runs = SpilledRuns(stretch)
    for start, end in pairwise(cuts):
        runs.put(start, end, start)
    start, end = data.draw(st.lists(st.integers(0, 40), min_size=2, max_size=2, unique=True).map(sorted))
    if start in cuts and end in cuts:
        assert [sum_ for _, sum_ in runs.covering(start, end)] == [cut for cut in cuts[:-1] if start <= cut < end]
    else:
        with pytest.raises(ValueError, match="not written as they are read"):
            runs.covering(start, end)


@given(writes=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), max_size=12), stretch=st.integers(1, 41))
def test_runs_are_those_that_nothing_was_written_over(writes: list[tuple[int, int]], stretch: int) -> None:
    runs, expected = SpilledRuns(stretch), dict[int, int]()
    for number, (start, nbytes) in enumerate(writes):
        end = start + nbytes
        expected = {at: stop for at, stop in expected.items() if stop <= start or at >= end} | {start: end}
        runs.put(start, end, number)
        assert len(runs) == len(expected)
        for at, stop in expected.items():
            assert runs.covering(at, stop)[0][0] == stop


def test_no_part_of_a_table_grows_with_the_file() -> None:
    """What is moved when a run is noted: a table in one piece took milliseconds for each of many rows."""
    runs, row_bytes = SpilledRuns(), 1 << 20
    for row in range(5000):
        runs.put(row * row_bytes, row * row_bytes + row_bytes // 2, row)
    assert len(runs) == 5000
    assert max(len(stretch.starts) for stretch in runs._stretches.values()) == STRETCH_BYTES // row_bytes


# In an engine

SPEC = ModelSpec("small", 50, 48, 16, 16, 2, 2, 32)
SPILLED = Policy(Shares(1, 0, 0), Shares(0, 0, 1), Shares(0, 0, 1), rows_per_group=2)
PROMPTS = [[1, 2, 3], [9, 8], [5, 6, 7, 8]]


REQUEST = Request(4, ignore_eos=True)


@pytest.fixture(scope="module")
def spilling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, list[Any], list[Output]]]:
    """An engine, what it tells, and what comes of the prompts."""
    path, told = tmp_path_factory.mktemp("spilling") / "model.h5", list[Any]()
    write_model(path, SPEC)
    with load(path, policy=SPILLED, on_event=told.append) as engine:
        yield engine, told, engine.generate(PROMPTS, REQUEST).outputs


@settings(max_examples=settings.default.max_examples // 2)  # each example is a whole job
@given(number=st.integers(0, 100), times=st.integers(1, 2))
def test_a_job_over_damaged_spills_has_the_same_tokens_or_one_line(spilling: Any, number: int, times: int) -> None:
    engine, told, expected = spilling
    reads, count = SpillFile.read, [0]

    def read(self: SpillFile, offset: int, into: npt.NDArray[np.uint8]) -> None:
        reads(self, offset, into)
        count[0] += 1
        if number < count[0] <= number + times:
            into[-1] ^= 0x80

    told.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpillFile, "read", read)
        try:
            found, failure = engine.generate(PROMPTS, REQUEST).outputs, ""
        except SpillDamaged as error:
            found, failure = expected, str(error)
    assert found == expected
    faults = [event.kind for event in told if isinstance(event, FaultSeen)]
    assert bool(faults) == (count[0] > number)
    assert ("fault" in faults) == bool(failure) <= (times == 2)
    if failure:
        assert failure.startswith(("layer ", "group "))
        assert "\n" not in failure
    assert not engine.session.arenas[Tier.DISK].held_bytes
    assert engine.generate(PROMPTS, REQUEST).outputs == expected
