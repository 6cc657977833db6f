"""What a block takes, as linear terms over the shares: seconds of each link and of the operators, bytes on each tier.

The shares say how much of weights, cache and activations is on device, host and disk, and how much of the cache off the
device attention on the host reads in place. The terms are those of
FlexGen, section 4.3 and appendix A.3, except that a copy's rate depends on its size, the cache is stored by row, only
new records are written back, and the host's own work counts. Three things are left out, which the simulator has: the
rows of the token table that a pass gathers (at most the hidden states of one layer), the first load of a block, which
overlaps with nothing, and that tensors cannot be cut.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flexref.machine.machine import HOST_ATTENTION as SLOWED_AS
from flexref.machine.machine import Machine
from flexref.planner.program.blocks import Blocks, Phase, phases
from flexref.planner.program.cost_compute import (
    device_seconds,
    far_attention,
    near_attention,
    operator_calls,
    prompt_attention,
)
from flexref.planner.program.cost_flows import PlannedFlow, attends_far, flows
from flexref.planner.program.cost_memory import held_bytes
from flexref.planner.program.linear import Linear, Share, total
from flexref.planner.program.task import Task
from flexref.units import LINKS

LOADS = "host->device"
"""The link over which weights come to the device."""

HOST = "host"
"""The host's own work as a resource: on an asynchronous port operators run later than they are called."""

HOST_ATTENTION = "host_attention"
"""Attention on the host as a resource."""

Terms = Mapping[str, Linear]
"""Seconds by resource: the links, "compute", `HOST` on an asynchronous port, `HOST_ATTENTION` where it may be."""


@dataclass(frozen=True)
class Costs:
    """What N candidates take, as linear terms. `known_operators`: seconds of operators that were computed before, since
    they do not depend on the links."""

    machine: Machine
    task: Task
    blocks: Blocks
    known_operators: Mapping[str, tuple[Linear, Linear]] | None = None

    @cached_property
    def operators(self) -> Mapping[str, tuple[Linear, Linear]]:
        """Seconds of (the layers', all) operators by phase."""
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
        device in any case, so it is a bound of its own. Where layers take longer than loading them, and the head does
        not, both count: see `_with_other_loads`. Attention on the host is part of a visit, which waits for it: see
        `_visits_rows`.
        """
        terms = self.seconds[phase]
        if self.overlapped:
            rows: list[tuple[tuple[str, ...], Linear]] = [
                *(((resource,), term) for resource, term in terms.items() if resource != HOST_ATTENTION),
                (("compute", LOADS), self._with_other_loads(phase, self._layers(phase))),
            ]
            return rows + (self._visits_rows(phase) if HOST_ATTENTION in terms else [])
        units = [("compute", *({HOST_ATTENTION} & terms.keys())), *([(HOST,)] if HOST in terms else [])]
        return [((*LINKS, *unit), total(terms[resource] for resource in (*LINKS, *unit))) for unit in units]

    def _visits_rows(self, phase: str) -> list[tuple[tuple[str, ...], Linear]]:
        """Bounds on a phase whose visits wait for attention on the host: they follow each other.

        A visit takes its attention on the host, H seconds of all visits alone, and those of its operators and crossings
        that cannot run meanwhile, S seconds: all but the attention of its other rows. So the phase takes T >= S + H. A
        link is at work for L seconds, of which the host does not attend in S at most. In the others the link slows it
        down f times: of each of them 1 - 1/f is lost. So T >= S + H + (1 - 1/f) (L - S), which is exact where the link
        never rests.
        """
        alone, beside = self._alone(self._phase(phase)), self._beside(phase)
        serial = self._slowed_by("compute", alone, LINKS) + beside.times(-1)
        layers = self._layers(phase) + beside.times(-1) + alone[HOST_ATTENTION]
        rows: list[tuple[tuple[str, ...], Linear]] = [
            (("compute", HOST_ATTENTION), serial + alone[HOST_ATTENTION]),
            (("compute", HOST_ATTENTION, LOADS), self._with_other_loads(phase, layers)),
        ]
        for link in LINKS:
            lost = 1 - 1 / self._slowdown(HOST_ATTENTION, link)
            if lost:
                later = alone[HOST_ATTENTION] + alone[link].times(lost) + serial.times(1 - lost)
                rows.append((("compute", HOST_ATTENTION, link), later))
        return rows

    def _with_other_loads(self, phase: str, layers: Linear) -> Linear:
        """A bound on a phase whose layers follow each other for so long, and load their weights one stage ahead.

        A stage's weights have two places in turn: they are loaded once the stage before the last has ended. So what
        layers leave of a link's time is lost to the embedding and the head, whose weights are loaded after them, and
        the first layer's after those: of N layers N - 1 are computed before.
        """
        count = self.task.spec.layers
        loads = [flow for flow in self.flows if (flow.phase, flow.share, flow.link) == (phase, "weights", LOADS)]
        took = [(flow.of_layers, flow.seconds(self.machine, self.blocks)) for flow in loads]
        first = total(seconds.times(of_layers / count) for of_layers, seconds in took)
        return layers.times(1 - 1 / count) + first + total(seconds.times(1 - of_layers) for of_layers, seconds in took)

    def _layers(self, phase: str) -> Linear:
        """Seconds of a phase's layers alone, one visit after the other; attention on the host is left out."""
        host, which, spec = self.machine.host_s, self._phase(phase), self.task.spec
        mine = [flow for flow in self.flows if flow.phase == phase and flow.of_layers]
        crossings = total(flow.seconds(self.machine, self.blocks) for flow in mine if flow.crossing)
        operators = self.operators[phase][0] + crossings
        if self.machine.port.asynchronous:
            return operators
        visits = which.passes * spec.layers * self.blocks.groups
        handed = Linear.in_place(visits * host.submission) if attends_far(self.task, which) else Linear()
        submissions = total(flow.submissions().times(flow.of_layers) for flow in mine).times(host.submission)
        return operators + submissions + Linear.fixed(visits * host.visit) + handed

    def _beside(self, phase: str) -> Linear:
        """Of a phase's operators, those that run while the host attends: attention on the device."""
        every = (self.machine, self.task, self.blocks, self._phase(phase))
        near = near_attention(*every)
        beside = Linear.fixed(near) + Linear.in_place(-near)
        return beside + Linear.fixed(prompt_attention(*every)) if every[3].prompts else beside

    def _phase(self, name: str) -> Phase:
        (found,) = (phase for phase in phases(self.task) if phase.name == name)
        return found

    def _alone(self, phase: Phase) -> dict[str, Linear]:
        machine, task, blocks, host = self.machine, self.task, self.blocks, self.machine.host_s
        far = attends_far(task, phase)
        mine = [flow for flow in self.flows if flow.phase == phase.name]
        took = [(flow, flow.seconds(machine, blocks)) for flow in mine]
        terms = {link: total(seconds for flow, seconds in took if flow.link == link) for link in LINKS}
        visits = phase.passes * len(task.stage_bytes) * blocks.groups
        choices = phase.passes * (task.scoring is None)
        choice = blocks.groups * choices * (host.choice + host.choice_row * blocks.rows / blocks.groups)
        own = total(flow.submissions() for flow in mine).times(host.submission) + Linear.fixed(visits * host.visit)
        handed = Linear.in_place(phase.passes * task.spec.layers * blocks.groups * host.submission) if far else Linear()
        compute = self.operators[phase.name][1] + Linear.fixed(choice)
        if self.overlapped:
            # Without overlap the sum already has them, as seconds of the links.
            compute = compute + total(seconds for flow, seconds in took if flow.crossing) + self._waited(took)
        if machine.port.asynchronous:
            calls = operator_calls(task, far).times(blocks.groups * phase.passes * host.call)
            if machine.port.recorded_bytes and phase.name == "decode" and not far:
                calls = Linear.fixed(visits * host.replay)  # a stage's operators are replayed together
            terms[HOST] = own + handed + calls + Linear.fixed(choice)
        else:
            own = own + handed
        if machine.port.asynchronous and self.overlapped:
            own = Linear()  # it overlaps with the device; without overlap the device waits for every movement's
        terms["compute"] = compute + own
        if far:
            terms[HOST_ATTENTION] = far_attention(machine, task, blocks, phase)
        return terms

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
        return {resource: self._slowed_by(resource, alone, tuple(alone)) for resource in alone}

    def _slowed_by(self, resource: str, alone: Mapping[str, Linear], others: Sequence[str]) -> Linear:
        slowed = alone[resource]
        for other in others:
            more = self._slowdown(resource, other) - 1
            if other != resource and more > 0:
                slowed = slowed + alone[other].times(more)
        return slowed

    def _slowdown(self, resource: str, other: str) -> float:
        """See `Machine.slowdown`, which knows attention on the host by the scheme of the cache."""
        both = (SLOWED_AS[self.task.cache_scheme] if name == HOST_ATTENTION else name for name in (resource, other))
        return self.machine.slowdown(*both)

    def value(self, term: Linear, shares: Mapping[Share, float], place: int) -> float:
        """The value of a term for the candidate at `place`, at these shares."""
        return float(np.broadcast_to(term.at(shares), self.blocks.rows.shape)[place])
