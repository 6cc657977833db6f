"""Recomputes a row of a run, every token after the row's own ones, and says which tokens rounding may have chosen.

All layers are walked for whole rows, in float32, one tensor at a time; beside that computation goes a copy of it in
which every rounding that a port makes is drawn at random (see `noisy`). The copy's logits differ from the others as far
as a port's may. It knows tensors by name and no engine.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.architecture.program import Attend, BranchStep, Norm, Project, Residual, TensorKind, program_of
from flexref.architecture.spec import POSITION_OFFSET
from flexref.architecture.stages import StageKind, TensorSpec, head_tiles, stages, tensor_name, token_tiles
from flexref.check import reference
from flexref.check.noisy import probable_arithmetic
from flexref.check.probable import DEVIATIONS
from flexref.check.tolerances import FLOAT32, Arithmetic, activation_bound, layer_norm_bound
from flexref.errors import FlexrefError
from flexref.storage.quant import dequantize, quantize
from flexref.storage.weightfile import WeightFile

Values = npt.NDArray[Any]
"""Numbers in float32."""

Read = Callable[[str], Values]
"""Gives a tensor by its name in float32, groups of codes expanded; it may be called by several threads."""

READ_AHEAD = 4
"""Tensors that are read and expanded while others are multiplied, each by a thread of its own."""

SCORES_AT_ONCE = 1 << 24
"""Bounds the memory of attention: scores of so many pairs of tokens, in as many heads as that allows."""

SCALE_DTYPE = "float16"
"""Type of scale and zero in a cache of 4-bit groups (`backend.records`)."""


@dataclass(frozen=True, slots=True)
class PortRounding:
    """What a port rounds: results to `compute_dtype`, keys and values to 4-bit groups of so many (None: not at all)."""

    compute_dtype: str
    cache_group_size: int | None = None

    @property
    def how(self) -> Arithmetic:
        """The arithmetic that the copy's roundings are drawn from."""
        return probable_arithmetic(self.compute_dtype)


@dataclass(frozen=True, slots=True)
class ForcedLogits:
    """Logits (P, V) of some positions of a row, and how far a correct port's may be from each (P, V)."""

    logits: Values
    bound: Values


class _Ahead:
    """Tensors in the order in which they will be asked for, the next ones read meanwhile."""

    def __init__(self, read: Read, names: Iterator[str], pool: ThreadPoolExecutor) -> None:
        self._read, self._names, self._pool = read, names, pool
        self._coming: dict[str, Future[Values]] = {}

    def __call__(self, name: str) -> Values:
        while name not in self._coming or len(self._coming) <= READ_AHEAD:
            coming = next(self._names, None)
            if coming is None:
                break
            self._coming[coming] = self._pool.submit(self._read, coming)
        return self._coming.pop(name).result()


class _Walk:
    """States (2, T, ...) of one row: first the exact ones, then the copy with random roundings."""

    def __init__(self, rounding: PortRounding, tensor: Callable[[str], Values], seed: int) -> None:
        self._how, self._rounding, self._tensor = rounding.how, rounding, tensor
        self._draw = np.random.default_rng(seed)
        self._rounds_weights = self._how.stored.unit > FLOAT32.unit

    def moved(self, value: Values, local: npt.NDArray[np.floating]) -> Values:
        """`value` with the copy's part moved by `local` (T, ...), up or down at random."""
        value[1] += self._signed(np.asarray(local, np.float32))
        return value

    def _signed(self, local: Values) -> Values:
        bits = np.unpackbits(np.frombuffer(self._draw.bytes(-(-local.size // 8)), np.uint8), count=local.size)
        return np.negative(local, out=local.copy(), where=bits.astype(np.bool_).reshape(local.shape))

    def given(self, value: Values) -> Values:
        """What a table holds (T, W), as both read it."""
        return self.moved(np.stack([value, value]), self._how.storing(value))

    def product(self, x: Values, w: Values, b: Values | None) -> tuple[Values, Values]:
        """x (2, T, I), w (O, I), b (O,) -> x w^T + b, (2, T, O), and how far sums may be off, (T, O).

        A sum of products is off by at most so much times the lengths of both factors (Cauchy and Schwarz).
        """
        result = np.empty((*x.shape[:-1], len(w)), np.float32)
        if self._rounds_weights:
            np.matmul(x[0], w.T, out=result[0])
            np.matmul(x[1], w.astype(self._rounding.compute_dtype).astype(np.float32).T, out=result[1])
        else:
            np.matmul(x.reshape(-1, x.shape[-1]), w.T, out=result.reshape(-1, len(w)))
        if b is not None:
            result += b
        return result, np.float32(self._how.sums(x.shape[-1])) * np.multiply.outer(lengths(x[0]), lengths(w))

    def step(self, step: BranchStep, layer: int, x: Values) -> Values:
        """One step's result on x (2, T, ...)."""
        if isinstance(step, Attend):
            return self._attend(step, x)
        if not isinstance(step, Project | Norm):
            result = activated(x, step.activation)
            return self.moved(result, activation_bound(x[0], result[0], step.activation, self._how))
        learned = [self._tensor(tensor_name(step.role, kind, layer)) for kind, _ in step.shapes]
        if isinstance(step, Norm):
            plain: list[Values] = [np.ones(step.width, np.float32), np.zeros(step.width, np.float32)]
            gain, shift = learned or plain
            local = layer_norm_bound(x[0], gain, shift, step.epsilon, self._how)
            return self.moved(np.asarray(reference.layer_norm(x, gain, shift, step.epsilon), np.float32), local)
        result, sums = self.product(x, learned[0], learned[1] if len(learned) > 1 else None)
        return self.moved(result, sums + self._how.storing(result[0], len(learned)))

    def total(self, x: Values, y: Values) -> Values:
        """x + y."""
        return self.moved(x + y, self._how.storing(x[0] + y[0]))

    def _attend(self, step: Attend, qkv: Values) -> Values:
        """qkv (2, T, 3E) -> causal attention (2, T, E), over keys and values as the cache holds them."""
        copies, tokens, _ = qkv.shape
        parts = qkv.reshape(copies, tokens, 3, step.heads, step.head_width)
        held = parts[:, :, 1:] if self._rounding.cache_group_size is None else self._as_cached(parts[:, :, 1:])
        result = np.empty((copies, tokens, step.heads, step.head_width), np.float32)
        unseen, at_once = ~np.tri(tokens, dtype=np.bool_), max(1, SCORES_AT_ONCE // tokens**2)
        for copy in range(copies):
            for head in range(0, step.heads, at_once):
                here = slice(head, head + at_once)
                q = parts[copy, :, 0, here].transpose(1, 0, 2) * np.float32(step.scale)
                k, v = (held[copy, :, which, here].transpose(1, 0, 2) for which in (0, 1))
                scores = q @ k.transpose(0, 2, 1)
                if copy:
                    reach = lengths(q)[:, :, None] * lengths(k)[:, None, :]
                    scores += self._signed(np.float32(self._how.sums(step.head_width + 2)) * reach)
                scores[:, unseen] = -np.inf
                scores -= scores.max(-1, keepdims=True)
                shares = np.exp(scores, out=scores)
                shares /= shares.sum(-1, keepdims=True)
                if copy:
                    shares += self._signed(np.float32(self._how.stored.unit) * shares)
                result[copy, :, here] = (shares @ v).transpose(1, 0, 2)
        most = np.float32(self._how.sums(tokens)) * np.abs(held[0, :, 1]).max(0)
        local = self._how.storing(result[0]) + most
        return self.moved(result.reshape(copies, tokens, -1), local.reshape(tokens, -1))

    def _as_cached(self, values: Values) -> Values:
        """Keys and values (2, T, 2, H, D) after a cache of 4-bit groups."""
        size = self._rounding.cache_group_size
        assert size is not None
        return dequantize(quantize(values, size, SCALE_DTYPE, "the cache"))


def forced_logits(
    file: WeightFile, read: Read, token_ids: Sequence[int], positions: Sequence[int], rounding: PortRounding, seed: int
) -> ForcedLogits:
    """The logits after each of the `positions` (numbers of tokens of the row), every token being the row's own.

    `read` gives the tensors of `file`. Raises `FlexrefError` where a logit is not finite.
    """
    spec, program = file.spec, program_of(file.spec)
    heads = head_tiles(spec, file.tile_rows)
    with ThreadPoolExecutor(READ_AHEAD, "flexref tensors") as pool:
        walk = _Walk(rounding, _Ahead(read, _names(file), pool), seed)
        x = _embedded(file, walk, read, token_ids)
        for layer in range(program.layers):
            for step in program.layer:
                x = _residual(walk, step, layer, x) if isinstance(step, Residual) else walk.step(step, layer, x)
        x = x[:, list(positions)]
        for last in (program.head.norm, program.head.project):
            x = x if last is None else walk.step(last, 0, x)
        parts = [_tile(walk, x, tile) for tile in pool.map(read, [tile.name for tile in heads])]
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


def _names(file: WeightFile) -> Iterator[str]:
    """The tensors of all layers, and of the head but for its table, about in the order in which they are needed."""
    walk = stages(file.spec, file.tile_rows)
    layers = (stage.tensors for stage in walk if stage.kind is StageKind.LAYER)
    head = next(stage.tensors for stage in walk if stage.kind is StageKind.HEAD)
    embed = next(stage.tensors for stage in walk if stage.kind is StageKind.EMBED)
    wanted: Iterator[TensorSpec] = chain(embed, *layers, head)
    return (tensor.name for tensor in wanted if not tensor.is_tile)


def _embedded(file: WeightFile, walk: _Walk, read: Read, token_ids: Sequence[int]) -> Values:
    """The states (2, T, E) before the first layer."""
    steps, ids = program_of(file.spec).embed, np.asarray(token_ids, np.int64)
    rows = np.empty((len(ids), file.spec.embed_width), np.float32)
    for tile in token_tiles(file.spec, file.tile_rows):
        first = tile.index * file.tile_rows
        here = (ids >= first) & (ids < first + tile.shape[0])
        if here.any():
            rows[here] = read(tile.name)[ids[here] - first]
    places = walk._tensor(tensor_name(steps.positions.role, TensorKind.TABLE))
    x = walk.given(rows)
    if steps.project is not None:
        x = walk.step(steps.project, 0, x)
    return walk.total(x, walk.given(places[POSITION_OFFSET : POSITION_OFFSET + len(ids)]))


def _residual(walk: _Walk, step: Residual, layer: int, x: Values) -> Values:
    inner = x
    for each in step.steps:
        inner = walk.step(each, layer, inner)
    return walk.total(x, inner)


def _tile(walk: _Walk, hidden: Values, table: Values) -> tuple[Values, Values, Values, Values]:
    """Of a tile's tokens: logits (P, N), by how much the copy's differ, the last sums' error, lengths of rows (N,)."""
    result, sums = walk.product(hidden, table, None)
    return result[0], result[1] - result[0], sums, np.maximum(lengths(table), np.finfo(np.float32).tiny)


def activated(x: Values, activation: str) -> Values:
    """x -> activation(x) in float32."""
    if activation != "gelu":
        return np.asarray(reference.activate(x, activation), np.float32)
    from scipy.special import ndtr  # noqa: PLC0415  half a second, for models with this activation alone

    return np.asarray(x * ndtr(x), np.float32)


def lengths(rows: Values) -> Values:
    """rows (..., I) -> their Euclidean lengths (...)."""
    return np.asarray(np.sqrt(np.einsum("...i,...i->...", rows, rows)), np.float32)
