"""A link that becomes slow is named within 70 seconds, once; a healthy one never, however its rate varies."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.backend.protocol import Lane
from flexref.batch_job.states import JobEvent, JobFacts, JobState
from flexref.batch_job.watching.early_warning import SLOT_S, SLOW_S, TURN_S, EarlyWarning
from flexref.batch_job.watching.pace import JobPace
from flexref.machine.known import machine_named
from flexref.machine.machine import RESOURCES, WEIGHT_FILE, Machine
from flexref.policy import Policy
from flexref.units import KINDS, LINKS

FACTS = JobFacts("small", "numpy", Policy(), "in.jsonl", "out.jsonl", 1_000_000)

Flow = tuple[str, str]
"""A link and a kind of data."""

DISK: Flow = ("disk->host", "weights")

Table = dict[str, dict[str, Any]]

Slowness = Callable[[str, float], float]
"""How many times as long copies of a link take at a second of the job."""


@cache
def machine() -> Machine:
    return machine_named("l4")


def worst(link: str) -> float:
    """How many times as long a healthy copy takes at most."""
    return max(machine().slowdown(link, other) for other in RESOURCES)


class Job:
    """A job's states, one a pass: everything in `sizes` is moved in copies of so many bytes several times a pass."""

    def __init__(self, sizes: dict[Flow, int], pass_s: float, seed: int, slowness: Slowness) -> None:
        self.sizes, self.pass_s, self.slowness = sizes, pass_s, slowness
        self.random = random.Random(seed)
        self.turn_s = self.random.choice([0, 1, self.random.random()]) * TURN_S
        self.at_s, self.passes = 0.0, 0
        self.copies = dict.fromkeys(sizes, 0)
        self.seconds = dict.fromkeys(sizes, 0.0)

    def copy_s(self, flow: Flow) -> float:
        """Seconds of a copy that is alone and is not kept waiting."""
        name = WEIGHT_FILE if flow == ("disk->host", "weights") else flow[0]
        return float(machine().copies[name].seconds(self.sizes[flow]))

    def step(self) -> JobState:
        """One more pass, as long as the link takes that has most to do."""
        longest = self.pass_s
        for flow in self.sizes:
            link = flow[0]
            count = max(1, int(0.5 * self.pass_s / (self.copy_s(flow) + self.turn_s)))
            copy_s = self.random.uniform(1, worst(link)) * self.copy_s(flow) * self.slowness(link, self.at_s)
            took_s = count * (copy_s + self.turn_s)
            self.copies[flow] += count
            self.seconds[flow] += took_s
            longest = max(longest, took_s)
        self.at_s += longest
        self.passes += 1
        return self.state()

    def state(self) -> JobState:
        moved: Table = {}
        copies: Table = {}
        seconds: Table = {}
        for (link, kind), count in self.copies.items():
            moved.setdefault(link, {})[kind] = count * self.sizes[link, kind]
            copies.setdefault(link, {})[kind] = count
            seconds.setdefault(link, {})[kind] = self.seconds[link, kind]
        return JobState(
            self.at_s,
            lines_done=8 * self.passes,
            passes=self.passes,
            live_rows=8,
            places=8,
            generated_tokens=80 * self.passes,
            link_bytes=moved,
            timed_bytes=moved,
            timed_copies=copies,
            link_s=seconds,
        )


def warned(job: Job, until_s: float, machine: Machine | None) -> list[JobEvent]:
    """What the job's user is warned of."""
    events: list[JobEvent] = []
    pace = JobPace(lambda: job.at_s)
    warning = EarlyWarning(lambda *said: events.append(JobEvent(job.at_s, *said)), pace, machine)
    pace.begin(FACTS)
    warning.begin(FACTS)
    while job.at_s < until_s:
        state = job.step()
        pace.passed(state)
        warning.passed(state)
    return events


flows = st.tuples(st.sampled_from(LINKS), st.sampled_from(KINDS))
sizes = st.dictionaries(flows, st.integers(1 << 10, 1 << 30), min_size=1)
passes_s = st.floats(0.05, 40)


def healthy(seed: int) -> Slowness:
    """Always the same, up to nearly twice as slow as the machine's file has it."""
    factor = random.Random(seed).choice([0.3, 1, 1.9])
    return lambda link, at_s: factor


def fitful(seed: int) -> Slowness:
    """Ten times as slow for half a minute, now and then."""
    begin = random.Random(seed).uniform(60, 200)
    return lambda link, at_s: 10.0 if (at_s - begin) % 120 < 30 else 1.0


@given(sizes=sizes, pass_s=passes_s, seed=st.integers(0, 99), known=st.booleans())
def test_a_healthy_job_is_never_warned_of(sizes: dict[Flow, int], pass_s: float, seed: int, known: bool) -> None:
    assert warned(Job(sizes, pass_s, seed, healthy(seed)), 900, machine() if known else None) == []


@given(
    sizes=st.dictionaries(flows, st.integers(1 << 10, 1 << 28), min_size=1),
    pass_s=st.floats(0.05, 2),
    seed=st.integers(0, 99),
    known=st.booleans(),
)
def test_a_disk_that_recovers_within_a_minute_is_not_named(
    sizes: dict[Flow, int], pass_s: float, seed: int, known: bool
) -> None:
    assert warned(Job(sizes, pass_s, seed, fitful(seed)), 600, machine() if known else None) == []


def slow_from(begin_s: float, factor: float, slow: str) -> Slowness:
    return lambda link, at_s: factor if link == slow and at_s >= begin_s else 1.0


@given(
    link=st.sampled_from(("disk->host", "host->disk")),
    small=st.dictionaries(flows.filter(lambda flow: flow[1] != "weights"), st.integers(1 << 10, 1 << 20)),
    pass_s=st.floats(0.1, 1),
    factor=st.floats(3, 20),
    begin_s=st.floats(100, 300),
    seed=st.integers(0, 99),
    known=st.booleans(),
)
def test_a_disk_that_is_slow_from_some_moment_on_is_named_once_within_70_seconds(
    link: str, small: dict[Flow, int], pass_s: float, factor: float, begin_s: float, seed: int, known: bool
) -> None:
    large = link, "weights"
    job = Job({**small, large: 256 << 20}, pass_s, seed, slow_from(begin_s, factor * worst(link), link))
    longest_s = 0.6 * max(pass_s, job.copy_s(large)) * worst(link) * (factor + 1)
    events = warned(job, begin_s + 400, machine() if known else None)
    assert [event.details["link"] for event in events] == [link]
    (event,) = events
    assert event.kind == "warning"
    assert begin_s + SLOW_S - SLOT_S - longest_s <= event.at_s <= begin_s + 70 + 2 * longest_s
    assert event.details["share"] < 0.5
    assert link in event.text
    assert f"{event.details['share']:.0%}" in event.text


def test_the_warning_tells_what_was_left_before_and_what_is_left_now() -> None:
    job = Job({DISK: 256 << 20}, 0.5, 1, slow_from(200, 6, "disk->host"))
    (event,) = warned(job, 400, machine())
    before_s, now_s = event.details["left_before_s"], event.details["left_s"]
    assert now_s > 2 * before_s > 0
    assert event.text.startswith("disk->host is slow: ")
    assert "by machine l4 for copies of this size; at the pace of now " in event.text
    assert "at the pace before it would be " in event.text


@pytest.mark.parametrize("well_s", [30, 200])
def test_a_link_is_named_again_only_after_it_was_well_for_a_minute(well_s: float) -> None:
    def slowness(link: str, at_s: float) -> float:
        return 1.0 if at_s < 100 or 200 <= at_s < 200 + well_s else 8.0

    events = warned(Job({DISK: 256 << 20}, 0.5, 1, slowness), 600, machine())
    assert len(events) == (2 if well_s > SLOW_S else 1)


def test_a_link_that_is_hardly_at_work_is_not_named() -> None:
    job = Job({DISK: 256 << 20}, 0.5, 1, slow_from(0, 8, "disk->host"))
    step = job.step

    def rarely() -> JobState:
        job.at_s += 100  # the processor has so much to do
        return step()

    job.step = rarely  # type: ignore[method-assign]
    assert warned(job, 4000, machine()) == []


@pytest.mark.parametrize("loads", [True, False])
def test_a_pass_beside_which_weights_load_says_nothing_of_the_disk(loads: bool) -> None:
    """Passes of 100 s read from the disk while others do, too: that is no trouble, once it is not for ever."""
    job = Job({DISK: 256 << 20}, 100, 1, lambda link, at_s: 8.0 if at_s < 100 else 1.0)
    step, loading_s = job.step, [0.0]

    def loading() -> JobState:
        loading_s[0] += loads and job.at_s < 100
        return replace(step(), lane_busy_s={str(Lane.LOADING): loading_s[0]})

    job.step = loading  # type: ignore[method-assign]
    assert len(warned(job, 4000, machine())) == (not loads)
