"""Logits in float64 of a model of any size, and when rounding may choose another token; it knows no port."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.architecture.program import Role, TensorKind, program_of
from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import Stage, StageKind, head_tiles, stages, tensor_name, token_tiles
from flexref.check import laws, reference
from flexref.check.forward import NOTHING, Model, Tape
from flexref.check.probable import ProbableTape
from flexref.check.tolerances import Arithmetic, Numbers, Operand, exact, linear_bound
from flexref.storage.weightfile import WeightFile, read_tensor

LAYER_WORK_MOST = 1 << 22
"""Largest product of weights (of all layers) and tokens for which a model's bound is computed: it then takes seconds.
Each argument of a relu near 0 costs a walk back through all layers before it."""


class ValueTape(Tape):
    """A tape that computes values only, without bounds or derivatives."""

    def _value(self, value: Numbers) -> int:
        return self.add(value, NOTHING)

    def linear(self, x: int, w: Numbers | Operand, b: Numbers | None) -> int:
        """See `Tape.linear`."""
        return self._value(reference.linear(self.sites[x].value, w.values if isinstance(w, Operand) else w, b))

    def total(self, x: int, y: int) -> int:
        """See `Tape.total`."""
        return self._value(self.sites[x].value + self.sites[y].value)

    def layer_norm(self, x: int, w: Numbers, b: Numbers, epsilon: float) -> int:
        """See `Tape.layer_norm`."""
        return self._value(reference.layer_norm(self.sites[x].value, w, b, epsilon))

    def activate(self, x: int, activation: str) -> int:
        """See `Tape.activate`."""
        return self._value(reference.activate(self.sites[x].value, activation))

    def attend(self, qkv: int, heads: int) -> int:
        """See `Tape.attend`."""
        tokens, width = self.sites[qkv].value.shape
        q, k, v = np.moveaxis(self.sites[qkv].value.reshape(tokens, 3, heads, -1), 1, 0)
        return self._value(reference.attend(q, k, v, 0, (width // 3 // heads) ** -0.5).reshape(tokens, -1))


def exact_logits(file: WeightFile, rows: Sequence[Sequence[int]], firsts: Sequence[int]) -> list[Numbers]:
    """The logits of every row in float64: (S - first, V), from the row's token number `first` on.

    `rows`: token ids; `firsts`: one number for each row. Weights are read and held one stage at a time. Keys and values
    are not rounded, as if the cache held them in float64.
    """
    spec, walk = file.spec, stages(file.spec, file.tile_rows)
    ids = np.unique(np.concatenate([np.asarray(row, np.int64) for row in rows]))
    table = {tensor_name(Role.TOKENS, TensorKind.TABLE): table_rows(file, ids), **_dense(file, walk[0])}
    states = [_embedded(spec, table, np.searchsorted(ids, row).tolist()) for row in rows]
    for stage in walk:
        if stage.kind is StageKind.LAYER:
            model = Model(spec, _dense(file, stage))
            states = [_through(model, stage.index, x) for x in states]
    heads = [stage for stage in walk if stage.kind is StageKind.HEAD]
    model = Model(spec, _dense(file, heads[0]))
    hidden = [_projected(model, x[first:]) for x, first in zip(states, firsts, strict=True)]
    parts: list[list[Numbers]] = [[] for _ in rows]
    for stage in heads:
        tile = laws.dense(read_tensor(file.tensors[stage.tensors[-1].name]))
        for part, x in zip(parts, hidden, strict=True):
            part.append(x @ tile.T)
    return [np.concatenate(part, -1) for part in parts]


def bounded(spec: ModelSpec, tokens: int, coarse: bool) -> bool:
    """Whether `permitted_gap` has an answer: the model is small enough, and a bound of first order holds for it.

    `coarse`: the port computes in half precision or keeps a 4-bit cache. With relu no bound of first order holds then,
    since such errors carry many arguments over 0.
    """
    if coarse and spec.activation == "relu":
        return False
    program = program_of(spec)
    weights = program.layers * sum(step.outputs * step.inputs for step in program.projections)
    return weights * tokens <= LAYER_WORK_MOST


def permitted_gap(
    file: WeightFile, token_ids: Sequence[int], pair: tuple[int, int], how: Arithmetic, group_size: int | None
) -> float:
    """How far the difference of the logits of two tokens (`pair`), after `token_ids`, may be from its float64 value.

    For a port that computes as `how` says and keeps its cache in 4-bit groups of `group_size` values (None: as they
    are). Rounding in float32 is bounded at its worst (see `forward`), coarser rounding with a probability of less than
    1e-10 to be larger (see `probable`).
    """
    tensors: dict[str, Numbers | Operand] = {}
    for name, stored in file.tensors.items():
        operand = laws.matrix(read_tensor(stored), how)
        tensors[name] = operand if stored.spec.quantizable and operand.error.any() else operand.values
    tape, model = ProbableTape.of(how, group_size), Model(file.spec, tensors)
    x = model.hidden(tape, token_ids)
    table = laws.matrix(table_rows(file, np.array(pair), head=True), how)
    seeds = np.zeros((1, len(token_ids), table.values.shape[1]))
    seeds[0, -1] = table.values[0] - table.values[1]
    own = linear_bound(exact(tape.sites[x].value[-1:]), table, np.zeros((1, 2)), 0, how)
    return float(tape.bound(x, seeds)[0] + own.sum())


def _dense(file: WeightFile, stage: Stage) -> Mapping[str, Numbers]:
    """A stage's tensors in float64, without the tiles of tables."""
    names = [tensor.name for tensor in stage.tensors if not tensor.is_tile]
    return {name: laws.dense(read_tensor(file.tensors[name])) for name in names}


def table_rows(
    file: WeightFile,
    ids: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]",
    head: bool = False,
    rows_of: Callable[[str, npt.NDArray[np.int64]], npt.NDArray[Any]] | None = None,
) -> Numbers:
    """The rows `ids` (T,) of the token table, or of the head's table -> (T, W) in float64.

    `rows_of` gives rows of a tile by its name, where they are not to be read from the file.
    """
    tiles = (head_tiles if head else token_tiles)(file.spec, file.tile_rows)
    rows = np.empty((len(ids), file.spec.embed_width))
    for tile in tiles:
        first = tile.index * file.tile_rows
        here = (ids >= first) & (ids < first + tile.shape[0])
        if here.any():
            some = ids[here] - first
            if rows_of is not None:
                rows[here] = rows_of(tile.name, some)
            else:
                rows[here] = laws.dense(read_tensor(file.tensors[tile.name]))[some]
    return rows


def _embedded(spec: ModelSpec, tensors: Mapping[str, Numbers], token_ids: Sequence[int]) -> Numbers:
    tape = ValueTape()
    return tape.sites[Model(spec, tensors).embed(tape, token_ids)].value


def _through(model: Model, layer: int, x: Numbers) -> Numbers:
    tape = ValueTape()
    return tape.sites[model.layer(tape, layer, tape.add(x, NOTHING))].value


def _projected(model: Model, x: Numbers) -> Numbers:
    tape = ValueTape()
    return tape.sites[model.final(tape, tape.add(x, NOTHING))].value
