"""Clauses on lanes and tickets: order, waiting, failures, times; a clause is `clause(backend, data)`."""

import threading
import time

import numpy as np
from hypothesis import strategies as st

from flexref.backend.protocol import LANES, Backend, LaneStep, Ticket
from flexref.check.tolerances import Values, assert_within, exact, linear_bound
from flexref.errors import StorageError, described
from flexref.testing.bench import Bench, assert_raises, assert_same_bits, move, whole
from flexref.testing.lane_steps import LATE_S, host_work, late, long_moves, times_of
from flexref.testing.strategies import numbers, seeds

HANG_S = 30.0
"""A step that waits so long for what another lane should do has waited in vain."""

CLOCK_SLACK_S = 1e-3
"""Times that a port maps from a device's clock to the host's may be off by so much."""

EVENT_RESOLUTION_S = 1e-6
"""Times of one lane's steps are of one clock, which tells them apart no finer."""

LARGE_BYTES = 1 << 18
"""A move of so many bytes takes far longer than that resolution."""

lanes = st.sampled_from(LANES)


def _bytes(data: st.DataObject, nbytes: int) -> Values:
    return np.random.default_rng(data.draw(seeds)).integers(0, 256, nbytes).astype(np.uint8)


def tickets_are_waited_for(backend: Backend, data: st.DataObject) -> None:
    """Every submission, an empty one too, gives a ticket that can be waited for, twice, and has a time per step."""
    with Bench(backend) as bench:
        source, target = bench.buffer("host", 64), bench.buffer("device", 64)
        tickets: list[Ticket] = []
        for _ in range(data.draw(st.integers(1, 5))):
            steps: list[LaneStep] = [move(whole(source), whole(target))] * data.draw(st.integers(0, 3))
            earlier = st.integers(0, max(0, len(tickets) - 1))
            after = data.draw(st.lists(earlier, max_size=3)) if tickets else []
            ticket = backend.submit(data.draw(lanes), steps, [tickets[number] for number in after])
            tickets.append(ticket)
            ticket.wait()
            ticket.wait()
            assert ticket.done(), "done() of a ticket that was waited for gives False, needed True"
            times_of(ticket, len(steps))
        mark = backend.mark()
        backend.wait(mark)
        mark.wait()
        assert mark.done(), "done() of a mark that was waited for gives False, needed True"


def times_are_in_order(backend: Backend, data: st.DataObject) -> None:
    """Steps end no earlier than they start, and start no earlier than the step before, on one lane, ended."""
    with Bench(backend) as bench:
        source, target = bench.buffer("host", LARGE_BYTES), bench.buffer("device", LARGE_BYTES)
        lane = data.draw(lanes)
        counts = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
        tickets = [backend.submit(lane, [move(whole(source), whole(target))] * count, ()) for count in counts]
        for ticket in tickets:
            ticket.wait()
        before = -np.inf
        steps = (step for ticket, count in zip(tickets, counts, strict=True) for step in times_of(ticket, count))
        for start, end in steps:
            assert start <= end, f"a step ends {start - end:.3g} s before it starts, needed an end after the start"
            assert start >= before - EVENT_RESOLUTION_S, (
                f"a step starts {before - start:.3g} s before the end of the step before it, needed one after another"
            )
            before = end


def times_are_those_of_the_host(backend: Backend, data: st.DataObject) -> None:
    """Times are seconds of `time.perf_counter`: a step lies between its submission and the end of the wait.

    So is the time of a mark: that at which the operators before it were done.
    """
    with Bench(backend) as bench:
        source, target = bench.buffer("host", 4096), bench.buffer("device", 4096)
        steps: list[LaneStep] = [late(), move(whole(source), whole(target))]
        before = time.perf_counter()
        ticket = backend.submit(data.draw(lanes), steps, ())
        ticket.wait()
        after = time.perf_counter()
        (slept, woke), (_, end) = times_of(ticket, len(steps))
        mark = backend.mark()
        mark.wait()
        ((passed, _),) = times_of(mark)
        now = time.perf_counter()
        assert after - CLOCK_SLACK_S <= passed <= now + CLOCK_SLACK_S, (
            f"a mark has the time {passed:.6f}, needed one from {after:.6f} to {now:.6f} of time.perf_counter"
        )
        assert before - CLOCK_SLACK_S <= slept, (
            f"a step starts at {slept:.6f}, needed {before:.6f} of time.perf_counter, when it was submitted, or later"
        )
        assert end <= after + CLOCK_SLACK_S, (
            f"a step ends at {end:.6f}, needed {after:.6f} of time.perf_counter, when it was waited for, or earlier"
        )
        assert woke - slept >= LATE_S - CLOCK_SLACK_S, (
            f"a step has the length {woke - slept:.3g} s, needed {LATE_S} s, for so long it slept"
        )


def a_lane_keeps_its_order(backend: Backend, data: st.DataObject) -> None:
    """Steps run one after another in the order in which they were submitted, host work in its place among the moves."""
    with Bench(backend) as bench:
        lane = data.draw(lanes)
        values = _bytes(data, 4)
        first, second = bench.buffer("host", 1), bench.buffer("device", 1)
        memory = bench.host_bytes(first)
        found: list[int] = []
        tickets = []
        for value in values.tolist():

            def write(value: int = value) -> None:
                time.sleep(LATE_S / 4)
                memory[0] = value

            def read() -> None:
                found.append(int(memory[0]))

            there, back = move(whole(first), whole(second)), move(whole(second), whole(first))
            clear = host_work(lambda: memory.fill(0))
            steps: list[LaneStep] = [host_work(write), there, clear, back, host_work(read)]
            cut = data.draw(st.integers(0, len(steps)))
            tickets += [backend.submit(lane, steps[:cut], ()), backend.submit(lane, steps[cut:], ())]
        tickets[-1].wait()
        done = [ticket.done() for ticket in tickets]
        assert all(done), f"a lane's last ticket is done, of all {len(done)} only {sum(done)}, needed all"
        assert found == values.tolist(), f"values passed along one lane arrived as {found}, needed {values.tolist()}"


def a_lane_waits_for_other_lanes(backend: Backend, data: st.DataObject) -> None:
    """Steps start only when every ticket in `after` is done, on whatever lane."""
    with Bench(backend) as bench:
        order = data.draw(st.permutations(LANES))
        content = _bytes(data, 256)
        spots = [bench.buffer(tier, 256) for tier in ("host", "device", "host", "device")]
        bench.host_bytes(spots[0])[:] = content
        ticket = backend.submit(order[0], [late(), move(whole(spots[0]), whole(spots[1]))], ())
        unrelated = backend.mark()
        for lane, source, target in zip(order[1:], spots[1:], spots[2:], strict=False):
            both = ticket, unrelated
            after = [both[number] for number in data.draw(st.permutations(range(2)))]
            ticket = backend.submit(lane, [move(whole(source), whole(target))], after)
        ticket.wait()
        assert_same_bits(bench.bytes_of(spots[3]), content, "bytes passed along three lanes")


def _lane_is_dead(error: StorageError) -> AssertionError:
    return AssertionError(
        f"submit to a lane on which earlier work failed raised {described(error)}; needed a lane that lives on"
    )


def failures_reach_all_who_wait(backend: Backend, data: st.DataObject) -> None:
    """What host work raises is raised by its ticket, each time, and by everything that waits for it.

    Nothing of that runs, and none of the submission's later steps. The lane itself lives on.
    """
    lane, other = data.draw(st.permutations(LANES))[:2]
    message = f"host work that fails on purpose, number {data.draw(st.integers(0, 99))}"
    ran: list[str] = []

    def fail() -> None:
        ran.append("first")
        raise StorageError(message)

    steps = [host_work(fail), host_work(lambda: ran.append("after the failure"))]
    try:
        failed = backend.submit(lane, steps, ())
        dependent = backend.submit(other, [host_work(lambda: ran.append("after the failure"))], [failed])
        last = backend.submit(lane, [host_work(lambda: ran.append("two after"))], [dependent])
    except StorageError as error:
        if not ran:  # its host work has not begun: it is an earlier failure
            raise _lane_is_dead(error) from error
        raise AssertionError(
            f"submit raised what its host work raised ({error}), needed a ticket whose wait raises it"
        ) from error
    for ticket in (failed, failed, dependent, last):
        said = str(assert_raises(StorageError, ticket.wait, "wait for a ticket of failed work"))
        assert said == message, f"the failure says {said!r}, needed {message!r}"
    assert_raises(StorageError, lambda: backend.wait(last), "operators that wait for failed work")
    for name in (lane, other):
        try:
            backend.submit(name, [host_work(lambda: ran.append("afterwards"))], ()).wait()
        except StorageError as error:
            raise _lane_is_dead(error) from error
    needed = ["first", "afterwards", "afterwards"]
    assert ran == needed, f"host work that ran is {ran}, needed {needed}: nothing of what waits for a failure"


def operators_wait_for_lanes(backend: Backend, data: st.DataObject) -> None:
    """Operators called after `wait(ticket)` see what the lane wrote; a lane that waits for `mark` sees their results.

    And it does not overwrite what operators before the mark still read.
    """
    with Bench(backend) as bench:
        lane = data.draw(lanes)
        width = 64
        x, w, spoilt = (numbers((width, width), bench.dtype, "normal", data.draw(seeds)) for _ in range(3))
        nbytes = x.nbytes
        host_x, host_spoilt, host_y = (bench.buffer("host", nbytes) for _ in range(3))
        bench.host_bytes(host_x)[:] = x.reshape(-1).view(np.uint8)
        bench.host_bytes(host_spoilt)[:] = spoilt.reshape(-1).view(np.uint8)
        device_x, device_y = bench.buffer("device", nbytes), bench.buffer("device", nbytes)
        there = backend.view(device_x, 0, x.shape, bench.dtype)
        result = backend.view(device_y, 0, x.shape, bench.dtype)
        weights = bench.array(w)
        slow = [late()] if data.draw(st.booleans()) else long_moves(bench)
        backend.upload(spoilt, out=there)
        backend.linear(there, weights, None, out=result)  # whatever a port makes once is made now
        steps = [*slow, move(whole(host_x), whole(device_x))]
        backend.wait(backend.submit(lane, steps, [backend.mark()]))
        backend.linear(there, weights, None, out=result)
        mark = backend.mark()
        backend.submit(lane, [move(whole(host_spoilt), whole(device_x))], [mark])
        backend.submit(data.draw(lanes), [move(whole(device_y), whole(host_y))], [mark]).wait()
        found = bench.host_bytes(host_y).view(bench.dtype).reshape(x.shape)
        expected = x.astype(np.float64) @ w.astype(np.float64).T
        bound = linear_bound(exact(x), exact(w), np.zeros_like(expected), 0, bench.arithmetic)
        assert_within(found, expected, bound, "linear between two copies", x.shape)


def lanes_do_not_hold_each_other_up(backend: Backend, data: st.DataObject) -> None:
    """While one lane's host work blocks, `submit` returns, the other lanes run to their end, and so do operators."""
    with Bench(backend) as bench:
        blocked, *others = data.draw(st.permutations(LANES))
        gate = threading.Event()
        opened: list[bool] = []
        source, target = bench.buffer("host", 64), bench.buffer("device", 64)
        copy = move(whole(source), whole(target))
        stuck = backend.submit(blocked, [host_work(lambda: opened.append(gate.wait(HANG_S))), copy], ())
        try:
            later = backend.submit(others[0], (), [stuck])
            for free in others[1:]:
                backend.submit(free, [host_work(lambda: None), copy], ()).wait()
            x = bench.array(np.ones((1, 4), bench.dtype))
            bench.read(backend.activate(x, "relu"))
            assert not stuck.done(), "done() of a ticket whose host work still waits gives True, needed False"
            assert not later.done(), "done() of a ticket that comes after one not done gives True, needed False"
        finally:
            gate.set()
        later.wait()
        assert opened == [True], (
            f"host work that blocks held up everything else for {HANG_S} s, needed other lanes and operators to go on"
        )
