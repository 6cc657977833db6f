"""Whatever workers do, come and go: every line is answered once, and few lines are away or held at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flexref.batch_job.answers import Line
from flexref.batch_job.cluster.leases import AHEAD, ATTEMPTS, DEPTH, LEAST_LINES, LOSSES, MOST_BYTES, Chunk, Leases
from flexref.errors import BatchError


def numbered(count: int) -> list[Line]:
    return [Line(number, b"%d" % number) for number in range(1, count + 1)]


def numbers(chunk: Chunk) -> list[int]:
    return [line.number for line in chunk.lines]


class LeaseStates(RuleBasedStateMachine):
    """The same workers, as one who only counts lines sees them."""

    @initialize(count=st.integers(0, 200), most=st.integers(1, 40), known=st.booleans())
    def begin(self, count: int, most: int, known: bool) -> None:
        self.count, self.most, self.read = count, most, 0
        self.leases = Leases(self.lines(count), count if known else None, most_lines=most)
        self.present: set[str] = set()
        self.answered: list[int] = []
        self.sent: list[tuple[str, Chunk]] = []  # as a network has it: also what nobody waits for any more
        self.came, self.ended = 0, False

    def lines(self, count: int) -> Iterator[Line]:
        for line in numbered(count):
            self.read = line.number
            yield line

    def going_on(self) -> bool:
        return not self.ended

    @contextmanager
    def ends_with(self, said: str | None) -> Iterator[None]:
        """The job ends here, saying that, if it says anything."""
        if said is None:
            yield
            return
        with pytest.raises(BatchError, match=said):
            yield
        self.ended = True

    @precondition(lambda self: self.ended)
    @rule()
    def nothing_follows(self) -> None:
        """A job that has ended takes no more steps; a machine must have one."""

    @precondition(going_on)
    @rule()
    def a_worker_comes(self) -> None:
        self.came += 1
        self.present.add(f"worker {self.came}")
        self.leases.update(self.present)

    @precondition(lambda self: self.present and not self.ended)
    @rule(data=st.data())
    def a_worker_is_lost(self, data: st.DataObject) -> None:
        lost = data.draw(st.sampled_from(sorted(self.present)))
        self.present.remove(lost)
        working = [chunk for worker, chunk in self.leases.leased() if worker == lost][:1]
        ends = bool(working) and len(working[0].lines) == 1 and working[0].losses == LOSSES - 1
        with self.ends_with(f"line {working[0].lines[0].number}: " if ends else None):
            assert self.leases.update(self.present) == [lost]

    @precondition(going_on)
    @rule()
    def what_is_due_is_sent(self) -> None:
        self.send()

    def send(self) -> None:
        benched = self.present and all(self.leases._workers[worker].benched for worker in self.present)
        with self.ends_with("no worker is left that can work" if benched else None):
            self.sent.extend(self.leases.due())

    @precondition(lambda self: self.sent and not self.ended)
    @rule(data=st.data())
    def answers_come_perhaps_late_perhaps_twice(self, data: st.DataObject) -> None:
        self.arrive(*data.draw(st.sampled_from(self.sent)))

    def arrive(self, worker: str, chunk: Chunk) -> None:
        waited_for = (worker, chunk) in list(self.leases.leased())
        assert self.leases.done(worker, chunk) == waited_for
        if waited_for:
            self.answered += numbers(chunk)

    @precondition(lambda self: self.sent and not self.ended)
    @rule(data=st.data())
    def an_engine_fails(self, data: st.DataObject) -> None:
        worker, chunk = data.draw(st.sampled_from(self.sent))
        ends = (worker, chunk) in list(self.leases.leased()) and len(chunk.failed_on) == ATTEMPTS - 1
        with self.ends_with("the disk is gone" if ends else None):
            self.leases.failed(worker, chunk, "the disk is gone")

    @invariant()
    def every_line_that_was_read_is_in_one_place(self) -> None:
        if self.ended:
            return
        held = [number for _, chunk in self.leases.leased() for number in numbers(chunk)]
        waiting = [number for chunk in self.leases._waiting for number in numbers(chunk)]
        assert sorted(self.answered + held + waiting) == list(range(1, self.read + 1))

    @invariant()
    def few_are_away_and_few_are_held(self) -> None:
        if self.ended:
            return
        away = list(self.leases.leased())
        assert {worker for worker, _ in away} <= self.present
        for worker in self.present:
            assert sum(one == worker for one, _ in away) <= DEPTH
        oldest = min(set(range(1, self.count + 2)) - set(self.answered))
        assert self.read - oldest <= (AHEAD * max(self.came, 1) + 1) * self.most

    def teardown(self) -> None:
        """From wherever it stands, workers that work bring it to its end."""
        if not hasattr(self, "leases") or self.ended:
            return
        if all(held.benched for held in self.leases._workers.values()):
            self.leases.update(self.present | {"new worker"})
        while not self.leases.finished:
            sent = list(self.leases.due())
            assert sent or list(self.leases.leased()) or self.leases.finished
            for worker, chunk in list(self.leases.leased()):
                self.arrive(worker, chunk)
        assert sorted(self.answered) == list(range(1, self.count + 1))


LeaseStates.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestLeaseStates = LeaseStates.TestCase


def test_chunks_get_smaller_towards_the_end_so_that_workers_end_together() -> None:
    leases = Leases(numbered(1000), 1000, most_lines=100)
    leases.update(["a", "b"])
    chunks: list[Chunk] = []
    while not leases.finished:
        list(leases.due())
        for worker, chunk in list(leases.leased()):
            chunks.append(chunk)
            leases.done(worker, chunk)
    sizes = [len(chunk.lines) for chunk in sorted(chunks, key=numbers)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 100
    assert max(sizes[-3:]) <= LEAST_LINES


def test_a_line_with_which_workers_end_is_found_and_named() -> None:
    leases = Leases(numbered(64), most_lines=64)
    lost = 0
    while lost < 5 + LOSSES:
        leases.update([f"worker {lost}"])
        worker, chunk = next(leases.due())
        if 23 in numbers(chunk):
            lost += 1
        else:
            leases.done(worker, chunk)
    leases.update([f"worker {lost}"])
    list(leases.due())
    with pytest.raises(BatchError, match=r"^line 23: 5 workers were lost while they worked on it$"):
        leases.update([])


def test_a_chunk_that_failed_on_a_worker_goes_to_another_one() -> None:
    leases = Leases(numbered(4), most_lines=4)
    leases.update(["a", "b"])
    assert [worker for worker, _ in leases.due()] == ["a"]
    leases.failed("a", *[chunk for _, chunk in leases.leased()], "out of memory")
    assert [worker for worker, _ in leases.due()] == ["b"]
    leases.failed("b", *[chunk for _, chunk in leases.leased()], "out of memory")
    leases.update(["a", "b", "c"])
    assert [worker for worker, _ in leases.due()] == ["c"]
    with pytest.raises(BatchError, match=r"^lines 1 to 4: out of memory \(the last of 3 attempts, on worker c\)$"):
        leases.failed("c", *[chunk for _, chunk in leases.leased()], "out of memory")


def test_a_worker_that_always_fails_is_given_no_more_and_the_others_do_the_work() -> None:
    leases = Leases(numbered(20), most_lines=1)
    leases.update(["bad", "good"])
    failures = 0
    while not leases.finished:
        list(leases.due())
        for worker, chunk in list(leases.leased()):
            if worker == "bad":
                failures += 1
                leases.failed(worker, chunk, "no device")
            else:
                leases.done(worker, chunk)
    assert failures <= ATTEMPTS + DEPTH - 1


def test_a_chunk_that_failed_on_all_workers_there_are_is_tried_again_on_one_of_them() -> None:
    leases = Leases(numbered(4), most_lines=4)
    leases.update(["a", "b"])
    for worker in ("a", "b"):
        assert [worker for worker, _ in leases.due()] == [worker]
        leases.failed(worker, *[chunk for _, chunk in leases.leased()], "out of memory")
    assert len(list(leases.due())) == 1


def test_no_more_is_read_than_can_wait_for_a_chunk_that_does_not_end() -> None:
    read: list[int] = []
    leases = Leases((read.append(line.number) or line for line in numbered(5000)), most_lines=10)
    leases.update(["slow", "fast"])
    while any(worker == "fast" for worker, _ in [*leases.due(), *leases.leased()]):
        for worker, chunk in list(leases.leased()):
            if worker == "fast":
                leases.done(worker, chunk)
    assert 100 < len(read) <= (AHEAD * 2 + DEPTH) * 10
    leases.update(["fast"])
    assert [numbers(chunk)[0] for _, chunk in leases.due()] == [1, 6]


def test_long_lines_are_sent_few_at_a_time() -> None:
    lines = [Line(number, b"x" * (MOST_BYTES // 4)) for number in range(1, 12)]
    leases = Leases([*lines, Line(12, b"x" * 2 * MOST_BYTES), Line(13, b"")])
    leases.update(["a"])
    chunks: list[Chunk] = []
    while not leases.finished:
        for worker, chunk in [*leases.due(), *leases.leased()]:
            if leases.done(worker, chunk):
                chunks.append(chunk)
    assert [len(chunk.lines) for chunk in chunks] == [4, 4, 4, 1]
