"""A step of attention of a query over a chunk of keys: weights of scores, and the sum of what they weigh.

A query goes through its chunks in order and keeps the greatest score so far, the sum of weights relative to it, and
the sum of weighted values. A chunk that raises the greatest score scales both sums down. A query's bits depend on its
own keys alone: those that it does not see have the weight 0, and a chunk of which it sees none changes nothing.
"""

import math
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from flexref_numba.kernels.tiles import Form, GroupReader, Row, scalar
from flexref_numba.kernels.vectors import ADDRESS, FLOAT, LANES, VECTOR, WORD, WORDS, Builder, Value

ROUNDS = 12582912.0
"""1.5 * 2 ** 23: a float32 that is added to it is rounded to an integer, which stands in the sum's lowest bits."""

LEAST = -87.0
"""Weights below exp(LEAST) are 0: they would come near the smallest normal number."""

POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
"""Of exp(r) = 1 + r + r ** 2 * p(r) for |r| < ln(2) / 2, from Cephes: within 2 units in the last place."""

LN2 = (0.693359375, -2.12194440e-4)
"""ln(2) in two parts, the first of which has few bits."""


def constant(value: float) -> Value:
    """A vector of one number."""
    return ir.Constant(VECTOR, [value] * LANES)


def exponential(b: Builder, x: Value) -> Value:
    """exp of a vector of numbers that are not above 0; exactly 1 for 0, and 0 below LEAST."""
    low = b.llvm.fcmp_ordered("<", x, constant(LEAST))
    held = b.llvm.select(low, constant(LEAST), x)
    shifted = b.fma(held, constant(1 / math.log(2)), constant(ROUNDS))
    whole = b.llvm.fsub(shifted, constant(ROUNDS))
    rest = held
    for part in LN2:
        rest = b.fma(whole, constant(-part), rest)
    found = constant(POLYNOMIAL[0])
    for coefficient in POLYNOMIAL[1:]:
        found = b.fma(found, rest, constant(coefficient))
    found = b.fma(found, b.llvm.fmul(rest, rest), rest)
    found = b.llvm.fadd(found, constant(1.0))
    bits = b.llvm.shl(b.llvm.bitcast(shifted, WORDS), ir.Constant(WORDS, [23] * LANES))
    power = b.llvm.add(bits, ir.Constant(WORDS, [127 << 23] * LANES))
    found = b.llvm.fmul(found, b.llvm.bitcast(power, VECTOR))
    return b.llvm.select(low, b.zeros(), found)


def softmax_step(keys: int) -> Any:
    """A function of numba's: (scores, count, state) for the scores of a chunk of `keys`, of which `count` are seen.

    Scores become weights. The state is three float32: the greatest score, the sum of weights, and by how much this
    chunk has scaled it down.
    """

    @intrinsic
    def step(_: Any, scores: Any, count: Any, state: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _append_step(Builder(builder), keys, args)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), build

    return step


def _append_step(b: Builder, keys: int, args: Any) -> None:
    scores, count, state = args
    places = [b.add(scores, 4 * start) for start in range(0, keys, LANES)]
    seen = b.splat(b.llvm.trunc(count, WORD))
    found = []
    for number, place in enumerate(places):
        lanes = ir.Constant(WORDS, [number * LANES + lane for lane in range(LANES)])
        hidden = b.llvm.icmp_signed(">=", lanes, seen)
        found.append(b.llvm.select(hidden, constant(-math.inf), b.read_floats(place)))

    most = found[0]
    for vector in found[1:]:
        most = b.greater(most, vector)
    (of_chunk,) = b.folded([most], b.greater)
    before = b.read(state, FLOAT, 4)
    greatest = b.greater(of_chunk, before)
    scaled = exponential(b, b.splat(b.llvm.fsub(before, greatest)))
    factor = b.llvm.extract_element(scaled, WORD(0))
    total = b.zeros()
    for vector, place in zip(found, places, strict=True):
        weights = exponential(b, b.llvm.fsub(vector, b.splat(greatest)))
        b.write(place, weights, 4)
        total = b.llvm.fadd(total, weights)
    (given,) = b.sums([total])
    b.write(state, greatest, 4)
    b.write(b.add(state, 4), b.fma(b.read(b.add(state, 4), FLOAT, 4), factor, given), 4)
    b.write(b.add(state, 8), factor, 4)


def weighted_tile(form: Form, queries: int, vectors: int) -> Any:
    """A function of numba's: sums of weighted values of `queries` queries and 16 * `vectors` columns, or of one column.

    (weights, weights_pitch, count, values, pitch, scale, zero, pair_pitch, factors, factors_pitch, sums, sums_pitch):
    the sums are multiplied by a query's factor, then the values of `count` keys are added, key after key. With
    `vectors` 0 the address of values, of sums is that of a column; codes are one group.
    """

    @intrinsic
    def tile(
        _: Any, weights: Any, weights_pitch: Any, count: Any, values: Any, pitch: Any, scale: Any, zero: Any,
        pair_pitch: Any, factors: Any, factors_pitch: Any, sums: Any, sums_pitch: Any,
    ) -> Any:  # fmt: skip
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _append_weighted(Builder(builder), form, (queries, vectors), args)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 12), build

    return tile


def _append_weighted(b: Builder, form: Form, shape: tuple[int, int], args: Any) -> None:
    weights, weights_pitch, count, values, pitch, scale, zero, pair_pitch = args[:8]
    factors, factors_pitch, sums, sums_pitch = args[8:]
    queries, vectors = shape
    kind, lanes = (VECTOR, LANES) if vectors else (FLOAT, 1)
    targets, kept = [], []
    for query in range(queries):
        factor = b.read(b.add(factors, b.times(factors_pitch, query)), FLOAT, 4)
        factor = b.splat(factor) if vectors else factor
        for place in range(max(1, vectors)):
            target = b.add(sums, b.times(sums_pitch, query), 4 * lanes * place)
            targets.append(target)
            kept.append(b.variable(kind, b.llvm.fmul(b.read(target, kind, 4), factor)))
    with b.loop(ADDRESS(0), count) as key:
        start = b.times(pitch, key)
        at = b.add(values, start)
        if form.coded:
            pair = b.times(pair_pitch, key)
            row = Row(at, b.add(scale, pair), b.add(zero, pair), ADDRESS(0))
            reader = GroupReader(b, form, row, ADDRESS(0))
            found = [reader.values(place) for place in range(vectors)]
        elif not vectors:
            found = [scalar(b, at, form.kind)]
        else:
            nbytes, read = (4, b.read_floats) if form.kind == "float32" else (2, b.read_halves)
            found = [read(b.add(at, nbytes * LANES * place)) for place in range(vectors)]
        for query in range(queries):
            weight = b.read(b.add(weights, b.times(weights_pitch, query), b.times(key, 4)), FLOAT, 4)
            weight = b.splat(weight) if vectors else weight
            for place, value in enumerate(found):
                variable = kept[query * len(found) + place]
                b.set(variable, b.fma(weight, value, b.get(variable)))
    for target, variable in zip(targets, kept, strict=True):
        b.write(target, b.get(variable), 4)
