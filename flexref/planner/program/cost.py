"""What a block takes, as linear terms over nine shares: seconds of each link and of the operators, bytes on each tier.

The nine shares say how much of weights, cache and activations is on device, host and disk. The terms are those of
FlexGen, section 4.3 and appendix A.3, except that a copy's rate depends on its size, the cache is stored by row, only
new records are written back, and the host's own work counts. Three things are left out, which the simulator has: the
rows of the token table that a pass gathers (at most the hidden states of one layer), the first load of a block, which
overlaps with nothing, and that tensors cannot be cut.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flexref.architecture.program import program_of
from flexref.architecture.stages import StageKind
from flexref.machine.arrays import Numbers, numbers
from flexref.machine.durations import Durations
from flexref.machine.machine import RESOURCES, WEIGHT_FILE, Machine
from flexref.planner.program.blocks import Blocks, Phase, phases
from flexref.planner.program.cost_compute import device_seconds, logits_pieces, operator_calls
from flexref.planner.program.cost_memory import held_bytes
from flexref.planner.program.linear import Linear, Share, total
from flexref.planner.program.task import Scoring, Task
from flexref.units import DTYPE_BYTES, LINKS, LOGITS_BYTES, TIERS

HOST = "host"
"""The host's own work as a resource: on an asynchronous port operators run later than they are called."""

AWAY = ("host", "disk")
"""Tiers from which data must come to the device."""


@dataclass(frozen=True)
class PlannedFlow:
    """Copies of a phase that are alike: `times` copies of `nbytes` each if all of `share` is on `tiers`, else its part.

    `kind` is what the engine counts them as; `curve` names their curve among a machine's `copies`. A `crossing` is
    called in line with the operators, which wait for it; all others are submitted to a lane.
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
        """`times` times the seconds of one copy; `nbytes` are those of every size of group (see `Blocks.sizes`)."""
        each = blocks.spread(Durations(machine).copy(self.curve, self.nbytes))
        return Linear.of(self.times * each, self.share, *self.tiers)

    def moved_bytes(self, blocks: Blocks) -> Linear:
        """`times` times `nbytes`."""
        return Linear.of(self.times * blocks.spread(self.nbytes), self.share, *self.tiers)

    def submissions(self) -> Linear:
        """How often the host submits to a lane."""
        return Linear() if self.crossing else Linear.of(self.times, self.share, *self.tiers)


def flows(task: Task, blocks: Blocks, compute_dtype: str) -> list[PlannedFlow]:
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
    """Whether attention runs on the host, for caches that are not on the device; in decode alone."""
    return task.attention_on == "host" and phase.name == "decode"


def weight_flows(task: Task, phase: Phase) -> list[PlannedFlow]:
    """Every pass fetches every stage once, for all groups (FlexGen, 4.3: w_c and w_d over both links).

    A stage's bytes are taken to move at the rate of one copy of that size.
    """
    found = []
    for nbytes, count in sorted(Counter(task.stage_bytes).items()):
        of = numbers(phase.passes * count), numbers(nbytes)
        found += [
            PlannedFlow(phase.name, "weights in", "weights", "host->device", "host->device", "weights", AWAY, *of),
            PlannedFlow(phase.name, "weights read", "weights", "disk->host", WEIGHT_FILE, "weights", ("disk",), *of),
        ]
    return found


def cache_flows(task: Task, blocks: Blocks, phase: Phase) -> list[PlannedFlow]:
    """A visit of a layer loads its rows' records and stores their new ones (FlexGen, 4.3: c_c and c_d).

    In the prefill there is nothing to load. With attention on the host, records do not cross to the device; those on
    disk are still read to the host and written back.
    """
    times = numbers(phase.passes * task.spec.layers) * blocks.groups
    records = blocks.sizes * task.record_bytes
    past, new = (times, records * phase.past_tokens), (times, records * phase.new_tokens)
    found = []
    if not attends_far(task, phase):
        if phase.past_tokens:
            found.append(_plain(phase, "cache in", "cache", "host->device", AWAY, *past))
        found.append(_plain(phase, "cache out", "cache", "device->host", AWAY, *new))
    elif phase.prompts:
        prompts = records * phase.prompts * phase.prompt_tokens
        found.append(_plain(phase, "cache out", "cache", "device->host", AWAY, times, prompts))
    if phase.past_tokens:
        found.append(_plain(phase, "cache read", "cache", "disk->host", ("disk",), *past))
    found.append(_plain(phase, "cache spilled", "cache", "host->disk", ("disk",), *new))
    return found


def activation_flows(task: Task, blocks: Blocks, phase: Phase, compute_dtype: str) -> list[PlannedFlow]:
    """Hidden states are stored after the embedding and every layer, and loaded for every layer and the head.

    FlexGen, 4.3: h_c, h_d.
    """
    times = numbers(phase.passes * (task.spec.layers + 1)) * blocks.groups
    nbytes = blocks.sizes * phase.new_tokens * task.spec.width * DTYPE_BYTES[compute_dtype]
    return [
        _plain(phase, "activations in", "activations", "host->device", AWAY, times, nbytes),
        _plain(phase, "activations out", "activations", "device->host", AWAY, times, nbytes),
        _plain(phase, "activations read", "activations", "disk->host", ("disk",), times, nbytes),
        _plain(phase, "activations spilled", "activations", "host->disk", ("disk",), times, nbytes),
    ]


def scored_flows(task: Task, scoring: Scoring, blocks: Blocks, phase: Phase, compute_dtype: str) -> list[PlannedFlow]:
    """Scoring: the head's first tile makes the hidden states of the scored tokens, which are stored and then loaded for
    every other tile; logits cross to the host piece by piece, 4 V bytes a token."""
    spec, tiles = task.spec, task.stage_kinds.count(StageKind.HEAD)
    ends = blocks.sizes * scoring.tokens
    pieces, nbytes = logits_pieces(task, ends), ends * spec.embed_width * DTYPE_BYTES[compute_dtype]
    out, back = blocks.groups * phase.passes * min(1, tiles - 1), blocks.groups * phase.passes * (tiles - 1)
    link = "device->host"
    times = blocks.groups * phase.passes * tiles * blocks.spread(pieces)
    logits = ends / pieces * spec.vocabulary / tiles * LOGITS_BYTES
    return [
        _plain(phase, "scored tokens in", "activations", "host->device", AWAY, back, nbytes),
        _plain(phase, "scored tokens out", "activations", link, AWAY, out, nbytes),
        _plain(phase, "scored tokens read", "activations", "disk->host", ("disk",), back, nbytes),
        _plain(phase, "scored tokens spilled", "activations", "host->disk", ("disk",), out, nbytes),
        PlannedFlow(
            phase.name, "logits", "activations", link, link, "activations", TIERS, times, logits, crossing=True
        ),
    ]


def crossing_flows(task: Task, blocks: Blocks, phase: Phase, compute_dtype: str) -> list[PlannedFlow]:
    """Attention on the host: queries, keys and values (3 E a token) cross to the host, contexts (E) come back."""
    times = numbers(phase.passes * task.spec.layers) * blocks.groups
    step, item = program_of(task.spec).attention, DTYPE_BYTES[compute_dtype]
    crossings = (("queries out", "device->host", step.inputs), ("contexts in", "host->device", step.width))
    return [
        PlannedFlow(
            phase.name,
            what,
            "activations",
            link,
            link,
            "cache",
            AWAY,
            times,
            blocks.sizes * (1 - phase.prompts) * width * item,
            crossing=True,
        )
        for what, link, width in crossings
    ]


def _plain(
    phase: Phase, what: str, kind: str, link: str, tiers: tuple[str, ...], times: Numbers, nbytes: Numbers
) -> PlannedFlow:
    return PlannedFlow(phase.name, what, kind, link, link, kind, tiers, times, nbytes)


Terms = Mapping[str, Linear]
"""Seconds by resource: the links, "compute", and `HOST` on an asynchronous port."""


@dataclass(frozen=True)
class Costs:
    """What N candidates take, as linear terms. `known_operators`: seconds of operators that were computed before, since
    they do not depend on the links."""

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
        """The same on a machine that differs only in its links; seconds of operators are kept."""
        return Costs(machine, self.task, self.blocks, self.operators)

    @cached_property
    def flows(self) -> Sequence[PlannedFlow]:
        """Every kind of copy."""
        return flows(self.task, self.blocks, self.machine.port.compute_dtype)

    @cached_property
    def held(self) -> Mapping[str, Mapping[str, Linear]]:
        """Peak bytes by tier and holder."""
        return held_bytes(self.task, self.blocks, self.machine.port.compute_dtype, self.machine.port.scratch_bytes)

    @cached_property
    def disk_write_bytes(self) -> Linear:
        """Bytes written to disk in both phases."""
        return total(flow.moved_bytes(self.blocks) for flow in self.flows if flow.link == "host->disk")

    @cached_property
    def overlapped(self) -> bool:
        """Whether copies and operators run at the same time."""
        return self.task.overlap and self.machine.port.overlaps_copies

    @cached_property
    def seconds(self) -> Mapping[str, Terms]:
        """By phase, then by resource: the seconds for which it is busy, slowed down by the others at work."""
        return {phase.name: self._slowed(self._alone(phase)) for phase in phases(self.task)}

    def rows(self, phase: str) -> list[tuple[tuple[str, ...], Linear]]:
        """(resources, seconds), each a lower bound on the phase: one per resource or, without overlap, their sum.

        FlexGen, 4.3: T = max(...) over links and compute. On an asynchronous port the host's own work overlaps with the
        device in any case, so it is a bound of its own.
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
            # Without overlap the sum already has them, as seconds of the links.
            compute = compute + total(seconds for flow, seconds in took if flow.crossing) + self._waited(took)
        if machine.port.asynchronous:
            far = attends_far(task, phase)
            calls = operator_calls(task, far).times(blocks.groups * phase.passes * host.call)
            if machine.port.recorded_bytes and phase.name == "decode" and not far:
                calls = Linear.fixed(visits * host.replay)  # a stage's operators are replayed together
            terms[HOST] = own + calls + Linear.fixed(choice)
        if machine.port.asynchronous and self.overlapped:
            own = Linear()  # it overlaps with the device; without overlap the device waits for every submission
        return {**terms, "compute": compute + own}

    def _waited(self, took: Sequence[tuple[PlannedFlow, Linear]]) -> Linear:
        """With a single group, hidden states are loaded only after the last stage has stored them: operators wait."""
        single = np.asarray(self.blocks.groups == 1, np.float64)
        return total(seconds for flow, seconds in took if flow.share == "activations").times(single)

    def _slowed(self, alone: Mapping[str, Linear]) -> Terms:
        """Each resource's own seconds, plus (slowdown - 1) times the seconds of every other one that slows it down.

        Our own formula: exact where both are busy for the same time.
        """
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
        """The value of a term for the candidate at `place`, at these shares."""
        return float(np.broadcast_to(term.at(shares), self.blocks.rows.shape)[place])
