"""Times pairs of links, products and attention on the host at work together: which slows which; it knows no model."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, cycle, islice, product
from statistics import median

from flexref.backend.protocol import HostWork, Lane, LaneStep, Ticket
from flexref.machine.machine import COMPUTE, HOST_ATTENTION, WEIGHT_FILE
from flexref.profile.attention import SCHEMES, host_attends
from flexref.profile.links import Files, links_of
from flexref.profile.meter import Meter
from flexref.profile.operands import Memory
from flexref.profile.points import Call
from flexref.profile.record import LEAST_REPEATS, LEAST_S
from flexref.units import LINKS

COPY_BYTES = 4 << 20
"""Bytes of one copy: long enough that its start costs little."""

TAKING_TURNS = 2.0
"""Stands for the slowdown of two resources of which nothing is known: as if only one of them worked at a time."""

NOISE = 0.02
"""A slowdown of less than 2 % counts as none."""

LEAST_SHARED = 0.25
"""A slowdown is known only where a resource did at least a quarter of its work while the other worked too."""

PIECES_MOST = 256
"""Bounds the pieces of one resource in one measurement."""


@dataclass(frozen=True, slots=True)
class OnLane:
    """Work of a resource on a lane: `steps(count)` makes so many pieces of it."""

    lane: Lane
    steps: Callable[[int], Sequence[LaneStep]]


@dataclass(frozen=True, slots=True)
class Worker:
    """A resource: its work on a lane, None for products; the seconds of one piece alone, and the most pieces in one
    measurement."""

    name: str
    work: OnLane | None
    piece_s: float
    most: int


Interval = tuple[float, float]


def slowdowns(meter: Meter, found: Files | None) -> dict[str, dict[str, float]]:
    """Measure how many times as long each resource takes while another works: {resource: {other: factor}}.

    Factors of about 1 are left out, and those of a disk without files to measure it with. Attention on the host is
    measured where the port can do it.
    """
    beside: dict[str, dict[str, float]] = {}
    on_host = {HOST_ATTENTION[scheme]: scheme for scheme in SCHEMES if meter.backend.caps.attends_on_host}
    with meter.memory() as memory:
        workers = _workers(meter, memory, found)
        for one, other in meter.pace.parts([*combinations(workers, 2), *_pairs_on_host(on_host)]):
            if not meter.pace.left_s:
                meter.record.cut(f"{one} beside {other}")
                beside.setdefault(one, {})[other] = beside.setdefault(other, {})[one] = TAKING_TURNS
                continue
            meter.tell(f"{one} beside {other}")
            if other not in workers:  # last of all, and in no pair's time: it takes caches of its own
                begin = meter.clock()
                workers[other] = _on_host(meter, memory, on_host[other])
                meter.pace.excuse(meter.clock() - begin)
            for name, by, factor in _pair(meter, memory, workers[one], workers[other]):
                if factor >= 1 + NOISE:
                    beside.setdefault(name, {})[by] = factor
    return beside


def _pairs_on_host(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Attention on the host, the second of each pair, works beside the device and its links; of the disk's, which are
    far slower than the host's memory, nothing is told, and one job's cache has one scheme."""
    yield from product((COMPUTE, *LINKS[:2]), names)


def _workers(meter: Meter, memory: Memory, found: Files | None) -> dict[str, Worker]:
    """Products and links, each timed alone. Reads from disk are reads of the weight file, which bypass the page
    cache."""
    sizes = meter.sizes
    copy_bytes = min(COPY_BYTES, max(sizes.copies))
    links = links_of(memory, found, min(max(16 * copy_bytes, *sizes.reads), memory.room_bytes() // 2))
    if found is not None:
        links[LINKS[2]] = links[WEIGHT_FILE]
    workers = {COMPUTE: Worker(COMPUTE, None, meter.product_s, PIECES_MOST)}
    for name in LINKS:
        if name not in links:
            continue
        link, on_disk = links[name], "disk" in name
        piece = sizes.beside_piece_bytes if on_disk else copy_bytes
        most = max(1, sizes.beside_disk_bytes // piece) if on_disk else PIECES_MOST
        work = OnLane(link.lane, partial(link.steps, piece))
        workers[name] = _timed(meter, memory, Worker(name, work, LEAST_S, most))
    return workers


def _on_host(meter: Meter, memory: Memory, scheme: str) -> Worker:
    """Attention on the host over caches of a scheme, timed alone."""
    steps = OnLane(Lane.HOST_COMPUTE, _host_steps(host_attends(meter, memory, scheme)))
    return _timed(meter, memory, Worker(HOST_ATTENTION[scheme], steps, LEAST_S, PIECES_MOST))


def _host_steps(calls: Sequence[Call]) -> Callable[[int], Sequence[LaneStep]]:
    """Steps of a lane that make these calls in turn."""
    turns = cycle([_step(call) for call in calls])
    return lambda count: list(islice(turns, count))


def _step(call: Call) -> LaneStep:
    def attend() -> None:
        call()

    return HostWork("measuring", attend, operators=True)


def _timed(meter: Meter, memory: Memory, trial: Worker) -> Worker:
    """The resource with the seconds of a piece, as long as no other works."""
    sizes, on_disk = meter.sizes, "disk" in trial.name
    count = min(trial.most, max(1, int(sizes.beside_s / max(_alone(meter, memory, trial, 1), LEAST_S))))
    repeats = LEAST_REPEATS if on_disk else sizes.repeats
    alone = median(_alone(meter, memory, trial, count) / count for _ in range(repeats))
    return replace(trial, piece_s=max(alone, LEAST_S))


def _alone(meter: Meter, memory: Memory, worker: Worker, count: int) -> float:
    """Seconds of `count` pieces of one resource while no other works."""
    begin, end = _interval(_start(meter, memory, worker, count))
    return end - begin


def _pair(meter: Meter, memory: Memory, one: Worker, other: Worker) -> list[tuple[str, str, float]]:
    """(resource, other, factor) for both of a pair: medians over repeats.

    Both are given work for the same time and start together.
    """
    seconds = min(meter.sizes.beside_s, one.most * one.piece_s, other.most * other.piece_s)
    counts = [max(1, min(worker.most, round(seconds / worker.piece_s))) for worker in (one, other)]
    found = []
    for _ in range(LEAST_REPEATS if "disk" in one.name + other.name else meter.sizes.repeats):
        # The copies of a pair come first: on a synchronous port the product's call returns when it is done.
        first = _start(meter, memory, one, counts[0])
        second = _start(meter, memory, other, counts[1])
        alone = counts[0] * one.piece_s, counts[1] * other.piece_s
        found.append(overlap_slowdowns((_interval(first), _interval(second)), alone))
    factors = []
    for place in range(2):
        told = [pair[place] for pair in found if not math.isnan(pair[place])]
        factors.append(median(told) if told else 1.0)
    return [(one.name, other.name, factors[0]), (other.name, one.name, factors[1])]


def _start(meter: Meter, memory: Memory, worker: Worker, count: int) -> tuple[Ticket, Ticket]:
    """Start `count` pieces. Returns the tickets of the first and the last; for products, marks before and after."""
    if worker.work is None:
        begin = meter.backend.mark()
        for _ in range(count):
            meter.product()
        return begin, meter.backend.mark()
    tickets = [memory.submit(worker.work.lane, [step]) for step in worker.work.steps(count)]
    return tickets[0], tickets[-1]


def _interval(tickets: tuple[Ticket, Ticket]) -> Interval:
    """Wait for the last of two tickets; the time at which the first began and that at which the last ended."""
    first, last = tickets
    last.wait()
    return first.times()[0][0], last.times()[-1][1]


def overlap_slowdowns(intervals: tuple[Interval, Interval], alone_s: tuple[float, float]) -> tuple[float, float]:
    """How many times as long each of two resources took while both worked, at least 1.

    `intervals`: when each began and ended; `alone_s`: what each would have taken alone for all of its work, T. Both
    worked together for t seconds. For the other u seconds a resource worked alone, at its own speed, and did what
    takes u. So t seconds went into the rest, which takes T - u alone: the factor is t / (T - u). It is NaN where the
    rest is too small a part to tell (`LEAST_SHARED`).
    """
    common = min(end for _, end in intervals) - max(start for start, _ in intervals)
    factors = []
    for (start, end), alone in zip(intervals, alone_s, strict=True):
        shared_work = alone - (end - start - common)
        told = common > 0 and shared_work >= LEAST_SHARED * alone
        factors.append(max(1.0, common / shared_work) if told else math.nan)
    return factors[0], factors[1]
