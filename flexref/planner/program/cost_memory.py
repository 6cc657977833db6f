"""Bytes that a block holds at most on every tier, by holder, as linear terms; it knows no seconds.

FlexGen, section 4.3: peak memory of each tier, with this engine's slots, staging and workspace. Homes are counted with
the longest prompt for every row, or with the room that there is for rows that differ; slots that are taken whole are
counted whole.
"""

from collections.abc import Mapping

import numpy as np

from flexref.architecture.program import program_of
from flexref.architecture.stages import StageKind
from flexref.machine.arrays import Numbers
from flexref.planner.program.blocks import ANYWHERE, ON_HOST, Blocks
from flexref.planner.program.linear import Linear
from flexref.planner.program.task import Task
from flexref.units import DTYPE_BYTES, LOGITS_BYTES, SPILL_BOUNCE_BYTES, TIERS, slots_of

TABLE_SHARE_MOST = 0.5
"""Up to so much of the weights in tables and head, token rows are counted as falling with the share on the device."""

Holders = Mapping[str, Linear]
"""Bytes by holder."""


def held_bytes(task: Task, blocks: Blocks, compute_dtype: str, scratch_bytes: int) -> Mapping[str, Holders]:
    """Bytes by tier and holder."""
    item = DTYPE_BYTES[compute_dtype]
    held: dict[str, dict[str, Linear]] = {tier: {} for tier in TIERS}
    parts = (
        weight_bytes(task),
        cache_bytes(task, blocks),
        activation_bytes(task, blocks, item),
        token_row_bytes(task, blocks),
        own_bytes(task, blocks, item, scratch_bytes),
    )
    for part in parts:
        for (tier, holder), nbytes in part.items():
            held[tier][holder] = nbytes
    return held


def prompt_tokens(task: Task, blocks: Blocks) -> Numbers:
    """Tokens of the largest group's prefill."""
    return blocks.rows_most * row_prompt(task, blocks)


def row_prompt(task: Task, blocks: Blocks) -> Numbers | int:
    """Tokens of a prompt for which there is room in every row's place."""
    if task.rooms is None:
        return task.prompt_tokens_most
    return task.rooms.prompt_tokens(blocks.rows_most, blocks.rows)


def row_capacity(task: Task, blocks: Blocks) -> Numbers | int:
    """Records of a layer for which there is room in every row's place: its prompt's and of all new tokens but one."""
    if task.rooms is None:
        return task.prompt_tokens_most + task.new_tokens - 1
    return task.rooms.capacity_tokens(blocks.rows_most, blocks.rows)


def weight_bytes(task: Task) -> dict[tuple[str, str], Linear]:
    """Homes of all weights; on the device slots for the largest stage's streamed part, on the host what disk sends."""
    whole = sum(task.stage_bytes) + task.gathered_bytes
    slot = slots_of(task.overlap) * max(task.stage_bytes)
    return {
        **{(tier, "weights"): Linear.of(whole, "weights", tier) for tier in TIERS},
        ("device", "weight slots"): Linear.of(slot, "weights", "host", "disk"),
        ("host", "weight staging"): Linear.of(slot, "weights", "disk"),
    }


def cache_bytes(task: Task, blocks: Blocks) -> dict[tuple[str, str], Linear]:
    """Homes of all rows' records in all layers; slots and staging for one group's of a layer.

    Of a cache that attention on the host reads in place a slot holds a prompt's alone. Where tokens are scored all
    layers and groups take turns in the same place on the device.
    """
    capacity, prompt = row_capacity(task, blocks), row_prompt(task, blocks)
    if task.scoring is not None:  # nothing reads a cache but the visit that fills it
        return {("device", "KV cache"): Linear.fixed(blocks.rows_most * capacity * task.record_bytes)}
    home = task.spec.layers * blocks.rows * capacity * task.record_bytes
    one, several = blocks.rows_most * task.record_bytes, slots_of(task.overlap)
    slot = Linear.of(several * one * capacity, "cache", "host", "disk")
    if task.attention_on == "host":
        slot = slot + Linear.in_place(-several * one * (capacity - prompt))
    return {
        **{(tier, "KV cache"): Linear.of(home, "cache", tier) for tier in TIERS},
        ("device", "KV cache slots"): slot,
        ("host", "KV cache staging in"): Linear.of(several * one * capacity, "cache", "disk"),
        ("host", "KV cache staging out"): Linear.of(several * one * prompt, "cache", "disk"),
        ("host", "KV cache bounce"): Linear.of(SPILL_BOUNCE_BYTES, "cache", "disk"),
    }


def activation_bytes(task: Task, blocks: Blocks, item: int) -> dict[tuple[str, str], Linear]:
    """Hidden states of every group between stages; slots and staging for one group, whole if any group waits there."""
    row = row_prompt(task, blocks) * task.spec.width
    if task.scoring is not None:  # what the head makes of scored tokens takes their place
        row = np.maximum(row, task.scoring.tokens_most * task.spec.embed_width)
    group, home = blocks.rows_most * row * item, blocks.rows * row * item
    several = slots_of(task.overlap)
    return {
        **{(tier, "activations"): Linear.of(home, "activations", tier) for tier in TIERS},
        ("device", "activation slots"): Linear.fixed(np.where(blocks.waiting >= ON_HOST, several * group, 0.0)),
        ("host", "activation staging"): Linear.fixed(
            np.where(blocks.waiting >= ANYWHERE, 2 * several * group + SPILL_BOUNCE_BYTES, 0.0)
        ),
    }


def token_row_bytes(task: Task, blocks: Blocks) -> dict[tuple[str, str], Linear]:
    """Token rows of one group's prefill, gathered on the host unless the whole table is on the device.

    Tables and head come to the device first, so the table is there as soon as the share on the device is theirs: less
    than 1 - (share - theirs) / (1 - theirs) of the rows is never needed. Where tables are most of a model, all of them.
    """
    rows = slots_of(task.overlap) * prompt_tokens(task, blocks) * task.spec.embed_width * DTYPE_BYTES[task.dense]
    layers = sum(
        nbytes for nbytes, kind in zip(task.stage_bytes, task.stage_kinds, strict=True) if kind is StageKind.LAYER
    )
    layer_share = layers / (sum(task.stage_bytes) + task.gathered_bytes)
    if 1 - layer_share <= TABLE_SHARE_MOST:
        needed = Linear.of(rows / layer_share, "weights", "host", "disk")
    else:
        needed = Linear.fixed(rows)
    return {("device", "token row slots"): needed, ("host", "token row staging"): needed}


def logits_bytes(task: Task, blocks: Blocks, item: int) -> dict[str, Numbers]:
    """By tier: all logits of every group's last tokens, with their hidden states; where tokens are scored, pieces."""
    spec, scoring = task.spec, task.scoring
    if scoring is None:
        row = spec.vocabulary * LOGITS_BYTES + spec.embed_width * item
        return {"device": blocks.groups * blocks.rows_most * row}
    tokens = np.minimum(blocks.rows_most * scoring.tokens_most, scoring.at_once)
    pieces = scoring.slots * tokens * min(scoring.tile_rows, spec.vocabulary) * LOGITS_BYTES
    return {"device": pieces, "host": pieces}


def own_bytes(task: Task, blocks: Blocks, item: int, scratch_bytes: int) -> dict[tuple[str, str], Linear]:
    """What belongs to no store: logits and hidden states of every group's last tokens, results, expanded matrices."""
    last = logits_bytes(task, blocks, item)
    workspace = task.workspace_bytes_fixed + task.workspace_bytes_per_token * prompt_tokens(task, blocks)
    far = {}
    if task.attention_on == "host":
        step = program_of(task.spec).attention
        row = (step.inputs + step.width) * item
        far["host", "attention on host"] = Linear.in_place(blocks.rows_most * row)
    return {
        **{(tier, "logits"): Linear.fixed(nbytes) for tier, nbytes in last.items()},
        ("device", "workspace"): Linear.fixed(workspace),
        ("device", "scratch"): Linear.fixed(scratch_bytes),
        ("device", "expanded weights"): Linear.fixed(np.where(blocks.expanded, task.expanded_bytes, 0)),
        **far,
    }
