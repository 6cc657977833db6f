"""A job goes on through engines that run out of memory, stops in order, and tells its watchers; it knows no format."""

import errno
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flexref_numpy import NumpyBackend
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.batch_job.answers import LineAnswer
from flexref.batch_job.engines import ATTEMPTS, Engines
from flexref.batch_job.job import BatchJob
from flexref.batch_job.serve import AskedRows, Serving
from flexref.batch_job.stall import Stalled
from flexref.batch_job.states import JobEvent, JobFacts, JobState
from flexref.engine.request import Request, RowRequest
from flexref.engine.results import Output
from flexref.errors import CapacityError, FlexrefError, JobPaused, SpillDamaged, StorageError
from flexref.loading import advisor, load
from flexref.policy import Policy, Shares
from flexref.tiers.mover import Mover
from flexref.tiers.spill_file import SpillFile

SPEC = ModelSpec("ending", 50, 48, 16, 16, 2, 2, 32, eos_token_ids=(7, 11, 20, 30, 41))
FACTS = JobFacts("ending", "numpy", Policy(), "in", "out", None)


@dataclass(frozen=True)
class Some:
    """A line whose answer is what its rows have become, as `repr` has it."""

    number: int
    rows: tuple[RowRequest, ...]

    def answer(self, outputs: Sequence[Output]) -> LineAnswer:
        return LineAnswer(self.number, None, 0, False, repr(outputs).encode())

    def refused(self, error: FlexrefError) -> LineAnswer:
        return LineAnswer(self.number, None, 0, True, str(error).encode())


@dataclass
class Kept:
    """A keeper in memory: what it has when a process is killed is what a later run finds."""

    answers: dict[int, LineAnswer] = field(default_factory=dict)
    tokens: dict[int, dict[int, tuple[int, ...]]] = field(default_factory=dict)
    notes: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    finished: bool = False
    commits: int = 0

    @property
    def done_lines(self) -> int:
        return len(self.answers)

    @property
    def failed_lines(self) -> int:
        return sum(answer.failed for answer in self.answers.values())

    def tokens_of(self, number: int) -> Mapping[int, tuple[int, ...]]:
        return self.tokens.get(number, {})

    def add(self, answer: LineAnswer) -> None:
        assert answer.number not in self.answers
        self.answers[answer.number] = answer

    def keep_tokens(self, number: int, choice: int, tokens: Sequence[int]) -> None:
        self.tokens.setdefault(number, {})[choice] = tuple(tokens)

    def note(self, kind: str, values: Mapping[str, Any]) -> None:
        self.notes.append((kind, values))

    def commit(self) -> None:
        self.commits += 1

    def finish(self) -> None:
        self.finished = True


@dataclass
class Watching:
    """Notes what it is told, and stops the job after some passes."""

    passes_left: int = 1 << 30
    told: list[str] = field(default_factory=list)

    def begin(self, facts: JobFacts) -> None:
        self.told.append("begin")

    def passed(self, state: JobState) -> None:
        self.told.append("pass")
        self.passes_left -= 1
        if self.passes_left < 0:
            raise JobPaused("enough passes")

    def happened(self, event: JobEvent) -> None:
        self.told.append(event.kind)

    def end(self, state: JobState, ending: str) -> None:
        self.told.append(ending)


def lines(count: int) -> list[Some]:
    """Lines with prompts and limits of several lengths."""
    request = [Request(1 + number % 5, ignore_eos=number % 2 == 0) for number in range(count)]
    return [
        Some(number + 1, tuple(RowRequest([number % 50] * (1 + number % 7), each) for _ in range(1 + number % 2)))
        for number, each in enumerate(request)
    ]


def answered(file: Any, asked: Sequence[Some]) -> dict[int, LineAnswer]:
    with load(file, scratch_bytes=1 << 16) as engine:
        return {answer.number: answer for answer in Serving(iter(asked)).run(engine)}


def engines(file: Any, policy: Policy | None = None) -> Engines:
    return Engines(file, advisor(policy), "numpy", {}, {"scratch_bytes": 1 << 16})


def job(
    file: Any, asked: Sequence[AskedRows], kept: Kept, watching: Watching, policy: Policy | None = None
) -> BatchJob:
    left = [line for line in asked if line.number not in kept.answers]
    return BatchJob(engines(file, policy), iter(left), kept, FACTS, [watching])


@settings(max_examples=settings.default.max_examples // 2)  # each example is several jobs
@given(passes=st.lists(st.integers(0, 6), max_size=5))
def test_a_job_that_was_stopped_anywhere_goes_on_and_comes_to_the_same(
    model_file: Callable[..., Any], passes: list[int]
) -> None:
    file, asked, kept = model_file(SPEC), lines(9), Kept()
    for some in passes:
        watching = Watching(some)
        with suppress(JobPaused):
            job(file, asked, kept, watching).run()
        if not kept.finished:
            assert watching.told[-2:] == ["pause", "paused"]
            assert kept.commits
            assert kept.notes[-1] == ("end", {**kept.notes[-1][1], "ending": "paused"})
    if not kept.finished:
        job(file, asked, kept, Watching()).run()
    assert kept.answers == answered(file, asked)


@dataclass
class Refusals:
    """Which allocations of the device, counted from `begin` on, the port refuses, as one does that others use, too."""

    numbers: Sequence[int] = ()
    count: int = 0

    def begin(self, numbers: Sequence[int]) -> None:
        self.numbers, self.count = numbers, 0


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> Refusals:
    refused, allocate = Refusals(), NumpyBackend.allocate

    def some(port: NumpyBackend, tier: str, nbytes: int) -> Any:
        refused.count += tier == "device"
        if tier == "device" and refused.count in refused.numbers:
            raise CapacityError("device", "CUDA", nbytes, 0, {})
        return allocate(port, tier, nbytes)

    monkeypatch.setattr(NumpyBackend, "allocate", some)
    return refused


@pytest.mark.parametrize("refused", [(1,), (2,), (3,), (4, 6), (4, 8, 12)])
def test_an_engine_without_memory_is_followed_by_one_with_less(
    model_file: Callable[..., Any], refusals: Refusals, refused: tuple[int, ...]
) -> None:
    file, asked, kept, watching = model_file(SPEC), lines(9), Kept(), Watching()
    expected = answered(file, asked)
    refusals.begin(refused)
    one = job(file, asked, kept, watching)
    one.run()
    assert kept.answers == expected
    assert watching.told.count("begin") == 1
    assert watching.told.count("replan") == len(refused)
    assert one.engines.budgets["device_mem_gib"] > 0


def test_it_ends_when_less_does_not_help(model_file: Callable[..., Any], refusals: Refusals) -> None:
    refusals.begin(range(1, 1000))
    watching, kept = Watching(), Kept()
    with pytest.raises(CapacityError):
        job(model_file(SPEC), lines(3), kept, watching).run()
    assert watching.told.count("replan") == ATTEMPTS - 1
    assert watching.told[-1] == "failed"


@pytest.mark.parametrize(("error", "refused"), [(MemoryError(), ()), (StorageError("cannot read in"), (4,))])
def test_what_the_lines_raise_ends_the_job_whatever_its_engines_do(
    model_file: Callable[..., Any], refusals: Refusals, error: Exception, refused: tuple[int, ...]
) -> None:
    def torn() -> Iterator[AskedRows]:
        yield from lines(3)
        raise error

    refusals.begin(refused)
    with pytest.raises(type(error)):
        BatchJob(engines(model_file(SPEC)), torn(), kept := Kept(), FACTS).run()
    assert (kept.finished, sorted(kept.answers)) == (False, [1, 2, 3])


def test_a_policy_that_was_given_is_not_planned_anew(model_file: Callable[..., Any], refusals: Refusals) -> None:
    refusals.begin([2])
    watching = Watching()
    with pytest.raises(CapacityError):
        job(model_file(SPEC), lines(3), Kept(), watching, Policy()).run()
    assert "replan" not in watching.told


def test_what_the_keeper_raises_ends_the_job_and_frees_the_engine(model_file: Callable[..., Any]) -> None:
    class Full(Kept):
        def add(self, answer: LineAnswer) -> None:
            raise StorageError("cannot write out: No space left on device")

    watching = Watching()
    with pytest.raises(StorageError, match="No space"):
        job(model_file(SPEC), lines(3), Full(), watching).run()
    assert watching.told[-1] == "failed"


ON_DISK = Policy(
    rows_per_group=2, groups_per_block=2, cache=Shares(0, 0, 1), activations=Shares(0, 0, 1), weights=Shares(0, 0, 1)
)


@pytest.mark.parametrize("error", [StorageError("cannot write in there"), SpillDamaged("records of row 1")])
def test_what_a_lane_ends_with_when_the_keeper_has_failed_is_raised_and_nothing_goes_on(
    model_file: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    settle, added, ended, unraisable = Mover.settle, list[int](), list[int](), list[Any]()

    class Full(Kept):
        def add(self, answer: LineAnswer) -> None:
            added.append(answer.number)
            raise StorageError("cannot write the journal")

    def fails(mover: Mover) -> None:
        settle(mover)
        if added:
            ended.append(len(added))
            raise error

    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    monkeypatch.setattr(Mover, "settle", fails)
    file = model_file(SPEC)
    with pytest.raises(StorageError) as found:
        job(file, lines(6), Full(), Watching(), Policy(rows_per_group=2)).run()
    gc.collect()
    assert ended == [1]
    assert not unraisable
    assert str(found.value) == ("cannot write in there" if type(error) is StorageError else "cannot write the journal")


@settings(max_examples=settings.default.max_examples // 3)  # each example is a whole job
@given(damaged=st.sets(st.integers(1, 60), min_size=1, max_size=3))
def test_rows_whose_records_are_damaged_begin_again_from_their_tokens(
    model_file: Callable[..., Any], damaged: set[int]
) -> None:
    file, asked, kept, watching = model_file(SPEC), lines(9), Kept(), Watching()
    expected, count, read = answered(file, asked), 0, SpillFile.read

    def flipped(spill: SpillFile, offset: int, into: Any) -> None:
        nonlocal count
        read(spill, offset, into)
        count += 1
        if (count + 1) // 2 in damaged:  # what is damaged is read twice
            into[0] ^= 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpillFile, "read", flipped)
        job(file, asked, kept, watching, ON_DISK).run()
    assert kept.answers == expected
    assert watching.told.count("begin") == 1


def test_a_weight_that_cannot_be_read_is_read_again_and_then_from_the_mirror(
    model_file: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, asked, kept, watching = model_file(SPEC), lines(9), Kept(), Watching()
    expected = answered(file, asked)
    copy = tmp_path / "copy.h5"
    copy.write_bytes(Path(file).read_bytes())
    preadv = os.preadv

    def failing(descriptor: int, *arguments: Any) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(file) and watching.told.count("begin"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(descriptor, *arguments)

    monkeypatch.setattr(os, "preadv", failing)
    monkeypatch.setattr("flexref.tiers.weight_copies.WAITS_S", (0.0,) * 3)
    one = job(file, asked, kept, watching, ON_DISK)
    one.engines.mirror = copy
    one.run()
    assert kept.answers == expected
    assert {"retry", "mirror"} <= set(watching.told)
    assert {"retry", "mirror"} <= {note.get("kind") for kind, note in kept.notes if kind == "event"}


def test_a_lane_that_hangs_is_told_of(model_file: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    file, asked, kept, watching = model_file(SPEC), lines(3), Kept(), Watching()
    read, hung, told = SpillFile.read, threading.Event(), list[Stalled]()

    def hanging(spill: SpillFile, offset: int, into: Any) -> None:
        hung.wait(20)
        read(spill, offset, into)

    monkeypatch.setattr(SpillFile, "read", hanging)
    one = job(file, asked, kept, watching, ON_DISK)
    one.stall_s = 0.5
    one.on_stall = lambda stalled: (told.append(stalled), hung.set())
    one.run()
    assert told
    assert "no progress" in told[0].text
    assert len(kept.answers) == 3
