"""Computes the steps of a model for rows of tokens in float32, with a copy beside it whose roundings are random.

Tensors come one at a time, the next ones ahead; it knows no logits.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.architecture.program import Attend, BranchStep, Norm, Project
from flexref.architecture.stages import StageKind, TensorSpec, stages, tensor_name
from flexref.check import reference
from flexref.check.forced.products import Products, Read, Stored, Values, lengths, whole
from flexref.check.noisy import probable_arithmetic
from flexref.check.tolerances import Arithmetic, activation_bound, layer_norm_bound
from flexref.storage.quant import dequantize, quantize
from flexref.storage.weightfile import WeightFile

READ_AHEAD = 6
"""Tensors that are read while others are multiplied, each by a thread of its own."""

SIGNS = 1 << 21
"""Random signs are drawn once; every rounding has a run of them that begins anywhere."""

SIGNS_APART = 514_229
"""Between the runs of signs of the parts of one site: prime, so that they meet late."""

SCORES_AT_ONCE = 1 << 20
"""Bounds the memory of attention: scores of so many pairs of tokens in one head, on each core."""

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


class TensorsAhead:
    """Tensors in the order in which they will be asked for, the next ones read meanwhile."""

    def __init__(self, file: WeightFile, read: Read, pool: ThreadPoolExecutor) -> None:
        self._read, self._pool = read, pool
        self._names = names_of(file)
        self._coming: dict[str, Future[Stored]] = {}

    def __call__(self, name: str) -> Stored:
        """A tensor as the file holds it."""
        while name not in self._coming or len(self._coming) <= READ_AHEAD:
            coming = next(self._names, None)
            if coming is None:
                break
            self._coming[coming] = self._pool.submit(self._read, coming)
        return self._coming.pop(name).result()


class NoisyWalk:
    """States (2, T, ...) of all tokens of some rows: first the exact ones, then the copy with random roundings.

    `counts`: the tokens of each row, which see none of another.
    """

    def __init__(
        self, rounding: PortRounding, tensors: TensorsAhead, products: Products, counts: Sequence[int], seed: int
    ) -> None:
        self.how, self._rounding, self.tensors, self._products = rounding.how, rounding, tensors, products
        ends = np.cumsum(counts).tolist()
        self._rows = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
        self._draw = np.random.default_rng(seed)
        self._signs = np.where(self._draw.integers(0, 2, SIGNS), np.float32(1), np.float32(-1)).astype(np.float32)

    def signed(self, local: Values, site: int) -> Values:
        """`local` with random signs, in place; which, a `site` says."""
        flat = local.reshape(-1)
        for number, first in enumerate(range(0, len(flat), SIGNS // 2)):
            part = flat[first : first + SIGNS // 2]
            at = (site + number * SIGNS_APART) % (SIGNS - len(part) + 1)
            np.multiply(part, self._signs[at : at + len(part)], out=part)
        return local

    def site(self) -> int:
        """Where the signs of the next site begin."""
        return int(self._draw.integers(0, SIGNS))

    def moved(self, value: Values, local: Callable[[slice], npt.NDArray[Any]]) -> Values:
        """`value` with the copy's part moved by `local` of some tokens (t, ...), up or down at random."""
        site = self.site()

        def move(some: slice) -> None:
            value[1, some] += self.signed(np.ascontiguousarray(local(some), np.float32), site + 31 * some.start)

        self._products.each(value.shape[1], move)
        return value

    def given(self, value: Values) -> Values:
        """What a table holds (T, W), as both read it."""
        return self.moved(np.stack([value, value]), lambda some: self.stored(value[some]))

    def stored(self, values: Values, roundings: int = 1) -> Values:
        """How far results so large may be off when they are stored."""
        return np.asarray(self.how.storing(values, roundings), np.float32)

    def product(self, x: Values, w: Stored) -> tuple[Values, Values, Values]:
        """x (2, T, I), w (O, I) -> x w^T (2, T, O), and what the sums may be off by: so much (T,) times so much (O,).

        At most a share of the lengths of both factors (Cauchy and Schwarz).
        """
        result, wide = self._products(x, w)
        return result, np.float32(self.how.sums(x.shape[-1])) * lengths(x[0]), wide

    def step(self, step: BranchStep, layer: int, x: Values) -> Values:
        """One step's result on x (2, T, ...)."""
        if isinstance(step, Attend):
            return self._attend(step, x)
        if isinstance(step, Project):
            learned = [self.tensors(tensor_name(step.role, kind, layer)) for kind, _ in step.shapes]
            result, long, wide = self.product(x, learned[0])
            bias = whole(learned[1]) if len(learned) > 1 else None

            def finish(some: slice) -> Values:
                if bias is not None:
                    result[:, some] += bias
                return np.multiply.outer(long[some], wide) + self.stored(result[0, some], len(learned))

            return self.moved(result, finish)
        result = np.empty_like(x)
        if isinstance(step, Norm):
            plain: list[Values] = [np.ones(step.width, np.float32), np.zeros(step.width, np.float32)]
            read = [whole(self.tensors(tensor_name(step.role, kind, layer))) for kind, _ in step.shapes]
            gain, shift = read or plain

            def norm(some: slice) -> npt.NDArray[Any]:
                result[:, some] = reference.layer_norm(x[:, some], gain, shift, step.epsilon)
                return layer_norm_bound(x[0, some], gain, shift, step.epsilon, self.how)

            return self.moved(result, norm)

        def activate(some: slice) -> npt.NDArray[Any]:
            result[:, some] = activated(x[:, some], step.activation)
            return activation_bound(x[0, some], result[0, some], step.activation, self.how)

        return self.moved(result, activate)

    def total(self, x: Values, y: Values) -> Values:
        """x + y."""
        result = np.empty_like(x)

        def add(some: slice) -> Values:
            np.add(x[:, some], y[:, some], out=result[:, some])
            return self.stored(result[0, some])

        return self.moved(result, add)

    def _attend(self, step: Attend, qkv: Values) -> Values:
        """qkv (2, T, 3E) -> causal attention (2, T, E) of each row, over keys and values as the cache holds them."""
        copies, tokens, _ = qkv.shape
        parts = qkv.reshape(copies, tokens, 3, step.heads, step.head_width)
        held = parts[:, :, 1:] if self._rounding.cache_group_size is None else self._as_cached(parts[:, :, 1:])
        result = np.empty((copies, tokens, step.heads, step.head_width), np.float32)
        most = np.empty((tokens, step.heads, step.head_width), np.float32)
        for row in self._rows:
            site = self.site()
            most[row] = np.float32(self.how.sums(row.stop - row.start)) * np.abs(held[0, row, 1]).max(0)

            def attend(number: int, row: slice = row, site: int = site) -> None:
                copy, head = divmod(number, step.heads)
                q = parts[copy, row, 0, head] * np.float32(step.scale)
                k, v = (np.ascontiguousarray(held[copy, row, which, head]) for which in (0, 1))
                result[copy, row, head] = self._attended(q, k, v, site + 31 * head if copy else None)

            self._products.every(copies * step.heads, attend)
        local = result[0]
        return self.moved(
            result.reshape(copies, tokens, -1),
            lambda some: (self.stored(local[some]) + most[some]).reshape(-1, step.width),
        )

    def _attended(self, q: Values, k: Values, v: Values, site: int | None) -> Values:
        """q, k, v (T, D) of one head, q scaled -> causal attention (T, D); moved by the signs of a `site`, if any."""
        tokens, width = q.shape
        long, wide = np.float32(self.how.sums(width + 2)) * lengths(q), lengths(k)
        result, at_once = np.empty_like(q), max(1, SCORES_AT_ONCE // tokens)
        for first in range(0, tokens, at_once):
            some = slice(first, min(tokens, first + at_once))
            scores = q[some] @ k[: some.stop].T
            at = None if site is None else site + SIGNS_APART * first
            if at is not None:
                scores += self.signed(np.multiply.outer(long[some], wide[: some.stop]), at)
            scores[:, some][~np.tri(len(scores), dtype=np.bool_)] = -np.inf
            scores -= scores.max(-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(-1, keepdims=True)
            if at is not None:
                scores += self.signed(np.float32(self.how.stored.unit) * scores, at + 1)
            np.matmul(scores, v[: some.stop], out=result[some])
        return result

    def _as_cached(self, values: Values) -> Values:
        """Keys and values (2, T, 2, H, D) after a cache of 4-bit groups."""
        size = self._rounding.cache_group_size
        assert size is not None
        result = np.empty_like(values, order="C")

        def pass_through(some: slice) -> None:
            result[:, some] = dequantize(quantize(values[:, some], size, SCALE_DTYPE, "the cache"))

        self._products.each(values.shape[1], pass_through)
        return result


def names_of(file: WeightFile) -> Iterator[str]:
    """The tensors of all layers, and of the head but for its table, about in the order in which they are needed."""
    walk = stages(file.spec, file.tile_rows)
    layers = (stage.tensors for stage in walk if stage.kind is StageKind.LAYER)
    head = next(stage.tensors for stage in walk if stage.kind is StageKind.HEAD)
    embed = next(stage.tensors for stage in walk if stage.kind is StageKind.EMBED)
    wanted: Iterator[TensorSpec] = chain(embed, *layers, head)
    return (tensor.name for tensor in wanted if not tensor.is_tile)


def activated(x: Values, activation: str) -> Values:
    """x -> activation(x) in float32."""
    if activation != "gelu":
        return np.asarray(reference.activate(x, activation), np.float32)
    from scipy.special import ndtr  # noqa: PLC0415  half a second, for models with this activation alone

    return np.asarray(x * ndtr(x), np.float32)
