"""Recomputes rows of a run, every token after the row's own ones, and says which tokens rounding may have chosen.

All layers are walked for whole rows, in float32, one tensor at a time; beside that computation goes a copy of it in
which every rounding that a port makes is drawn at random (see `noisy`). The copy's logits differ from the others as far
as a port's may. It knows tensors by name and no engine.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from flexref.architecture.program import Residual, TensorKind, program_of
from flexref.architecture.spec import POSITION_OFFSET
from flexref.architecture.stages import head_tiles, tensor_name
from flexref.check.forced.products import Products, Read, Stored, Values, all_cores, expanded, whole
from flexref.check.forced.walk import READ_AHEAD, NoisyWalk, PortRounding, TensorsAhead
from flexref.check.greedy import table_rows
from flexref.check.probable import DEVIATIONS
from flexref.check.tolerances import FLOAT32
from flexref.errors import FlexrefError
from flexref.storage.quant import Quantized
from flexref.storage.weightfile import WeightFile

TOKENS_TOGETHER, POSITIONS_TOGETHER = 2048, 512
"""Bound the memory of states and of logits: rows are computed together up to so many tokens, and places that are
compared. More tokens would make products no faster."""


@dataclass(frozen=True, slots=True)
class ForcedRow:
    """Token ids of a row, and the `positions` (numbers of its tokens) whose logits are wanted."""

    token_ids: Sequence[int]
    positions: Sequence[int]


@dataclass(frozen=True, slots=True)
class ForcedLogits:
    """Logits (P, V) of some positions of a row, and how far a correct port's may be from each (P, V)."""

    logits: Values
    bound: Values


@dataclass(frozen=True, slots=True)
class Drawing:
    """What a port rounds, and the seed that the roundings are drawn by."""

    rounding: PortRounding
    seed: int


def together(rows: Sequence[ForcedRow]) -> list[list[ForcedRow]]:
    """The rows in runs that are computed at once: each weight is read once for all rows of a run."""
    runs: list[list[ForcedRow]] = []
    tokens = positions = 0
    for row in rows:
        tokens, positions = tokens + len(row.token_ids), positions + len(row.positions)
        if not runs or tokens > TOKENS_TOGETHER or positions > POSITIONS_TOGETHER:
            runs.append([])
            tokens, positions = len(row.token_ids), len(row.positions)
        runs[-1].append(row)
    return runs


def forced_logits(
    file: WeightFile,
    read: Read,
    rows: Sequence[ForcedRow],
    how: Drawing,
    on_layer: Callable[[], object] = lambda: None,
) -> Iterator[ForcedLogits]:
    """The logits of each row after each of its positions, every token being the row's own.

    `read` gives the tensors of `file`; `on_layer` is called after each layer of each run of rows (see `together`).
    Raises `FlexrefError` where a logit is not finite.
    """
    for run in together(rows):
        yield from _together(file, read, run, how, on_layer)


def _together(
    file: WeightFile, read: Read, rows: Sequence[ForcedRow], how: Drawing, on_layer: Callable[[], object]
) -> list[ForcedLogits]:
    spec, program, rounding = file.spec, program_of(file.spec), how.rounding
    rounds = rounding.compute_dtype if rounding.how.stored.unit > FLOAT32.unit else None
    counts = [len(row.token_ids) for row in rows]
    firsts = np.cumsum([0, *counts]).tolist()
    places = [first + place for first, row in zip(firsts, rows, strict=False) for place in row.positions]
    with ThreadPoolExecutor(READ_AHEAD, "flexref tensors") as pool, all_cores() as workers:
        ahead = TensorsAhead(file, read, pool)
        walk = NoisyWalk(rounding, ahead, Products(workers, rounds), counts, how.seed)
        x = _embedded(file, walk, read, rows)
        for layer in range(program.layers):
            for step in program.layer:
                x = _residual(walk, step, layer, x) if isinstance(step, Residual) else walk.step(step, layer, x)
            on_layer()
        x = np.ascontiguousarray(x[:, places])
        for last in (program.head.norm, program.head.project):
            x = x if last is None else walk.step(last, 0, x)
        tiles = pool.map(read, [tile.name for tile in head_tiles(spec, file.tile_rows)])
        parts = [_tile(walk, x, stored) for stored in tiles]
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
    bound = np.float32(both) * (np.float32(DEVIATIONS) * spread + own)
    ends = np.cumsum([len(row.positions) for row in rows])[:-1].tolist()
    return [ForcedLogits(*found) for found in zip(np.split(logits, ends), np.split(bound, ends), strict=True)]


def _embedded(file: WeightFile, walk: NoisyWalk, read: Read, rows: Sequence[ForcedRow]) -> Values:
    """The states (2, T, E) of all tokens before the first layer."""
    steps = program_of(file.spec).embed
    ids = np.concatenate([np.asarray(row.token_ids, np.int64) for row in rows])
    table = table_rows(file, ids, rows_of=lambda name, some: _some_rows(read(name), some)).astype(np.float32)
    places = whole(walk.tensors(tensor_name(steps.positions.role, TensorKind.TABLE)))
    x = walk.given(table)
    if steps.project is not None:
        x = walk.step(steps.project, 0, x)
    numbers = np.concatenate([np.arange(len(row.token_ids)) for row in rows])
    return walk.total(x, walk.given(places[POSITION_OFFSET + numbers]))


def _some_rows(stored: Stored, ids: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]") -> Values:
    """Some rows (n, W) of a tile, in float32."""
    if isinstance(stored, Quantized):
        codes, scale, zero = (part[ids] for part in (stored.codes, stored.scale, stored.zero))
        stored = Quantized(codes, scale, zero, stored.width, stored.group_size, stored.bits)
        return whole(stored)
    return expanded(stored[ids], slice(0, len(ids)))


def _residual(walk: NoisyWalk, step: Residual, layer: int, x: Values) -> Values:
    inner = x
    for each in step.steps:
        inner = walk.step(each, layer, inner)
    return walk.total(x, inner)


def _tile(walk: NoisyWalk, hidden: Values, stored: Stored) -> tuple[Values, Values, Values, Values]:
    """Of a tile's tokens: logits (P, N), by how much the copy's differ, the last sums' error, lengths of rows (N,)."""
    result, long, wide = walk.product(hidden, stored)
    own = np.multiply.outer(long, wide)
    return result[0], result[1] - result[0], own, np.maximum(wide, np.finfo(np.float32).tiny)
