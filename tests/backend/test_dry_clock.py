"""The dry port's clock: lanes in order, links shared, nothing decided by when somebody asks."""

from typing import Any

import pytest
from flexref_dry.clock import Clock, Task
from hypothesis import given
from hypothesis import strategies as st

LANES = ("compute", "weights_in", "cache_in", "cache_out")
RESOURCES = {"compute": "compute", "weights_in": "in", "cache_in": "in", "cache_out": "out"}
BESIDE = {"in": {"out": 1.5}, "out": {"in": 1.25, "compute": 1.5}}


@st.composite
def programs(draw: st.DrawFn) -> list[tuple[str, float, float, list[int], float]]:
    """(lane, seconds of work, seconds that the host spends first, tasks to wait for, seconds before it cannot end)."""
    steps = []
    for number in range(draw(st.integers(1, 12))):
        after = draw(st.lists(st.integers(0, number - 1), max_size=3)) if number else []
        work, pause = draw(st.sampled_from([0.0, 0.5, 1.0, 3.0])), draw(st.sampled_from([0.0, 0.0, 0.25, 2.0]))
        steps.append((draw(st.sampled_from(LANES)), work, pause, after, draw(st.sampled_from([0.0, 0.0, 2.0]))))
    return steps


def run(program: Any, asked: int) -> list[Task]:
    """The tasks of a program; the bits of `asked` say after which steps the host asks for what has ended."""
    clock = Clock(BESIDE)
    tasks: list[Task] = []
    for number, (lane, work_s, pause_s, after, floor_s) in enumerate(program):
        clock.spend(pause_s)
        task = clock.add(lane, RESOURCES[lane], work_s, [tasks[other] for other in after])
        task.floor_s = clock.now_s + floor_s
        tasks.append(task)
        if asked >> number & 1:
            for other in tasks:
                clock.has_ended(other)
    for task in tasks:
        clock.join(task)
    return tasks


@given(program=programs(), asked=st.integers(0, 1 << 12))
def test_when_the_host_asks_changes_nothing(program: Any, asked: int) -> None:
    quiet, curious = run(program, 0), run(program, asked)
    assert [task.end_s for task in curious] == pytest.approx([task.end_s for task in quiet])
    assert [task.start_s for task in curious] == pytest.approx([task.start_s for task in quiet])


@given(program=programs())
def test_every_task_starts_when_it_may_and_takes_at_least_its_work(program: Any) -> None:
    tasks = run(program, 0)
    ends_of_lanes: dict[str, float] = {}
    host_s = 0.0
    for task, (lane, work_s, pause_s, after, floor_s) in zip(tasks, program, strict=True):
        host_s += pause_s
        earliest = max([host_s, ends_of_lanes.get(lane, 0.0), *(tasks[other].end_s for other in after)])
        assert task.start_s == pytest.approx(earliest)
        assert task.end_s >= max(task.start_s + work_s, host_s + floor_s) - 1e-9
        ends_of_lanes[lane] = task.end_s


@given(program=programs())
def test_a_link_carries_no_more_than_it_can(program: Any) -> None:
    tasks = run(program, 0)
    for resource in ("in", "out", "compute"):
        mine = [number for number, task in enumerate(tasks) if task.resource == resource]
        if mine:
            first = min(tasks[number].start_s for number in mine)
            last = max(tasks[number].end_s for number in mine)
            assert last - first >= sum(program[number][1] for number in mine) - 1e-9


def test_two_copies_on_one_link_share_it() -> None:
    clock = Clock({})
    long, short = clock.add("weights_in", "in", 3.0), clock.add("cache_in", "in", 1.0)
    clock.join(long)
    assert (short.end_s, long.end_s) == (2.0, 4.0)


def test_both_ways_at_once_take_longer_by_their_factors() -> None:
    clock = Clock({"in": {"out": 1.5}, "out": {"in": 1.25}})
    inward, outward = clock.add("weights_in", "in", 2.0), clock.add("cache_out", "out", 1.6)
    clock.join(outward)
    assert outward.end_s == pytest.approx(2.0)
    clock.join(inward)
    assert inward.end_s == pytest.approx(2.0 + (2.0 - 2.0 / 1.5))


def test_a_task_that_waits_for_itself_s_successor_is_an_error_and_no_endless_loop() -> None:
    clock = Clock({})
    first = clock.add("compute", "compute", 1.0)
    second = clock.add("compute", "compute", 1.0)
    first.after = [second]
    with pytest.raises(RuntimeError, match="never"):
        clock.join(first)
