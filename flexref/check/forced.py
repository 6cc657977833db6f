"""Recomputes a row of a run, every token after the row's own ones, and says which tokens rounding may have chosen.

All layers are walked for whole rows, in float32, one tensor at a time; beside that computation goes a copy of it in
which every rounding that a port makes is drawn at random (see `noisy`). The copy's logits differ from the others as far
as a port's may. It knows tensors by name and no engine.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from flexref.architecture.program import Residual, TensorKind, program_of
from flexref.architecture.spec import POSITION_OFFSET
from flexref.architecture.stages import head_tiles, tensor_name
from flexref.check.forced_walk import (
    READ_AHEAD,
    WORKERS,
    Both,
    NoisyWalk,
    PortRounding,
    Read,
    TensorsAhead,
    Values,
    lengths,
)
from flexref.check.greedy import table_rows
from flexref.check.probable import DEVIATIONS
from flexref.check.tolerances import FLOAT32
from flexref.errors import FlexrefError
from flexref.storage.weightfile import WeightFile


@dataclass(frozen=True, slots=True)
class ForcedLogits:
    """Logits (P, V) of some positions of a row, and how far a correct port's may be from each (P, V)."""

    logits: Values
    bound: Values


def forced_logits(
    file: WeightFile, read: Read, token_ids: Sequence[int], positions: Sequence[int], rounding: PortRounding, seed: int
) -> ForcedLogits:
    """The logits after each of the `positions` (numbers of tokens of the row), every token being the row's own.

    `read` gives the tensors of `file`. Raises `FlexrefError` where a logit is not finite.
    """
    spec, program = file.spec, program_of(file.spec)
    heads = head_tiles(spec, file.tile_rows)
    rounds = rounding.compute_dtype if rounding.how.stored.unit > FLOAT32.unit else None
    with ThreadPoolExecutor(READ_AHEAD, "flexref tensors") as pool, ThreadPoolExecutor(WORKERS) as workers:
        ahead = TensorsAhead(file, read, pool, rounds)
        walk = NoisyWalk(rounding, ahead, workers, seed)
        x = _embedded(file, walk, read, token_ids)
        for layer in range(program.layers):
            for step in program.layer:
                x = _residual(walk, step, layer, x) if isinstance(step, Residual) else walk.step(step, layer, x)
        x = np.ascontiguousarray(x[:, list(positions)])
        for last in (program.head.norm, program.head.project):
            x = x if last is None else walk.step(last, 0, x)
        parts = [_tile(walk, x, both) for both in pool.map(ahead.both, [tile.name for tile in heads])]
    logits, moved, own, row_lengths = (np.concatenate(part, -1) for part in zip(*parts, strict=True))
    if not np.isfinite(logits).all():
        raise FlexrefError(
            f"{file.path}: gives logits that are not finite in float32; nothing can be compared with them"
        )
    # How far one logit of one copy moved says little of it; how far all of a position did says how far each may.
    common = np.sqrt(np.square(moved / row_lengths).mean(-1, keepdims=True))
    spread = np.maximum(np.abs(moved), common * row_lengths)
    # This computation rounds to float32 itself.
    both = 1 + FLOAT32.unit / rounding.how.stored.unit
    return ForcedLogits(logits, np.float32(both) * (np.float32(DEVIATIONS) * spread + own))


def _embedded(file: WeightFile, walk: NoisyWalk, read: Read, token_ids: Sequence[int]) -> Values:
    """The states (2, T, E) before the first layer."""
    steps, ids = program_of(file.spec).embed, np.asarray(token_ids, np.int64)
    rows = table_rows(file, ids, read=read).astype(np.float32)
    places, _ = walk.tensors(tensor_name(steps.positions.role, TensorKind.TABLE))
    x = walk.given(rows)
    if steps.project is not None:
        x = walk.step(steps.project, 0, x)
    return walk.total(x, walk.given(places[POSITION_OFFSET : POSITION_OFFSET + len(ids)]))


def _residual(walk: NoisyWalk, step: Residual, layer: int, x: Values) -> Values:
    inner = x
    for each in step.steps:
        inner = walk.step(each, layer, inner)
    return walk.total(x, inner)


def _tile(walk: NoisyWalk, hidden: Values, both: Both) -> tuple[Values, Values, Values, Values]:
    """Of a tile's tokens: logits (P, N), by how much the copy's differ, the last sums' error, lengths of rows (N,)."""
    result, sums = walk.product(hidden, both, None)
    own = sums(slice(0, hidden.shape[1]))
    return result[0], result[1] - result[0], own, np.maximum(lengths(both[0]), np.finfo(np.float32).tiny)
