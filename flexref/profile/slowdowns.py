"""Times what slows what: pairs of links, and of links and products, at work at the same time; it knows no model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from statistics import median

from flexref.backend.protocol import Ticket
from flexref.machine.machine import RESOURCES, WEIGHT_FILE
from flexref.profile.links import Files, Link, links_of
from flexref.profile.meter import LEAST_REPEATS, LEAST_S, Meter
from flexref.profile.operands import Memory
from flexref.units import LINKS

COMPUTE = RESOURCES[-1]

COPY_BYTES = 4 << 20
"""Of one copy: long beside what it costs to start one."""

NOISE = 0.02
"""A slowdown by less is none."""

LEAST_SHARED = 0.25
"""Tells a slowdown: at least so much of its work must a resource have done beside the other."""

PIECES_MOST = 256
"""Bounds the steps of one resource in one measurement."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A resource, the seconds of one of its pieces alone, and how many it may do in one measurement."""

    name: str
    link: Link | None
    piece_bytes: int
    piece_s: float
    most: int


Interval = tuple[float, float]


def slowdowns(meter: Meter, found: Files) -> dict[str, dict[str, float]]:
    """How many times as long each resource takes while another works too; those of about 1 are left out."""
    beside: dict[str, dict[str, float]] = {}
    with meter.memory() as memory:
        workers = _workers(meter, memory, found)
        for one, other in combinations(RESOURCES, 2):
            meter.tell(f"{one} beside {other}")
            for name, by, factor in _pair(meter, memory, workers[one], workers[other]):
                if factor >= 1 + NOISE:
                    beside.setdefault(name, {})[by] = factor
    return beside


def _workers(meter: Meter, memory: Memory, found: Files) -> Mapping[str, Worker]:
    """All resources, with their seconds alone. What comes from disk comes from the weight file, past the page cache."""
    sizes = meter.sizes
    copy_bytes = min(COPY_BYTES, max(sizes.copies))
    links = links_of(memory, found, min(max(16 * copy_bytes, *sizes.reads), memory.room_bytes() // 2))
    links[LINKS[2]] = links[WEIGHT_FILE]
    workers = {COMPUTE: Worker(COMPUTE, None, 0, meter.product_s, PIECES_MOST)}
    for name in LINKS:
        on_disk = "disk" in name
        piece = sizes.beside_piece_bytes if on_disk else copy_bytes
        most = max(1, sizes.beside_disk_bytes // piece) if on_disk else PIECES_MOST
        trial = Worker(name, links[name], piece, LEAST_S, most)
        count = min(most, max(1, int(sizes.beside_s / max(_alone(meter, memory, trial, 1), LEAST_S))))
        repeats = LEAST_REPEATS if on_disk else sizes.repeats
        alone = median(_alone(meter, memory, trial, count) / count for _ in range(repeats))
        workers[name] = Worker(name, links[name], piece, max(alone, LEAST_S), most)
    return workers


def _alone(meter: Meter, memory: Memory, worker: Worker, count: int) -> float:
    begin, end = _interval(_start(meter, memory, worker, count))
    return end - begin


def _pair(meter: Meter, memory: Memory, one: Worker, other: Worker) -> list[tuple[str, str, float]]:
    """(resource, other, slowdown) of both: medians of repeats in which both begin with as long to do."""
    seconds = min(meter.sizes.beside_s, one.most * one.piece_s, other.most * other.piece_s)
    counts = [max(1, min(worker.most, round(seconds / worker.piece_s))) for worker in (one, other)]
    found = []
    for _ in range(LEAST_REPEATS if "disk" in one.name + other.name else meter.sizes.repeats):
        # A product of a port that is not asynchronous returns when it is done: copies must be under way before it.
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
    """Begin `count` pieces; tickets of the first and of the last of them (of a product: marks around all)."""
    if worker.link is None:
        begin = meter.backend.mark()
        for _ in range(count):
            meter.product()
        return begin, meter.backend.mark()
    steps = worker.link.steps(worker.piece_bytes, count)
    tickets = [memory.submit(worker.link.lane, [step]) for step in steps]
    return tickets[0], tickets[-1]


def _interval(tickets: tuple[Ticket, Ticket]) -> Interval:
    first, last = tickets
    last.wait()
    return first.times()[0][0], last.times()[-1][1]


def overlap_slowdowns(intervals: tuple[Interval, Interval], alone_s: tuple[float, float]) -> tuple[float, float]:
    """How many times as long two resources took for what they did while both worked, at least 1.

    `alone_s` is what each takes alone for all that it did; outside of the time in which both worked, each was as fast
    as that. With t seconds in common, and u seconds outside, of what takes T alone, t / (T - u) is the slowdown; where
    nearly all was done outside it is unknown (NaN).
    """
    common = min(end for _, end in intervals) - max(start for start, _ in intervals)
    factors = []
    for (start, end), alone in zip(intervals, alone_s, strict=True):
        shared_work = alone - (end - start - common)
        told = common > 0 and shared_work >= LEAST_SHARED * alone
        factors.append(max(1.0, common / shared_work) if told else math.nan)
    return factors[0], factors[1]
