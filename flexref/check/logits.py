"""The logits of rows of tokens in float64, and how far an engine of a stated type may be from each; it knows no engine.

One tensor is held at a time, and a block of rows; a long row is a block of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from flexref.architecture.program import Role, TensorKind
from flexref.architecture.stages import Stage, StageKind, stages, tensor_name
from flexref.check import laws
from flexref.check.forward import NOTHING, Model
from flexref.check.greedy import table_rows
from flexref.check.noisy import COPIES, NoisyTape, unmoved
from flexref.check.probable import DEVIATIONS
from flexref.check.tolerances import Arithmetic, Numbers, Operand, Values, exact, linear_bound
from flexref.errors import FlexrefError
from flexref.storage.quant import Quantized
from flexref.storage.weightfile import WeightFile, read_tensor

COMPUTE_DTYPES = ("float32", "float16", "bfloat16")
"""Types as which an engine may store what its operators give."""

BLOCK_BYTES = 1 << 28
"""Bounds what a block of rows keeps of one layer, and what the logits of some positions take."""

SITES_KEPT = 3
"""So many times the widest result is about what a layer keeps."""

Compute = Callable[[WeightFile, Sequence[Numbers]], Sequence[Numbers]]
"""From the states of some rows' positions to their logits, or bounds of these: see `exact_parts`."""


class StageTensors(Mapping[str, "Numbers | Operand"]):
    """A stage's tensors as they are asked for: matrices with what an engine's own copy may be off by.

    Tiles of tables are left out, but for what is `given`.
    """

    def __init__(
        self, file: WeightFile, stage: Stage, how: Arithmetic, given: Mapping[str, Numbers] = MappingProxyType({})
    ) -> None:
        self._file, self._how, self._given = file, how, given
        self._specs = {tensor.name: tensor for tensor in stage.tensors if not tensor.is_tile}

    def __getitem__(self, name: str) -> Numbers | Operand:
        if name in self._given:
            return self._given[name]
        tensor = self._specs[name]
        values = read_tensor(self._file.tensors[name])
        return laws.matrix(values, self._how) if tensor.kind is TensorKind.MATRIX else laws.dense(values)

    def __iter__(self) -> Iterator[str]:
        return iter({**self._given, **self._specs})

    def __len__(self) -> int:
        return len({**self._given, **self._specs})


@dataclass(frozen=True, slots=True)
class Job:
    """Rows of token ids to compute, each from position `firsts[row]` on."""

    file: WeightFile
    rows: Sequence[Sequence[int]]
    firsts: Sequence[int]

    def blocks(self) -> Iterator[range]:
        """The numbers of the rows that are computed together."""
        spec = self.file.spec
        most = BLOCK_BYTES // (8 * (1 + COPIES) * SITES_KEPT * max(3 * spec.width, spec.ffn_width))
        first, tokens = 0, 0
        for row, ids in enumerate(self.rows):
            if row > first and tokens + len(ids) > most:
                yield range(first, row)
                first, tokens = row, 0
            tokens += len(ids)
        yield range(first, len(self.rows))


@np.errstate(all="ignore")  # what overflows is refused by name
def hidden_states(job: Job, block: Sequence[int], how: Arithmetic, on_stage: Callable[[int], None]) -> list[Numbers]:
    """Of each row of a block what the head's table is multiplied with (1 + COPIES, P, W); the first copy is exact.

    `on_stage` is told 1 for every stage that is done. Raises `FlexrefError` where a weight is not finite.
    """
    file, rows = job.file, [job.rows[row] for row in block]
    walk = stages(file.spec, file.tile_rows)
    draw = np.random.default_rng(0)

    def tape() -> NoisyTape:
        return NoisyTape(how, tokens=[len(row) for row in rows], draw=draw)

    x = _embedded(file, walk[0], rows, tape)
    _check_finite(file, walk[0].name, x)
    on_stage(1)
    for stage in walk:
        if stage.kind is StageKind.LAYER:
            this = tape()
            model = Model(file.spec, StageTensors(file, stage, how))
            x = this.sites[model.layer(this, stage.index, this.add(x, NOTHING))].value
            _check_finite(file, stage.name, x)
            on_stage(1)
    ends = np.cumsum([len(row) for row in rows])
    parts = [
        x[:, end - len(row) + job.firsts[number] : end] for number, row, end in zip(block, rows, ends, strict=True)
    ]
    head = next(stage for stage in walk if stage.kind is StageKind.HEAD)
    model = Model(file.spec, StageTensors(file, head, how))
    this = tape()
    states = this.sites[model.final(this, this.add(np.concatenate(parts, 1), NOTHING))].value
    _check_finite(file, head.name, states)
    on_stage(1)
    return np.split(states, np.cumsum([part.shape[1] for part in parts])[:-1], axis=1)


def stage_count(job: Job, dtypes: Sequence[str]) -> int:
    """How often `on_stage` is told in all: of a stage of a block, and of the logits or bounds of some positions."""
    step, counts = (
        positions_at_once(job.file),
        (len(row) - first for row, first in zip(job.rows, job.firsts, strict=True)),
    )
    parts = sum(-(-count // step) for count in counts)
    return sum(1 for _ in job.blocks()) * len(dtypes) * (job.file.spec.layers + 2) + parts * (1 + len(dtypes))


def _check_finite(file: WeightFile, what: str, states: Numbers) -> None:
    if not np.isfinite(states).all():
        raise FlexrefError(
            f"{file.path}: {what} gives numbers that are not finite, although it is computed in float64; "
            "a weight is not finite or far too large"
        )


def _embedded(file: WeightFile, stage: Stage, rows: Sequence[Sequence[int]], tape: Callable[[], NoisyTape]) -> Numbers:
    """The hidden states before the first layer (1 + COPIES, T, E)."""
    ids = np.unique(np.concatenate([np.asarray(row, np.int64) for row in rows]))
    states, table = [], table_rows(file, ids)
    for row in rows:
        this = tape()
        tensors = StageTensors(file, stage, this.how, {tensor_name(Role.TOKENS, TensorKind.TABLE): table})
        model = Model(file.spec, tensors)
        states.append(this.sites[model.embed(this, np.searchsorted(ids, row).tolist())].value)
    return np.concatenate(states, 1)


def _tiles(file: WeightFile) -> Iterator[tuple[slice, Values | Quantized]]:
    """(which logits, their rows of the head's table as they are stored), tile by tile."""
    first = 0
    for stage in stages(file.spec, file.tile_rows):
        if stage.kind is StageKind.HEAD:
            tile = stage.tensors[-1]
            yield slice(first, first + tile.shape[0]), read_tensor(file.tensors[tile.name])
            first += tile.shape[0]


def positions_at_once(file: WeightFile) -> int:
    """Positions whose logits, exact ones and those of the copies of a tile, stay within `BLOCK_BYTES`."""
    return max(1, BLOCK_BYTES // (8 * (3 * file.spec.vocabulary + (2 + COPIES) * file.tile_rows)))


def parts(file: WeightFile, states: Sequence[Numbers], compute: Compute) -> Iterator[tuple[int, Numbers]]:
    """(number of a row, its next logits or bounds (P, V)), row by row, from the rows' states (1 + COPIES, P, W).

    A walk over the head's table serves as many rows as `positions_at_once` allows; a long row takes several.
    """
    most, rows, pieces, taken = positions_at_once(file), list[int](), list[Numbers](), 0
    for row, held in enumerate(states):
        for first in range(0, held.shape[1], most):
            piece = held[:, first : first + most]
            if taken + piece.shape[1] > most:
                yield from zip(rows, compute(file, pieces), strict=True)
                rows, pieces, taken = [], [], 0
            rows.append(row)
            pieces.append(piece)
            taken += piece.shape[1]
    yield from zip(rows, compute(file, pieces), strict=True)


@np.errstate(all="ignore")
def exact_parts(file: WeightFile, states: Sequence[Numbers]) -> list[Numbers]:
    """The logits (P, V) of some positions of each row in float64, from their hidden states (1 + COPIES, P, W)."""
    logits = [np.empty((held.shape[1], file.spec.vocabulary)) for held in states]
    for where, stored in _tiles(file):
        tile = laws.dense(stored)
        for part, held in zip(logits, states, strict=True):
            part[:, where] = held[0] @ tile.T
    for part in logits:
        _check_finite(file, "the head", part)
    return logits


def bound_parts(file: WeightFile, states: Sequence[Numbers], how: Arithmetic) -> list[Numbers]:
    """How far such an engine's logits (P, V) of each row may be from the exact ones, and probably are not.

    The spread of the copies at one logit is known from `COPIES` values alone; so it is taken to be no less, for the
    length of its row of the head's table, than that of all logits of the position. Rows that are lost when they are
    stored as the type have no share in that: the row of the token that pads is zero in many a checkpoint.
    """
    spread, own = ([np.empty((held.shape[1], file.spec.vocabulary)) for held in states] for _ in range(2))
    lengths, lost = np.empty(file.spec.vocabulary), np.empty(file.spec.vocabulary, bool)
    tape = NoisyTape(how)
    for where, stored in _tiles(file):
        tile = laws.matrix(stored, how)
        exactly, read = [held[0] @ tile.values.T for held in states], tape.copies_of(tile)
        squares = [np.zeros_like(part) for part in exactly]
        for copy in range(1, 1 + COPIES):
            weights = read(copy)
            for row, held in enumerate(states):
                squares[row] += np.square(held[copy] @ weights.T - exactly[row])
        addends, still = np.zeros(len(tile.values)), unmoved(tile)
        for row, held in enumerate(states):
            spread[row][:, where] = np.sqrt(squares[row] / COPIES)
            own[row][:, where] = linear_bound(exact(held[0]), still, addends, 0, how)
        lengths[where] = np.linalg.norm(tile.values, axis=-1)
        lost[where] = lengths[where] <= np.linalg.norm(tile.error, axis=-1)
    return [_total(*pair, lengths, ~lost) for pair in zip(spread, own, strict=True)]


def _total(spread: Numbers, own: Numbers, lengths: Numbers, counted: npt.NDArray[np.bool_]) -> Numbers:
    """The bound (P, V) from the spread of copies and the rounding of the last product; lengths and counted are (V,)."""
    shares = np.square(spread[:, counted] / lengths[counted])
    common = np.sqrt(shares.sum(-1, keepdims=True) / max(1, shares.shape[-1]))
    total: Numbers = DEVIATIONS * np.maximum(spread, common * lengths) + own
    return total
