"""Products of some rows on processors with sixteen registers of eight float32 (AVX2); bits are those of `tiles`.

There a tile of sums in sixteen lanes leaves no register to read into. So here the lanes are halved: four rows of x meet
three of w in lanes 0 to 7, which are twelve registers of sums, then in lanes 8 to 15. Sums lie in memory between pieces
of a row, of which those of x fit a core's first cache. No sum knows of all this: each lane adds term after term.

Rows of w are packed first, as float32: three by three, the numbers of lanes 0 to 7 in the order in which they are read,
then those of lanes 8 to 15, then what is left of each row.
"""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from flexref_numba.kernels.numbers import expand_row, fused, inner, peek, poke
from flexref_numba.kernels.tiles import PAIR_BYTES, Form, GroupReader, Row, write_tile
from flexref_numba.kernels.vectors import ADDRESS, FLOAT, LANES, VECTOR, Builder, Value

ROWS, OUTPUTS = 4, 3
"""Rows of x and of w in a tile."""

PIECE = 768
"""Numbers of a row that a tile adds up at most before the next tile has its turn."""

FEW_OUTPUTS, BLOCK_TOKENS = 42, 64
"""Rows of w, of each a piece, and rows of x that they meet before the next piece: with the sums of all of these they
stay in a core's second cache. There is room for twice as many rows of w where no sums wait."""

PACKED_FLOATS = 3 << 16
"""Bounds what is packed at once of long rows."""

HALF = LANES // 2
HALF_BYTES = 4 * HALF
STEP_BYTES = OUTPUTS * HALF_BYTES
"""What half the lanes of a term of all rows of w take."""

HALVED = ir.VectorType(FLOAT, HALF)

SUMS_BYTES = ROWS * OUTPUTS * LANES * 4
"""What the sums of a tile take in memory."""


def packed_bytes(inputs: int) -> int:
    """What OUTPUTS rows of w take that are packed."""
    return 2 * STEP_BYTES * (inputs // LANES + 1)


def panel_outputs(inputs: int) -> int:
    """Rows of w that are packed at once."""
    most = FEW_OUTPUTS if inputs > PIECE else 2 * FEW_OUTPUTS
    return max(OUTPUTS, min(most, PACKED_FLOATS // max(1, inputs) // OUTPUTS * OUTPUTS))


def panel_scratch_bytes(inputs: int) -> int:
    """What a product needs: packed rows of w, sums of all tiles between pieces, and a row that is not packed."""
    tiles = panel_outputs(inputs) // OUTPUTS
    sums = tiles * BLOCK_TOKENS // ROWS if inputs > PIECE else 1
    return tiles * packed_bytes(inputs) + sums * SUMS_BYTES + 4 * inputs


# Packing


def pack_row(form: Form) -> Any:
    """A function of numba's: (values, scale, zero, pair_step, inputs, group, target, second, rest, row): a row, packed.

    Its numbers of lanes 0 to 7 lie at `target` and STEP_BYTES on each, the others likewise at `second`, what is left at
    `rest`. A `row` of float32 is for forms that are expanded first.
    """
    if form.coded and form.group and form.group % (2 * LANES) == 0:
        return _pack_groups(form)
    numbers = _pack_numbers("float32" if form.coded else form.kind)
    if not form.coded:

        @inner
        def packed(values, scale, zero, pair_step, inputs, group, target, second, rest, row):
            numbers(values, inputs, target, second, rest)

        return packed
    expanded = expand_row(form)

    @inner
    def packed_after(values, scale, zero, pair_step, inputs, group, target, second, rest, row):
        expanded(values, scale, zero, pair_step, inputs, group, row)
        numbers(row, inputs, target, second, rest)

    return packed_after


def _write_halves(b: Builder, vector: Value, target: Value, second: Value) -> None:
    for first, place in ((0, target), (HALF, second)):
        b.write(place, b.shuffle(vector, vector, range(first, first + HALF)), 4)


def _pack_groups(form: Form) -> Any:
    """`pack_row` of codes in groups whose length the form names, and which divide a row."""

    @intrinsic
    def one(_: Any, values: Any, scale: Any, zero: Any, target: Any, second: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            b, (values, scale, zero, target, second) = Builder(builder), args
            reader = GroupReader(b, form, Row(values, scale, zero, ADDRESS(0)), ADDRESS(0))
            for place in range(form.group // LANES):
                far = STEP_BYTES * place
                _write_halves(b, reader.values(place), b.add(target, far), b.add(second, far))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), build

    group_bytes, pair_bytes = form.group // (2 if form.kind == "codes4" else 1), PAIR_BYTES[form.pair]
    far = STEP_BYTES * (form.group // LANES)

    @inner
    def packed(values, scale, zero, pair_step, inputs, group, target, second, rest, row):
        for number in range(inputs // group):
            pair = pair_bytes * number
            one(values + group_bytes * number, scale + pair, zero + pair, target + far * number, second + far * number)

    return packed


def _pack_numbers(kind: str) -> Any:
    """A function of numba's: (values, inputs, target, second, rest): numbers of a `kind`, packed."""
    nbytes, number, write = 4 if kind == "float32" else 2, peek(kind), poke("float32")

    @intrinsic
    def sixteen(_: Any, values: Any, target: Any, second: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            b = Builder(builder)
            read = b.read_floats if kind == "float32" else b.read_halves
            _write_halves(b, read(args[0]), *args[1:])
            return context.get_dummy_value()

        return types.void(*[types.int64] * 3), build

    @inner
    def packed(values, inputs, target, second, rest):
        steps = inputs // LANES
        for step in range(steps):
            sixteen(values + nbytes * LANES * step, target + STEP_BYTES * step, second + STEP_BYTES * step)
        for place in range(steps * LANES, inputs):
            write(rest + 4 * (place - steps * LANES), number(values + nbytes * place))

    return packed


# Products


@intrinsic
def add_panel(_: Any, x: Any, x_pitch: Any, w: Any, second: Any, steps: Any, held: Any, begun: Any) -> Any:
    """Add 16 * `steps` terms of ROWS rows of x and OUTPUTS packed ones of w to sums at `held`; without `begun` to 0.

    w, second: where numbers of w begin for lanes 0 to 7 and for the others.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _append_panel(Builder(builder), args)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), build


def _append_panel(b: Builder, args: Any) -> None:
    x, x_pitch, w, second, steps, held, begun = args
    continues = b.llvm.icmp_signed("!=", begun, ADDRESS(0))
    for half, packed in enumerate((w, second)):
        places = [b.add(held, HALF_BYTES * (half + 2 * number)) for number in range(ROWS * OUTPUTS)]
        sums = [b.variable(HALVED, ir.Constant(HALVED, [0.0] * HALF)) for _ in places]
        with b.llvm.if_then(continues):
            for place, variable in zip(places, sums, strict=True):
                b.set(variable, b.read(place, HALVED, 4))
        with b.loop(ADDRESS(0), steps) as step:
            at, of_w = b.add(x, b.times(step, 4 * LANES), HALF_BYTES * half), b.add(packed, b.times(step, STEP_BYTES))
            weights = [b.read(b.add(of_w, HALF_BYTES * o), HALVED, 4) for o in range(OUTPUTS)]
            for t in range(ROWS):
                term = b.read(b.add(at, b.times(x_pitch, t)), HALVED, 4)
                for o, weight in enumerate(weights):
                    variable = sums[t * OUTPUTS + o]
                    b.set(variable, b.fma(term, weight, b.get(variable)))
        for place, variable in zip(places, sums, strict=True):
            b.write(place, b.get(variable), 4)


def held_sums(b: Builder, held: Value) -> list[Value]:
    """What the lanes of each sum at `held` add up to."""
    return b.sums([b.read(b.add(held, 4 * LANES * number), VECTOR, 4) for number in range(ROWS * OUTPUTS)])


@intrinsic
def write_panel(_: Any, held: Any, out: Any, out_pitch: Any, bias: Any, add: Any) -> Any:
    """The sums of a tile at `held` as results at `out`."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        b = Builder(builder)
        write_tile(b, held_sums(b, args[0]), OUTPUTS, args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), build


@intrinsic
def add_lanes(_: Any, held: Any) -> Any:
    """Let the sums of a tile at `held` be single numbers, one after the other."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        b = Builder(builder)
        for number, total in enumerate(held_sums(b, args[0])):
            b.write(b.add(args[0], 4 * number), total, 4)
        return context.get_dummy_value()

    return types.void(types.int64), build


def _finish() -> Any:
    """A function of numba's: what a tile gives, of its rows from `first` on, of which `count` outputs are asked for."""
    number, write = peek("float32"), poke("float32")

    @inner
    def finish(x, x_pitch, rest, inputs, held, first, count, out, out_pitch, bias, add):
        left = inputs % LANES
        if first == 0 and count == OUTPUTS and left == 0:
            write_panel(held, out, out_pitch, bias, add)
            return
        add_lanes(held)
        for t in range(first, ROWS):
            for o in range(count):
                total, target = number(held + 4 * (t * OUTPUTS + o)), out + t * out_pitch + 4 * o
                for place in range(left):
                    term = number(x + t * x_pitch + 4 * (inputs - left + place))
                    total = fused(term, number(rest + 4 * (o * LANES + place)), total)
                if add:
                    total = number(target) + total
                if bias:
                    total = total + number(bias + 4 * o)
                write(target, total)

    return finish


def panels(form: Form) -> Any:
    """A function of numba's: out[t, o] (+)= sum of x[t, i] * w[o, i] + bias[o], of ROWS rows of x at least.

    The last tile goes back to have all of its rows, and gives only what none before has given.
    """
    pack, finish = pack_row(form), _finish()

    @inner
    def product(
        x, x_pitch, tokens, w, w_pitch, scale, zero, pair_pitch, pair_step, group, inputs, count, out, out_pitch, bias,
        add, scratch,
    ) -> None:  # fmt: skip
        steps = inputs // LANES
        pieces, half = max(1, (steps * LANES + PIECE - 1) // PIECE), STEP_BYTES * steps
        pitch, tiles = 2 * (half + STEP_BYTES), (count + OUTPUTS - 1) // OUTPUTS
        held = scratch + tiles * pitch
        row = held + (tiles * (BLOCK_TOKENS // ROWS) if pieces > 1 else 1) * SUMS_BYTES
        for o in range(count):
            tile, beside, pair = scratch + o // OUTPUTS * pitch, o % OUTPUTS, o * pair_pitch
            target, rest = tile + HALF_BYTES * beside, tile + 2 * half + 4 * LANES * beside
            pack(w + o * w_pitch, scale + pair, zero + pair, pair_step, inputs, group, target, target + half, rest, row)
        for start in range(0, tokens, BLOCK_TOKENS):
            some = min(BLOCK_TOKENS, tokens - start)
            for piece in range(pieces):
                first, last = steps * piece // pieces, steps * (piece + 1) // pieces
                sums = held
                for token in range(start, start + some, ROWS):
                    t = min(token, tokens - ROWS)
                    p, q = x + t * x_pitch, out + t * out_pitch
                    for o in range(0, count, OUTPUTS):
                        tile = scratch + o // OUTPUTS * pitch
                        at = tile + STEP_BYTES * first
                        add_panel(p + 4 * LANES * first, x_pitch, at, at + half, last - first, sums, piece)
                        if piece == pieces - 1:
                            asked, beside = min(OUTPUTS, count - o), bias + 4 * o if bias else 0
                            finish(
                                p, x_pitch, tile + 2 * half, inputs, sums, token - t, asked, q + 4 * o, out_pitch,
                                beside, add,
                            )  # fmt: skip
                        if pieces > 1:
                            sums += SUMS_BYTES

    return product
