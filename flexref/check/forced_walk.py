"""Computes the steps of a model for a row of tokens in float32, with a copy beside it whose roundings are random.

Tensors come one at a time, the next ones ahead; it knows no logits.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.architecture.program import Attend, BranchStep, Norm, Project
from flexref.architecture.stages import StageKind, TensorSpec, stages, tensor_name
from flexref.check import reference
from flexref.check.noisy import probable_arithmetic
from flexref.check.tolerances import Arithmetic, activation_bound, layer_norm_bound
from flexref.storage.quant import dequantize, quantize
from flexref.storage.weightfile import WeightFile

Values = npt.NDArray[Any]
"""Numbers in float32."""

Read = Callable[[str], Values]
"""Gives a tensor by its name in float32, groups of codes expanded; it may be called by several threads."""

READ_AHEAD = 6
"""Tensors that are read and expanded while others are multiplied, each by a thread of its own."""

WORKERS, PIECES = min(16, len(os.sched_getaffinity(0))), 16
"""Threads for all that is no product, and pieces into which it is cut, as many for any number of threads."""

SIGNS = 1 << 21
"""Random signs are drawn once; every rounding has a run of them that begins anywhere."""

SIGNS_APART = 514_229
"""Between the runs of signs of the parts of one site: prime, so that they meet late."""

SPLITTER, SPLIT_AT_ONCE = (1 << 13) + 1, 1 << 18
"""Rounds 24 binary digits to 11; and how many numbers at a time, so that they stay in a processor's cache."""

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


Both = tuple[Values, Values]
"""A tensor as it is, and as a port may have rounded it; one object, if it has not."""


class TensorsAhead:
    """Tensors in the order in which they will be asked for, the next ones read meanwhile; `rounds`: see `both`."""

    def __init__(self, file: WeightFile, read: Read, pool: ThreadPoolExecutor, rounds: str | None) -> None:
        self._file, self._read, self._pool, self._rounds = file, read, pool, rounds
        self._names = names_of(file)
        self._coming: dict[str, Future[Both]] = {}

    def __call__(self, name: str) -> Both:
        """A tensor as it is, and as the port may have it."""
        while name not in self._coming or len(self._coming) <= READ_AHEAD:
            coming = next(self._names, None)
            if coming is None:
                break
            self._coming[coming] = self._pool.submit(self.both, coming)
        return self._coming.pop(name).result()

    def both(self, name: str) -> Both:
        """The same, read now."""
        values, stored = self._read(name), self._file.tensors[name]
        exact = stored.bits is None and stored.parts[0].dtype == self._rounds
        return values, values if exact or self._rounds is None or values.ndim == 1 else as_halves(values)


class NoisyWalk:
    """States (2, T, ...) of one row: first the exact ones, then the copy with random roundings."""

    def __init__(self, rounding: PortRounding, tensors: TensorsAhead, workers: ThreadPoolExecutor, seed: int) -> None:
        self.how, self._rounding, self.tensors, self._workers = rounding.how, rounding, tensors, workers
        self._draw = np.random.default_rng(seed)
        self._signs = np.where(self._draw.integers(0, 2, SIGNS), np.float32(1), np.float32(-1)).astype(np.float32)

    def each(self, count: int, work: Callable[[slice], object]) -> None:
        """Do `work` on `count` things, some at a time, on all processors."""
        step = -(-count // PIECES)
        list(self._workers.map(work, [slice(first, min(count, first + step)) for first in range(0, count, step)]))

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

        self.each(value.shape[1], move)
        return value

    def given(self, value: Values) -> Values:
        """What a table holds (T, W), as both read it."""
        return self.moved(np.stack([value, value]), lambda some: self.stored(value[some]))

    def stored(self, values: Values, roundings: int = 1) -> Values:
        """How far results so large may be off when they are stored."""
        return np.asarray(self.how.storing(values, roundings), np.float32)

    def product(self, x: Values, both: Both, b: Values | None) -> tuple[Values, Callable[[slice], Values]]:
        """x (2, T, I), w (O, I) as it is and as a port may have it, b (O,) -> x w^T + b (2, T, O).

        And how far the sums of some tokens may be off, (t, O): at most so much times the lengths of both factors
        (Cauchy and Schwarz).
        """
        w, rounded = both
        result = np.empty((*x.shape[:-1], len(w)), np.float32)
        if rounded is w:
            np.matmul(x.reshape(-1, x.shape[-1]), w.T, out=result.reshape(-1, len(w)))
        else:
            for copy, matrix in enumerate(both):
                np.matmul(x[copy], matrix.T, out=result[copy])
        long, wide = np.float32(self.how.sums(x.shape[-1])) * lengths(x[0]), np.empty(len(w), np.float32)

        def measure(some: slice) -> None:
            wide[some] = lengths(w[some])

        self.each(len(w), measure)
        if b is not None:
            self.each(x.shape[1], lambda some: np.add(result[:, some], b, out=result[:, some]))
        return result, lambda some: np.multiply.outer(long[some], wide)

    def step(self, step: BranchStep, layer: int, x: Values) -> Values:
        """One step's result on x (2, T, ...)."""
        if isinstance(step, Attend):
            return self._attend(step, x)
        if isinstance(step, Project):
            learned = [self.tensors(tensor_name(step.role, kind, layer)) for kind, _ in step.shapes]
            result, sums = self.product(x, learned[0], learned[1][0] if len(learned) > 1 else None)
            return self.moved(result, lambda some: sums(some) + self.stored(result[0, some], len(learned)))
        result = np.empty_like(x)
        if isinstance(step, Norm):
            plain: list[Values] = [np.ones(step.width, np.float32), np.zeros(step.width, np.float32)]
            gain, shift = [self.tensors(tensor_name(step.role, kind, layer))[0] for kind, _ in step.shapes] or plain

            def norm(some: slice) -> None:
                result[:, some] = reference.layer_norm(x[:, some], gain, shift, step.epsilon)

            self.each(x.shape[1], norm)
            return self.moved(result, lambda some: layer_norm_bound(x[0, some], gain, shift, step.epsilon, self.how))

        def activate(some: slice) -> None:
            result[:, some] = activated(x[:, some], step.activation)

        self.each(x.shape[1], activate)
        return self.moved(result, lambda some: activation_bound(x[0, some], result[0, some], step.activation, self.how))

    def total(self, x: Values, y: Values) -> Values:
        """x + y."""
        result = x + y
        return self.moved(result, lambda some: self.stored(result[0, some]))

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
                reach = (np.float32(self.how.sums(step.head_width + 2)) * lengths(q), lengths(k)) if copy else None
                self.each(len(scores), partial(self._shares, (scores, unseen), reach, self.site()))
                result[copy, :, here] = (scores @ v).transpose(1, 0, 2)
        most = np.float32(self.how.sums(tokens)) * np.abs(held[0, :, 1]).max(0)
        local = result[0]
        return self.moved(
            result.reshape(copies, tokens, -1),
            lambda some: (self.stored(local[some]) + most).reshape(-1, step.width),
        )

    def _shares(self, held: tuple[Values, Values], reach: tuple[Values, Values] | None, site: int, some: slice) -> None:
        """The scores (H, T, T) of some heads become shares, those of what is `unseen` 0.

        They are moved where there is a `reach`: the lengths of queries and of keys.
        """
        scores, unseen = held
        part, site = scores[some], site + 31 * some.start
        if reach is not None:
            part += self.signed(reach[0][some][:, :, None] * reach[1][some][:, None, :], site)
        part[:, unseen] = -np.inf
        part -= part.max(-1, keepdims=True)
        np.exp(part, out=part)
        part /= part.sum(-1, keepdims=True)
        if reach is not None:
            part += self.signed(np.float32(self.how.stored.unit) * part, site + 1)

    def _as_cached(self, values: Values) -> Values:
        """Keys and values (2, T, 2, H, D) after a cache of 4-bit groups."""
        size = self._rounding.cache_group_size
        assert size is not None
        result = np.empty_like(values, order="C")

        def pass_through(some: slice) -> None:
            result[:, some] = dequantize(quantize(values[:, some], size, SCALE_DTYPE, "the cache"))

        self.each(values.shape[1], pass_through)
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


def as_halves(values: Values) -> Values:
    """Float32 numbers rounded to the 11 digits of float16, some at a time (Veltkamp's splitting)."""
    result = np.empty_like(values)
    flat, out = values.reshape(-1), result.reshape(-1)
    for first in range(0, len(flat), SPLIT_AT_ONCE):
        part, into = flat[first : first + SPLIT_AT_ONCE], out[first : first + SPLIT_AT_ONCE]
        far = np.float32(SPLITTER) * part
        np.subtract(far, part, out=into)
        np.subtract(far, into, out=into)
    return result


def lengths(rows: Values) -> Values:
    """rows (..., I) -> their Euclidean lengths (...)."""
    return np.asarray(np.sqrt(np.einsum("...i,...i->...", rows, rows)), np.float32)
