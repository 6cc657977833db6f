"""What a block takes, as named linear terms over nine shares: seconds per link and compute unit, bytes per tier.

FlexGen, section 4.3 and appendix A.3, with what this engine does otherwise: copies have a size and so a rate, the cache
is stored by row, new records alone are written back, and the host's own work counts. Left out: the rows of the token
table that a pass gathers (a layer's hidden states at most, of as many layers as there are), the first load, which
nothing hides, and that tensors cannot be cut. The simulator has all of them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flexref.machine.arrays import ELEMENT_BYTES, ArrayDurations, Numbers, numbers
from flexref.machine.machine import LINKS, RESOURCES, TIERS, WEIGHT_FILE, Machine
from flexref.planner.program.blocks import Blocks, Phase, phases
from flexref.planner.program.cost_compute import LOGITS_BYTES, device_seconds, logits_pieces, operator_calls
from flexref.planner.program.cost_memory import held_bytes
from flexref.planner.program.linear import Linear, Share, total
from flexref.planner.program.task import Scoring, Task

HOST = "host"
"""The resource of the host's own work, where operators are called ahead of their execution."""

AWAY = ("host", "disk")
"""Tiers from which data must come to the device."""


@dataclass(frozen=True)
class Flow:
    """Copies of a phase that are alike: `times` of `nbytes` each, for as much of `share` as is on `tiers`.

    `kind` is what the engine counts them as; `curve` names their curve among a machine's `copies`. A `crossing` is no
    submission to a lane: operators wait for it.
    """

    phase: str
    what: str
    kind: str
    link: str
    curve: str
    share: str
    tiers: tuple[str, ...]
    times: Numbers
    nbytes: Numbers
    crossing: bool = False

    def seconds(self, machine: Machine, blocks: Blocks) -> Linear:
        """times * seconds of one copy; nbytes is by size (see `Blocks.sizes`)."""
        each = blocks.spread(ArrayDurations(machine).copy(self.curve, self.nbytes))
        return Linear.of(self.times * each, self.share, *self.tiers)

    def moved_bytes(self, blocks: Blocks) -> Linear:
        """times * nbytes."""
        return Linear.of(self.times * blocks.spread(self.nbytes), self.share, *self.tiers)

    def submissions(self) -> Linear:
        """Hand-overs to a lane."""
        return Linear() if self.crossing else Linear.of(self.times, self.share, *self.tiers)


def flows(task: Task, blocks: Blocks, compute_dtype: str) -> list[Flow]:
    """Every kind of copy of both phases."""
    found = []
    for phase in phases(task):
        if phase.passes:
            found += weight_flows(task, phase)
            found += activation_flows(task, blocks, phase, compute_dtype)
            if task.scoring is None:
                found += cache_flows(task, blocks, phase)
            else:
                found += scored_flows(task, task.scoring, blocks, phase, compute_dtype)
            if attends_far(task, phase):
                found += crossing_flows(task, blocks, phase, compute_dtype)
    return found


def attends_far(task: Task, phase: Phase) -> bool:
    """Whether caches off the device are attended to on the host: in decode alone."""
    return task.attention_on == "host" and phase.name == "decode"


def weight_flows(task: Task, phase: Phase) -> list[Flow]:
    """Every pass fetches every stage once, for all groups (FlexGen, 4.3: w_c and w_d over both links).

    As if a stage's bytes came at the rate of one copy of them.
    """
    found = []
    for nbytes, count in sorted(Counter(task.stage_bytes).items()):
        of = numbers(phase.passes * count), numbers(nbytes)
        found += [
            Flow(phase.name, "weights in", "weights", "host->device", "host->device", "weights", AWAY, *of),
            Flow(phase.name, "weights read", "weights", "disk->host", WEIGHT_FILE, "weights", ("disk",), *of),
        ]
    return found


def cache_flows(task: Task, blocks: Blocks, phase: Phase) -> list[Flow]:
    """A visit of a layer loads what its group's rows hold, and stores their new records (FlexGen, 4.3: c_c and c_d).

    The prefill finds nothing. Attention on the host leaves them there; from disk they come all the same, and go back.
    """
    times = numbers(phase.passes * task.spec.layers) * blocks.groups
    records = blocks.sizes * task.record_bytes
    past, new = (times, records * phase.past_tokens), (times, records * phase.new_tokens)
    found = []
    if not attends_far(task, phase):
        if phase.past_tokens:
            found.append(_plain(phase, "cache in", "cache", "host->device", AWAY, *past))
        found.append(_plain(phase, "cache out", "cache", "device->host", AWAY, *new))
    if phase.past_tokens:
        found.append(_plain(phase, "cache read", "cache", "disk->host", ("disk",), *past))
    found.append(_plain(phase, "cache spilled", "cache", "host->disk", ("disk",), *new))
    return found


def activation_flows(task: Task, blocks: Blocks, phase: Phase, compute_dtype: str) -> list[Flow]:
    """Hidden states leave the embedding and all layers and come to all layers and the head (FlexGen, 4.3: h_c, h_d)."""
    times = numbers(phase.passes * (task.spec.layers + 1)) * blocks.groups
    nbytes = blocks.sizes * phase.new_tokens * task.spec.width * ELEMENT_BYTES[compute_dtype]
    return [
        _plain(phase, "activations in", "activations", "host->device", AWAY, times, nbytes),
        _plain(phase, "activations out", "activations", "device->host", AWAY, times, nbytes),
        _plain(phase, "activations read", "activations", "disk->host", ("disk",), times, nbytes),
        _plain(phase, "activations spilled", "activations", "host->disk", ("disk",), times, nbytes),
    ]


def scored_flows(task: Task, scoring: Scoring, blocks: Blocks, phase: Phase, compute_dtype: str) -> list[Flow]:
    """Scored tokens leave the head's first tile, which made them of hidden states, and come to all others; their logits
    cross to the host, piece by piece: 4 V bytes a token."""
    spec, tiles = task.spec, task.stage_kinds.count("head")
    ends = blocks.sizes * scoring.tokens
    pieces, nbytes = logits_pieces(task, ends), ends * spec.embed_width * ELEMENT_BYTES[compute_dtype]
    out, back = blocks.groups * phase.passes * min(1, tiles - 1), blocks.groups * phase.passes * (tiles - 1)
    link = "device->host"
    times = blocks.groups * phase.passes * tiles * blocks.spread(pieces)
    logits = ends / pieces * spec.vocabulary / tiles * LOGITS_BYTES
    return [
        _plain(phase, "scored tokens in", "activations", "host->device", AWAY, back, nbytes),
        _plain(phase, "scored tokens out", "activations", link, AWAY, out, nbytes),
        _plain(phase, "scored tokens read", "activations", "disk->host", ("disk",), back, nbytes),
        _plain(phase, "scored tokens spilled", "activations", "host->disk", ("disk",), out, nbytes),
        Flow(phase.name, "logits", "activations", link, link, "activations", TIERS, times, logits, crossing=True),
    ]


def crossing_flows(task: Task, blocks: Blocks, phase: Phase, compute_dtype: str) -> list[Flow]:
    """Queries, keys and values (3 E) cross to the host and contexts (E) back, for rows that are attended to there."""
    times = numbers(phase.passes * task.spec.layers) * blocks.groups
    width = blocks.sizes * task.spec.width * ELEMENT_BYTES[compute_dtype]
    return [
        Flow(phase.name, what, "activations", link, link, "cache", AWAY, times, nbytes, crossing=True)
        for what, link, nbytes in (("queries out", "device->host", 3 * width), ("contexts in", "host->device", width))
    ]


def _plain(
    phase: Phase, what: str, kind: str, link: str, tiers: tuple[str, ...], times: Numbers, nbytes: Numbers
) -> Flow:
    return Flow(phase.name, what, kind, link, link, kind, tiers, times, nbytes)


Terms = Mapping[str, Linear]
"""Seconds by resource: the links, "compute", and the host where it calls operators ahead."""


@dataclass(frozen=True)
class Costs:
    """Everything that N candidates take, as linear terms; `known_operators` are those of another machine's links."""

    machine: Machine
    task: Task
    blocks: Blocks
    known_operators: Mapping[str, Linear] | None = None

    @cached_property
    def operators(self) -> Mapping[str, Linear]:
        """Seconds of all operators by phase."""
        if self.known_operators is not None:
            return self.known_operators
        every = (self.machine, self.task, self.blocks)
        return {phase.name: device_seconds(*every, phase, attends_far(self.task, phase)) for phase in phases(self.task)}

    def with_links_of(self, machine: Machine) -> "Costs":
        """The same on a machine that differs in its links alone."""
        return Costs(machine, self.task, self.blocks, self.operators)

    @cached_property
    def flows(self) -> Sequence[Flow]:
        """Every kind of copy."""
        return flows(self.task, self.blocks, self.machine.port.compute_dtype)

    @cached_property
    def held(self) -> Mapping[str, Mapping[str, Linear]]:
        """Peak bytes by tier and holder."""
        return held_bytes(self.task, self.blocks, self.machine.port.compute_dtype, self.machine.port.scratch_bytes)

    @cached_property
    def disk_write_bytes(self) -> Linear:
        """What is spilled in both phases."""
        return total(flow.moved_bytes(self.blocks) for flow in self.flows if flow.link == "host->disk")

    @cached_property
    def overlapped(self) -> bool:
        """Whether links and compute unit work at the same time."""
        return self.task.overlap and self.machine.port.overlaps_copies

    @cached_property
    def seconds(self) -> Mapping[str, Terms]:
        """By phase, then by resource: busy seconds, slowed down by what works beside it."""
        return {phase.name: self._slowed(self._alone(phase)) for phase in phases(self.task)}

    def rows(self, phase: str) -> list[tuple[tuple[str, ...], Linear]]:
        """(resources, seconds) that a phase takes at least: each resource's alone, or without overlap the sum.

        FlexGen, 4.3: T = max(...) over links and compute. What the host does ahead hides behind the device in any case.
        """
        terms = self.seconds[phase]
        if self.overlapped:
            return [((resource,), term) for resource, term in terms.items()]
        units = [unit for unit in ("compute", HOST) if unit in terms]
        return [((*LINKS, unit), total(terms[resource] for resource in (*LINKS, unit))) for unit in units]

    def _alone(self, phase: Phase) -> dict[str, Linear]:
        machine, task, blocks, host = self.machine, self.task, self.blocks, self.machine.host_s
        mine = [flow for flow in self.flows if flow.phase == phase.name]
        took = [(flow, flow.seconds(machine, blocks)) for flow in mine]
        terms = {link: total(seconds for flow, seconds in took if flow.link == link) for link in LINKS}
        visits = phase.passes * len(task.stage_bytes) * blocks.groups
        choices = phase.passes * (task.scoring is None)
        choice = blocks.groups * choices * (host.choice + host.choice_row * blocks.rows / blocks.groups)
        own = total(flow.submissions() for flow in mine).times(host.submission) + Linear.fixed(visits * host.visit)
        compute = self.operators[phase.name] + Linear.fixed(choice)
        if self.overlapped:
            # Without overlap they are in the sum already, as the links' seconds.
            compute = compute + total(seconds for flow, seconds in took if flow.crossing) + self._waited(took)
        if machine.port.asynchronous:
            calls = operator_calls(task, attends_far(task, phase)).times(blocks.groups * phase.passes * host.call)
            terms[HOST] = own + calls + Linear.fixed(choice)
        if machine.port.asynchronous and self.overlapped:
            own = Linear()  # it hides behind the device; without overlap the device waits for every hand-over
        return {**terms, "compute": compute + own}

    def _waited(self, took: Sequence[tuple[Flow, Linear]]) -> Linear:
        """A single group's hidden states come to a stage when they have left the last one: operators wait for both."""
        single = np.asarray(self.blocks.groups == 1, np.float64)
        return total(seconds for flow, seconds in took if flow.share == "activations").times(single)

    def _slowed(self, alone: Mapping[str, Linear]) -> Terms:
        """t + (slowdown - 1) * t of each other resource that works beside it: ours, for equal times exact."""
        if not self.overlapped:
            return alone
        slowed = dict(alone)
        for resource in RESOURCES:
            for other in RESOURCES:
                more = self.machine.slowdown(resource, other) - 1
                if other != resource and more > 0:
                    slowed[resource] = slowed[resource] + alone[other].times(more)
        return slowed

    def value(self, term: Linear, shares: Mapping[Share, float], place: int) -> float:
        """A term of the candidate at `place`, at these shares."""
        return float(np.broadcast_to(term.at(shares), self.blocks.rows.shape)[place])
