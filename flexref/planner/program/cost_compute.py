"""Seconds of a phase's operators, in the order in which a visit calls them; it knows no copy between tiers.

FlexGen, appendix A.3, divides FLOPs by one rate; here every operator has a measured curve of its own.
"""

import numpy as np

from flexref.architecture.program import Activate, Attend, program_of
from flexref.architecture.stages import StageKind
from flexref.machine.arrays import Numbers, numbers
from flexref.machine.durations import Durations
from flexref.machine.machine import Machine
from flexref.planner.program.blocks import Blocks, Phase
from flexref.planner.program.linear import Linear
from flexref.planner.program.task import Task
from flexref.units import DTYPE_BYTES, LOGITS_BYTES

ATTEND_CALLS = 2
"""Operators of attention: append, attend. Every other step is one."""


FAR_CALLS = 2
"""Operators that attention on the host adds to them: two crossings."""


def device_seconds(machine: Machine, task: Task, blocks: Blocks, phase: Phase, far: bool) -> tuple[Linear, Linear]:
    """(the layers', all) operators of a phase: every stage once per group and pass, expansions once per stage and pass.

    With `far` those rows' attention is left out whose cache is read in place on the host.
    """
    attention = near_attention(machine, task, blocks, phase)
    term = Linear.fixed(attention) + (Linear.in_place(-attention) if far else Linear())
    layers, every = _beside_attention(machine, task, blocks, phase)
    return layers + term, every + term


def _beside_attention(machine: Machine, task: Task, blocks: Blocks, phase: Phase) -> tuple[Linear, Linear]:
    """(the layers', all), less the attention of rows that decode, or of prompts where the phase reads nothing else."""
    durations, rows, port = Durations(machine), blocks.sizes, machine.port
    visits = {expanded: _visits(durations, task, phase, rows, expanded) for expanded in (False, True)}
    once = _expansions(durations, task, phase, rows, port.fused_rows)
    prompts = prompt_attention(machine, task, blocks, phase) if phase.prompts else numbers(0.0)

    def taken(which: int) -> Linear:
        each = np.where(blocks.expanded, blocks.spread(visits[True][which]), blocks.spread(visits[False][which]))
        all_at_once = blocks.spread(phase.passes * once[which])
        seconds = phase.passes * blocks.groups * each + np.where(blocks.expanded, all_at_once, 0.0)
        return Linear.fixed(seconds + prompts)

    return taken(0), taken(1)


def prompt_attention(machine: Machine, task: Task, blocks: Blocks, phase: Phase) -> Numbers:
    """Append and attend in all layers and passes for the prompts that are read while other rows decode."""
    each = blocks.spread(_prompt_attention(Durations(machine), task, phase, blocks.sizes))
    return task.spec.layers * (phase.passes * blocks.groups) * each


def near_attention(machine: Machine, task: Task, blocks: Blocks, phase: Phase) -> Numbers:
    """Append and attend on the device of all rows in all layers and passes."""
    each = blocks.spread(_attention(Durations(machine), task, phase, blocks.sizes, "device"))
    return task.spec.layers * phase.passes * blocks.groups * each


def far_attention(machine: Machine, task: Task, blocks: Blocks, phase: Phase) -> Linear:
    """Append and attend on the host, for as much of the cache as is read in place."""
    each = blocks.spread(_attention(Durations(machine), task, phase, blocks.sizes, "host"))
    return Linear.in_place(task.spec.layers * phase.passes * blocks.groups * each)


def operator_calls(task: Task, far: bool) -> Linear:
    """Operators that a group's pass calls; what attention on the host calls itself, it calls on its lane."""
    program, tiles = program_of(task.spec), task.stage_kinds.count(StageKind.HEAD)
    layer = sum(ATTEND_CALLS if isinstance(step, Attend) else 1 for step in program.layer_steps())
    embed = tiles + 2 + (program.embed.project is not None)
    head = 2 + (program.head.norm is not None) + tiles + 1
    calls = Linear.fixed(layer * program.layers + embed + head)
    return calls + Linear.in_place(FAR_CALLS * program.layers) if far else calls


def _visits(durations: Durations, task: Task, phase: Phase, rows: Numbers, expanded: bool) -> tuple[Numbers, Numbers]:
    """A group's visits of (the layers, all stages), attention left out."""
    port, spec = durations.machine.port, task.spec
    tokens, ends = rows * phase.new_tokens, _ends(task, rows)
    layer, head = (_layer(durations, task, tokens, task.stored), _tiles(durations, task, ends, task.dense))
    if expanded:
        # A stage with few tokens has its matrices read as they are stored.
        layer = np.where(tokens > port.fused_rows, _layer(durations, task, tokens, port.compute_dtype), layer)
        head = np.where(ends > port.fused_rows, _tiles(durations, task, ends, port.compute_dtype), head)
    layers = spec.layers * layer
    return layers, layers + _embed(durations, task, tokens) + _hidden(durations, task, ends) + head


def _ends(task: Task, rows: Numbers) -> Numbers:
    """Tokens of a group that have logits: the last one of every row, or those that are scored."""
    return rows if task.scoring is None else rows * task.scoring.tokens


def _layer(durations: Durations, task: Task, tokens: Numbers, stored: str) -> Numbers:
    """A decoder layer without append and attend."""
    item, program = DTYPE_BYTES[durations.machine.port.compute_dtype], program_of(task.spec)
    activations = (step for step in program.layer_steps() if isinstance(step, Activate))
    return numbers(
        sum(durations.operator("layer_norm", tokens * step.width * item) for step in program.norms)
        + sum(durations.linear(tokens, step.outputs, step.inputs, stored) for step in program.projections)
        + sum(durations.operator("activate", tokens * step.width * item) for step in activations)
    )


def _attention(durations: Durations, task: Task, phase: Phase, rows: Numbers, place: str) -> Numbers:
    """Append and attend of a layer: in decode by the records that are read, in a prefill 4 E FLOPs a visible pair.

    Of a pass in which some prompts are read while other rows decode, what those do.
    """
    step = program_of(task.spec).attention
    where = (place, task.cache_scheme, step.head_width)
    if phase.prompts:
        new = rows * (1 - phase.prompts)
        append = durations.append(place, task.cache_scheme, new * task.record_bytes)
        return append + durations.attend_records(where, (rows * phase.past_tokens + new) * task.record_bytes)
    append = durations.append(place, task.cache_scheme, rows * phase.new_tokens * task.record_bytes)
    if phase.decoding:
        return append + durations.attend_records(where, rows * (phase.past_tokens + 1) * task.record_bytes)
    pairs = phase.new_tokens * (phase.new_tokens + 1) / 2
    return append + durations.attend_pairs(where, rows * 4 * step.width * pairs)


def _prompt_attention(durations: Durations, task: Task, phase: Phase, rows: Numbers) -> Numbers:
    """Append and attend of a layer for the prompts of a pass in which other rows decode: always on the device."""
    step = program_of(task.spec).attention
    where, read = ("device", task.cache_scheme, step.head_width), rows * phase.prompts
    append = durations.append("device", task.cache_scheme, read * phase.prompt_tokens * task.record_bytes)
    pairs = phase.prompt_tokens * (phase.prompt_tokens + 1) / 2
    return append + durations.attend_pairs(where, read * 4 * step.width * pairs)


def _embed(durations: Durations, task: Task, tokens: Numbers) -> Numbers:
    """Token rows gathered from every tile of the table, made the compute type, and positions added."""
    steps, dtype = program_of(task.spec).embed, durations.machine.port.compute_dtype
    tiles = task.stage_kinds.count(StageKind.HEAD)
    gathered = tiles * durations.operator("gather", tokens * steps.tokens.width * DTYPE_BYTES[task.dense])
    seconds = gathered + durations.expand(tokens * steps.tokens.width, task.dense)
    if steps.project is not None:
        seconds = seconds + durations.linear(tokens, steps.project.outputs, steps.project.inputs, task.dense)
    return seconds + durations.operator("add_rows", tokens * steps.positions.width * DTYPE_BYTES[dtype])


def _hidden(durations: Durations, task: Task, ends: Numbers) -> Numbers:
    """Hidden states that get logits gathered, normed and projected; and the choice from logits, if there is one."""
    spec, dtype, steps = task.spec, durations.machine.port.compute_dtype, program_of(task.spec).head
    nbytes = ends * spec.width * DTYPE_BYTES[dtype]
    seconds = durations.operator("gather", nbytes)
    if steps.norm is not None:
        seconds = seconds + durations.operator("layer_norm", nbytes)
    if steps.project is not None:
        seconds = seconds + durations.linear(ends, steps.project.outputs, steps.project.inputs, task.dense)
    else:
        seconds = seconds + durations.expand(ends * spec.width, dtype)
    if task.scoring is not None:
        return seconds
    return seconds + durations.operator("sample", ends * spec.vocabulary * LOGITS_BYTES)


def _tile_rows(task: Task) -> list[float]:
    """Vocabulary rows of every tile of the head, as its stages' bytes divide them."""
    sizes = [nbytes for nbytes, kind in zip(task.stage_bytes, task.stage_kinds, strict=True) if kind is StageKind.HEAD]
    return [task.spec.vocabulary * nbytes / sum(sizes) for nbytes in sizes]


def _tiles(durations: Durations, task: Task, ends: Numbers, stored: str) -> Numbers:
    """The products with all tiles of the head; scored tokens come some at once."""
    width, pieces = task.spec.embed_width, logits_pieces(task, ends)
    return pieces * numbers(
        sum(durations.linear(ends / pieces, outputs, width, stored) for outputs in _tile_rows(task))
    )


def logits_pieces(task: Task, ends: Numbers) -> Numbers:
    """In how many pieces a group's tokens that get logits are multiplied with a tile of the head."""
    return np.ones_like(ends) if task.scoring is None else np.maximum(1.0, np.ceil(ends / task.scoring.at_once))


def _expansions(
    durations: Durations, task: Task, phase: Phase, rows: Numbers, fused_rows: int
) -> tuple[Numbers, Numbers]:
    """Matrices of (the layers, all stages) expanded once, where they are stored otherwise than products compute."""
    dtype, spec = durations.machine.port.compute_dtype, task.spec
    layer = head = numbers(0.0)
    if task.stored != dtype:
        layer = numbers(
            sum(
                durations.expand(numbers([step.outputs * step.inputs]), task.stored)
                for step in program_of(spec).projections
            )
        )
    if task.dense != dtype:
        tiles = sum(durations.expand(numbers([outputs * spec.embed_width]), task.dense) for outputs in _tile_rows(task))
        head = numbers(tiles)
    layers = np.where(rows * phase.new_tokens > fused_rows, spec.layers * layer, 0.0)
    return layers, layers + np.where(_ends(task, rows) > fused_rows, head, 0.0)
