"""Every kind of copy of a block, as terms that are linear in the shares; it knows no operator and no budget."""

from collections import Counter
from dataclasses import dataclass, replace

from flexref.architecture.program import program_of
from flexref.architecture.stages import StageKind
from flexref.machine.arrays import Numbers, numbers
from flexref.machine.durations import Durations
from flexref.machine.machine import WEIGHT_FILE, Machine
from flexref.planner.program.blocks import Blocks, Phase, phases
from flexref.planner.program.cost_compute import logits_pieces
from flexref.planner.program.linear import Linear
from flexref.planner.program.task import Scoring, Task
from flexref.units import DTYPE_BYTES, LOGITS_BYTES, TIERS

AWAY = ("host", "disk")
"""Tiers from which data must come to the device."""


@dataclass(frozen=True)
class PlannedFlow:
    """Copies of a phase that are alike: `times` copies of `nbytes` each if all of `share` is on `tiers`, else its part.

    `kind` is what the engine counts them as; `curve` names their curve among a machine's `copies`. A `crossing` is
    called in line with the operators, which wait for it; all others are submitted to a lane. `in_place`: what the part
    of the cache that attention on the host reads in place adds to that part: -1 where it does not move. `of_layers`:
    how much of these copies belongs to visits of layers; the others belong to the embedding and the head.
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
    in_place: int = 0
    of_layers: float = 1.0

    def _for_each(self, value: Numbers) -> Linear:
        """`value` for the part that moves."""
        term = Linear.of(value, self.share, *self.tiers)
        return term + Linear.in_place(self.in_place * value) if self.in_place else term

    def seconds(self, machine: Machine, blocks: Blocks) -> Linear:
        """`times` times the seconds of one copy; `nbytes` are those of every size of group (see `Blocks.sizes`)."""
        each = blocks.spread(Durations(machine).copy(self.curve, self.nbytes))
        return self._for_each(self.times * each)

    def moved_bytes(self, blocks: Blocks) -> Linear:
        """`times` times `nbytes`."""
        return self._for_each(self.times * blocks.spread(self.nbytes))

    def submissions(self) -> Linear:
        """How often the host submits to a lane."""
        return Linear() if self.crossing else self._for_each(self.times)


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
    in_layers = [kind is StageKind.LAYER for kind in task.stage_kinds]
    sizes = Counter(zip(task.stage_bytes, in_layers, strict=True))
    for (nbytes, in_layer), count in sorted(sizes.items()):
        of = numbers(phase.passes * count), numbers(nbytes)
        loaded = PlannedFlow(phase.name, "weights in", "weights", "host->device", "host->device", "weights", AWAY, *of)
        read = PlannedFlow(phase.name, "weights read", "weights", "disk->host", WEIGHT_FILE, "weights", ("disk",), *of)
        found += [replace(flow, of_layers=float(in_layer)) for flow in (loaded, read)]
    return found


def cache_flows(task: Task, blocks: Blocks, phase: Phase) -> list[PlannedFlow]:
    """A visit of a layer loads its rows' records and stores their new ones (FlexGen, 4.3: c_c and c_d).

    In the prefill there is nothing to load. Of a cache that attention on the host reads in place only a prompt's
    records cross the link, from the device; what is on disk is read to the host and written back in any case.
    """
    times = numbers(phase.passes * task.spec.layers) * blocks.groups
    records = blocks.sizes * task.record_bytes
    past, new = (times, records * phase.past_tokens), (times, records * phase.new_tokens)
    crossing = [_plain(phase, "cache out", "cache", "device->host", AWAY, *new)]
    if phase.past_tokens:
        crossing.append(_plain(phase, "cache in", "cache", "host->device", AWAY, *past))
    found = crossing
    if attends_far(task, phase):
        found = [replace(flow, in_place=-1) for flow in crossing]
        if phase.prompts:
            prompts = records * phase.prompts * phase.prompt_tokens
            out = _plain(phase, "prompts out", "cache", "device->host", (), times, prompts)
            found.append(replace(out, in_place=1))
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
    moved = [
        _plain(phase, "activations in", "activations", "host->device", AWAY, times, nbytes),
        _plain(phase, "activations out", "activations", "device->host", AWAY, times, nbytes),
        _plain(phase, "activations read", "activations", "disk->host", ("disk",), times, nbytes),
        _plain(phase, "activations spilled", "activations", "host->disk", ("disk",), times, nbytes),
    ]
    layers = task.spec.layers / (task.spec.layers + 1)  # the embedding stores and does not load, the head loads
    return [replace(flow, of_layers=layers) for flow in moved]


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
    moved = [
        _plain(phase, "scored tokens in", "activations", "host->device", AWAY, back, nbytes),
        _plain(phase, "scored tokens out", "activations", link, AWAY, out, nbytes),
        _plain(phase, "scored tokens read", "activations", "disk->host", ("disk",), back, nbytes),
        _plain(phase, "scored tokens spilled", "activations", "host->disk", ("disk",), out, nbytes),
        PlannedFlow(
            phase.name, "logits", "activations", link, link, "activations", TIERS, times, logits, crossing=True
        ),
    ]
    return [replace(flow, of_layers=0.0) for flow in moved]


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
            (),
            times,
            blocks.sizes * (1 - phase.prompts) * width * item,
            crossing=True,
            in_place=1,
        )
        for what, link, width in crossings
    ]


def _plain(
    phase: Phase, what: str, kind: str, link: str, tiers: tuple[str, ...], times: Numbers, nbytes: Numbers
) -> PlannedFlow:
    return PlannedFlow(phase.name, what, kind, link, link, kind, tiers, times, nbytes)
