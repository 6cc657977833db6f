"""Products of a few rows by a few others, straight from how numbers are stored; each sum has an order of its own.

A sum over I terms is added up in sixteen lanes, term after term, then the lanes in a tree, then what is left of I. That
is so for one row or many, for numbers, halves and codes: so bits depend on the two rows alone.
"""

from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from flexref_numba.kernels.vectors import (
    ADDRESS,
    BYTE,
    FLOAT,
    HALF,
    LANES,
    VECTOR,
    WORD,
    WORDS,
    Builder,
    Value,
    wide_registers,
)


class Form(NamedTuple):
    """How the numbers of a row are stored: of `kind` float32, float16, codes4 or codes8.

    Codes come in groups of `group`, which divides a row, and each group has scale and zero of type `pair`: float16, but
    for rows that are only expanded. There 0 and no type stand for any.
    """

    kind: str
    group: int = 0
    pair: str = ""

    @property
    def coded(self) -> bool:
        """Whether rows hold codes."""
        return self.kind.startswith("codes")


FLOATS, HALVES = Form("float32"), Form("float16")

PAIR_BYTES = {"float16": 2, "float32": 4}


class Row(NamedTuple):
    """Where a row lies: its numbers or codes; scale and zero of its first group, and how far apart groups' are.

    ahead: how far from here the row lies that is read next, in bytes; None: nobody knows.
    """

    values: Value
    scale: Value
    zero: Value
    pair_step: Value
    ahead: Value | None = None


def scalar(b: Builder, address: Value, kind: str) -> Value:
    """A float32 or float16 as float32."""
    if kind == "float16":
        return b.llvm.fpext(b.read(address, HALF, 2), FLOAT)
    return b.read(address, FLOAT, 4)


class GroupReader:
    """The values of one group of a row, sixteen at a time: code * scale + zero, rounded once."""

    def __init__(self, b: Builder, form: Form, row: Row, group: Value) -> None:
        self._b, self._form = b, form
        pair = b.times(row.pair_step, group)
        self._scale, self._zero = (b.splat(scalar(b, b.add(at, pair), form.pair)) for at in (row.scale, row.zero))
        self._wide = form.kind == "codes4" and wide_registers()
        if self._wide:
            steps = ir.Constant(VECTOR, [float(code) for code in range(LANES)])
            self._table = b.fma(steps, self._scale, self._zero)
        self._codes = b.add(row.values, b.times(group, form.group // (2 if form.kind == "codes4" else 1)))
        self._held: dict[int, Value] = {}
        if row.ahead is not None:  # rows of codes are short: the processor would notice late that another one begins
            b.fetch_ahead(b.add(self._codes, row.ahead))

    def values(self, place: int) -> Value:
        """Values `place` * 16 and on."""
        b, pieces = self._b, self._form.group // LANES
        if self._form.kind == "codes8":
            return self._value(self._read(place))
        codes = self._read(place % (pieces // 2))
        if place >= pieces // 2:
            codes = b.llvm.lshr(codes, ir.Constant(WORDS, [4] * LANES))
        elif not self._wide:
            codes = b.llvm.and_(codes, ir.Constant(WORDS, [15] * LANES))
        return b.looked_up(self._table, codes) if self._wide else self._value(codes)

    def _read(self, piece: int) -> Value:
        if piece not in self._held:
            self._held[piece] = self._b.read_bytes(self._b.add(self._codes, piece * LANES))
        return self._held[piece]

    def _value(self, codes: Value) -> Value:
        return self._b.fma(self._b.llvm.sitofp(codes, VECTOR), self._scale, self._zero)


def add_products(b: Builder, form: Form, x: list[Value], w: list[Row], inputs: Value) -> list[Value]:
    """The sums of x[t][i] * w[o][i] over i, t after t; x in float32. Addresses of rows."""
    sums = [b.variable(VECTOR, b.zeros()) for _ in x for _ in w]

    def add(terms: list[Value], weights: list[Value]) -> None:
        for place, variable in enumerate(sums):
            t, o = divmod(place, len(w))
            b.set(variable, b.fma(terms[t], weights[o], b.get(variable)))

    if form.coded and not wide_registers():
        return b.sums(_sums_in_halves(b, form, x, w, inputs))
    if form.coded:
        with b.loop(ADDRESS(0), b.over(inputs, form.group)) as group:
            readers = [GroupReader(b, form, row, group) for row in w]
            start = b.times(group, 4 * form.group)
            for place in range(form.group // LANES):
                terms = [b.read_floats(b.add(row, start, 4 * LANES * place)) for row in x]
                add(terms, [reader.values(place) for reader in readers])
        return b.sums([b.get(variable) for variable in sums])
    nbytes, read = (4, b.read_floats) if form.kind == "float32" else (2, b.read_halves)
    whole = b.over(inputs, LANES)
    with b.loop(ADDRESS(0), whole) as step:
        terms = [b.read_floats(b.add(row, b.times(step, 4 * LANES))) for row in x]
        add(terms, [read(b.add(row.values, b.times(step, nbytes * LANES))) for row in w])
    totals = [b.variable(FLOAT, total) for total in b.sums([b.get(variable) for variable in sums])]
    with b.loop(b.times(whole, LANES), inputs) as place:
        left = [scalar(b, b.add(row, b.times(place, 4)), "float32") for row in x]
        weights = [scalar(b, b.add(row.values, b.times(place, nbytes)), form.kind) for row in w]
        for number, variable in enumerate(totals):
            t, o = divmod(number, len(w))
            b.set(variable, b.fma(left[t], weights[o], b.get(variable)))
    return [b.get(variable) for variable in totals]


def _sums_in_halves(b: Builder, form: Form, x: list[Value], w: list[Row], inputs: Value) -> list[Value]:
    """The sixteen lanes of each sum for codes, where a register has eight of them and there are few: a group of one row
    of w after the other, lanes 0 to 7 and then the others, so that little is held beside the sums."""
    half = LANES // 2
    halved, words, raw = (ir.VectorType(kind, half) for kind in (FLOAT, WORD, BYTE))
    sums = [[b.variable(halved, ir.Constant(halved, [0.0] * half)) for _ in range(2)] for _ in x for _ in w]
    pieces, four = form.group // LANES, form.kind == "codes4"
    with b.loop(ADDRESS(0), b.over(inputs, form.group)) as group:
        start = b.times(group, 4 * form.group)
        for o, row in enumerate(w):
            pair = b.times(row.pair_step, group)
            step, least = (b.splat(scalar(b, b.add(at, pair), form.pair), half) for at in (row.scale, row.zero))
            codes = b.add(row.values, b.times(group, form.group // (2 if four else 1)))
            if row.ahead is not None:
                b.fetch_ahead(b.add(codes, row.ahead))
            for lanes in range(2):
                held = [
                    b.llvm.zext(b.read(b.add(codes, LANES * place + half * lanes), raw, 1), words)
                    for place in range(pieces // 2 if four else pieces)
                ]
                if four:
                    low, high = (ir.Constant(words, [value] * half) for value in (15, 4))
                    held = [b.llvm.and_(part, low) for part in held] + [b.llvm.lshr(part, high) for part in held]
                for place, part in enumerate(held):
                    value = b.fma(b.llvm.sitofp(part, halved), step, least)
                    for t, numbers in enumerate(x):
                        term = b.read(b.add(numbers, start, 4 * (LANES * place + half * lanes)), halved, 4)
                        variable = sums[t * len(w) + o][lanes]
                        b.set(variable, b.fma(term, value, b.get(variable)))
    return [b.shuffle(b.get(low), b.get(high), range(LANES)) for low, high in sums]


def product_tile(form: Form, rows: int, outputs: int) -> Any:
    """A function of numba's: out[t, o] (+)= sum of x[t, i] * w[o, i] + bias[o], for so many t and o.

    (x, x_pitch, w, w_pitch, scale, zero, pair_pitch, pair_step, inputs, out, out_pitch, bias, add): addresses, and
    distances in bytes between rows, and between groups; without a bias its address is 0.
    """

    @intrinsic
    def tile(
        _: Any, x: Any, x_pitch: Any, w: Any, w_pitch: Any, scale: Any, zero: Any, pair_pitch: Any, pair_step: Any,
        inputs: Any, out: Any, out_pitch: Any, bias: Any, add: Any,
    ) -> Any:  # fmt: skip
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _append_tile(Builder(builder), form, (rows, outputs), args)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 13), build

    return tile


def _append_tile(b: Builder, form: Form, shape: tuple[int, int], args: Any) -> None:
    x, x_pitch, w, w_pitch, scale, zero, pair_pitch, pair_step, inputs, out, out_pitch, bias, add = args
    rows, outputs = shape
    of_w, ahead = [], b.times(w_pitch, outputs)
    for o in range(outputs):
        pair = b.times(pair_pitch, o)
        of_w.append(Row(b.add(w, b.times(w_pitch, o)), b.add(scale, pair), b.add(zero, pair), pair_step, ahead))
    found = add_products(b, form, [b.add(x, b.times(x_pitch, t)) for t in range(rows)], of_w, inputs)
    write_tile(b, found, outputs, (out, out_pitch, bias, add))


def write_tile(b: Builder, found: list[Value], outputs: int, args: Any) -> None:
    """Let sums of rows of x with `outputs` rows of w each lie at `out`, with what `add` and `bias` ask for added."""
    out, out_pitch, bias, add = args
    adds, biased = (b.llvm.icmp_signed("!=", value, ADDRESS(0)) for value in (add, bias))
    targets = [b.add(out, b.times(out_pitch, t), 4 * o) for t in range(len(found) // outputs) for o in range(outputs)]
    kept = [b.variable(FLOAT, value) for value in found]
    with b.llvm.if_then(adds):
        for target, place in zip(targets, kept, strict=True):
            b.set(place, b.llvm.fadd(b.read(target, FLOAT, 4), b.get(place)))
    with b.llvm.if_then(biased):
        each = [b.read(b.add(bias, 4 * o), FLOAT, 4) for o in range(outputs)]
        for number, place in enumerate(kept):
            b.set(place, b.llvm.fadd(b.get(place), each[number % outputs]))
    for target, place in zip(targets, kept, strict=True):
        b.write(target, b.get(place), 4)
