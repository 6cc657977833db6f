"""Reads that a disk is asked for before their turn: what comes is the same, and no memory is written to too early."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flexref_numpy import NumpyBackend
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.backend.protocol import Lane, Ticket
from flexref.errors import StorageError
from flexref.tiers import disk as disk_module
from flexref.tiers import reads_ahead
from flexref.tiers.disk import RangeAhead, WeightsOnDisk
from flexref.tiers.mover import Mover
from flexref.tiers.transfer import Copy, Gather, Region, Traffic
from flexref.units import Kind, Tier

PAGE = 4096
PAGES = 64
SLOT = 5 * PAGE


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ahead") / "bytes"
    place.write_bytes(np.random.default_rng(0).integers(0, 256, PAGES * PAGE, np.uint8).tobytes())
    return place


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_module, "CHUNK_BYTES", PAGE)


def _host(port: NumpyBackend, nbytes: int) -> Region:
    place = port.allocate("host", nbytes)
    port.host_memory(place).fill(0)
    return Region(Tier.HOST, place, 0, nbytes)


def _read(place: Any, offset: int, target: Region) -> Copy:
    return Copy(Kind.WEIGHTS, "bytes", Region(Tier.DISK, place, offset, target.nbytes), target)


def _work(call: Callable[[], None]) -> Gather:
    return Gather(Kind.WEIGHTS, "test", 0, 0, call)


def _streams(path: Path, slots: int, wanted: list[tuple[int, int, bool]]) -> None:
    """As weights are streamed: a slot is read into once what it held has been taken.

    wanted: the page where it begins, bytes, and whether it is taken slowly.
    """
    content = np.fromfile(path, np.uint8)
    taken: list[npt.NDArray[np.uint8]] = []
    port = NumpyBackend()
    with closing(port), closing(WeightsOnDisk(path)) as file:
        mover, memory = Mover(port, Traffic()), _host(port, slots * SLOT)
        loads: list[Ticket] = []
        for number, (page, nbytes, slow) in enumerate(wanted):
            place = memory.part(number % slots * SLOT, nbytes)
            after = [loads[number - slots]] if number >= slots else []
            fetch = mover.submit(Lane.DISK_IN, [_read(file, page * PAGE, place)], after)

            def take(place: Region = place, slow: bool = slow) -> None:
                if slow:
                    threading.Event().wait(0.002)
                taken.append(port.host_memory(place.place)[place.offset :][: place.nbytes].copy())  # type: ignore[arg-type]

            loads.append(mover.submit(Lane.WEIGHTS_IN, [_work(take)], [fetch]))
        loads[-1].wait()
        mover.settle()
        assert not file._ahead, "what was asked for early has been taken"
    assert len(taken) == len(wanted)
    for found, (page, nbytes, _) in zip(taken, wanted, strict=True):
        np.testing.assert_array_equal(found, content[page * PAGE :][:nbytes])


SIZES = st.integers(1, SLOT) | st.sampled_from((PAGE, 2 * PAGE, SLOT))


@settings(max_examples=60)
@given(
    slots=st.integers(1, 4),
    wanted=st.lists(st.tuples(st.integers(0, PAGES - 6), SIZES, st.booleans()), min_size=1, max_size=14),
)
def test_what_arrives_is_the_files_however_slowly_it_is_taken(
    path: Path, slots: int, wanted: list[tuple[int, int, bool]]
) -> None:
    _streams(path, slots, wanted)


def test_reads_that_begin_before_their_place_is_free_are_caught(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads_ahead._Expected, "may_begin", lambda expected: True)
    with pytest.raises(AssertionError):
        _streams(path, 1, [(page, SLOT, True) for page in range(0, 50, 5)])


def _await(gate: threading.Event) -> None:
    assert gate.wait(30)


class SlowFile:
    """Reads only when it is let; knows which chunks it was asked for, by the name of their range."""

    def __init__(self, name: str, asked: list[str]) -> None:
        self.name, self.asked, self.let = name, asked, threading.Event()
        self.begun = threading.Event()
        self.ranges: list[RangeAhead] = []

    def ask_ahead(self, offset: int, into: npt.NDArray[np.uint8]) -> RangeAhead:
        def chunk(start: int, memory: npt.NDArray[np.uint8]) -> "Future[None]":
            self.asked.append(self.name)
            done: Future[None] = Future()
            memory[:] = 1
            done.set_result(None)
            return done

        self.ranges.append(RangeAhead(chunk, into))
        return self.ranges[-1]

    def read(self, offset: int, into: npt.NDArray[np.uint8]) -> None:
        self.begun.set()
        assert self.let.wait(30)
        list(self.ranges[-1].arriving())


@pytest.fixture
def port() -> Iterator[NumpyBackend]:
    with closing(NumpyBackend()) as found:
        yield found


def test_the_next_reads_are_asked_for_in_the_turn_of_this_one_if_what_they_wait_for_is_done(port: NumpyBackend) -> None:
    asked: list[str] = []
    first, second, third, fourth = (SlowFile(name, asked) for name in ("first", "second", "third", "fourth"))
    mover, gate = Mover(port, Traffic()), threading.Event()
    waits = mover.submit(Lane.CACHE_IN, [_work(lambda: _await(gate))], ())
    places = [_host(port, 2 * PAGE) for _ in range(4)]
    hold = threading.Event()
    mover.submit(Lane.DISK_IN, [_work(lambda: _await(hold))], ())
    for file, place, after in zip((first, second, third, fourth), places, ((), (), (waits,), ()), strict=True):
        mover.submit(Lane.DISK_IN, [_read(file, 0, place)], after)
    hold.set()
    assert first.begun.wait(30)
    assert asked == ["first", "first", "second", "second"], "the third may not begin, and so none after it"
    assert not port.host_memory(places[2].place).any()  # type: ignore[arg-type]
    gate.set()
    for file in (first, second, third, fourth):
        file.let.set()
    waits.wait()
    for _, _, ticket, _ in mover._open:
        ticket.wait()
    mover.settle()
    assert sorted(asked) == ["first"] * 2 + ["fourth"] * 2 + ["second"] * 2 + ["third"] * 2


def test_what_waits_for_a_failure_is_never_asked_for(port: NumpyBackend) -> None:
    asked: list[str] = []
    first, dead, last = (SlowFile(name, asked) for name in ("first", "dead", "last"))

    def fail() -> None:
        raise StorageError("on purpose")

    mover = Mover(port, Traffic())
    failed = mover.submit(Lane.CACHE_IN, [_work(fail)], ())
    places = [_host(port, PAGE) for _ in range(3)]
    for file in (first, dead, last):
        file.let.set()
    tickets = [
        mover.submit(Lane.DISK_IN, [_read(file, 0, place)], after)
        for file, place, after in zip((first, dead, last), places, ((), (failed,), ()), strict=True)
    ]
    tickets[2].wait()
    with pytest.raises(StorageError, match="on purpose"):
        mover.settle()
    assert asked == ["first", "last"]
    assert not port.host_memory(places[1].place).any()  # type: ignore[arg-type]


def test_reads_that_nobody_wants_any_more_are_not_read(port: NumpyBackend) -> None:
    asked: list[str] = []
    first, vain = SlowFile("first", asked), SlowFile("vain", asked)
    mover = Mover(port, Traffic())
    mover.submit(Lane.DISK_IN, [_read(first, 0, _host(port, PAGE))], ())
    mover.submit(Lane.DISK_IN, [_read(vain, 0, _host(port, PAGE))], ())
    assert first.begun.wait(30)
    settled = threading.Thread(target=mover.settle)
    settled.start()
    while not mover._ahead._in_vain:
        threading.Event().wait(0.001)
    first.let.set()
    settled.join(30)
    assert not vain.begun.is_set()
    assert asked.count("vain") <= 1, "what had been asked for before is waited for, and nothing more is"


def test_nor_are_those_of_a_submission_whose_ticket_was_lost(
    port: NumpyBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    first, vain = SlowFile("first", asked), SlowFile("vain", asked)
    mover, submit, waited = Mover(port, Traffic()), port.submit, threading.Event()

    def lose(lane: Lane, steps: Any, after: Any) -> Ticket:
        ticket = submit(lane, steps, after)
        if steps:
            raise KeyboardInterrupt  # between the port's call and the note of its ticket
        waited.set()
        return ticket

    monkeypatch.setattr(port, "submit", lose)
    with pytest.raises(KeyboardInterrupt):
        mover.submit(Lane.DISK_IN, [_read(first, 0, _host(port, PAGE)), _read(vain, 0, _host(port, PAGES * PAGE))], ())
    assert first.begun.wait(30)
    settled = threading.Thread(target=mover.settle)
    settled.start()
    assert waited.wait(30)
    first.let.set()
    settled.join(30)
    assert not vain.begun.is_set()
    assert len(asked) < 1 + PAGES
    assert mover.traffic.flows["disk->host", "weights"].nbytes == len(asked) * PAGE, "only what came is counted"
