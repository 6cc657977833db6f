"""Products x w^T as functions of numba's: straight from how w is stored, or expanded block by block for many rows of x,
where registers are narrow in `panels`.

Both give the same bits (see `tiles`), and so do tiles of any shape: which is used is a matter of speed alone.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from flexref_numba.kernels.numbers import expand_row, inner, moved
from flexref_numba.kernels.panels import panel_outputs, panel_scratch_bytes, panels
from flexref_numba.kernels.tiles import FLOATS, Form, product_tile
from flexref_numba.kernels.vectors import LANES, wide_registers

FEW_TOKENS = 16
"""Up to so many rows of x a matrix is read as it is stored; for more its rows are expanded first."""

PANEL_TOKENS = {"codes": 4, "numbers": 8}
"""From so many rows of x on those of w are worth packing in panels."""

BLOCK_FLOATS = 1 << 16
"""Bounds rows of w that are expanded at once, and rows of x that meet them, so that both stay in a core's cache."""

DIRECT_GROUPS = (64,)
"""Lengths of groups that are multiplied as they are stored."""


class Tiles(NamedTuple):
    """Rows of x in the tallest product, and rows of w in it, in one of two rows and in one of a single row.

    Sums stay in registers: a processor without AVX-512 has a quarter of the room.
    """

    rows: int
    outputs: int
    of_two: int
    of_one: int


@cache
def tiles_of(form: Form) -> Tiles:
    """What the processor has registers for."""
    if not wide_registers():
        return Tiles(2, 2, 2, 2)
    return Tiles(4, 4, 4, 4) if form.coded else Tiles(4, 6 if form == FLOATS else 4, 6, 8)


@cache
def direct_form(form: Form, inputs: int) -> bool:
    """Whether a matrix of that form is multiplied as it is stored."""
    return not form.coded or (form.group in DIRECT_GROUPS and form.pair == "float16" and inputs % form.group == 0)


@cache
def block_outputs(inputs: int, paneled: bool) -> int:
    """Rows of w that are expanded or packed at once."""
    if paneled:
        return panel_outputs(inputs)
    step = tiles_of(FLOATS).outputs
    return max(1, BLOCK_FLOATS // max(1, inputs) // step) * step


def scratch_bytes(inputs: int, paneled: bool) -> int:
    """What a product needs on each thread."""
    in_rows = 4 * inputs * block_outputs(inputs, paneled)
    return max(in_rows, panel_scratch_bytes(inputs)) if paneled else in_rows


def _block(form: Form) -> Any:
    """A function of numba's: a product with some rows of w; for a row of w all rows of x before the next one.

    held: float32 for scales and zeros of as many rows of w as are in a tile, group after group; numbers need none. In
    memory a half takes four instructions of each group, a float32 none of its own.
    """
    tall, outputs, of_two, of_one = shape = tiles_of(form)
    in_tiles, coded, wide, most = form._replace(pair="float32"), form.coded, moved("float16", "float32"), max(shape[1:])
    largest, two = product_tile(in_tiles, tall, outputs), product_tile(in_tiles, 2, of_two)
    single, one = product_tile(in_tiles, 1, of_one), product_tile(in_tiles, 1, 1)

    @inner
    def block(
        x, x_pitch, tokens, w, w_pitch, scale, zero, pair_pitch, groups, inputs, count, out, out_pitch, bias, add, held
    ):  # fmt: skip
        pitch, token = 4 * groups, 0
        s, z = held, held + pitch * most
        while token < tokens:
            rows, at_once, last = tall, outputs, token + (tokens - token) // tall * tall
            if last == token:
                rows, at_once, last = (2, of_two, token + 2) if token + 2 <= tokens else (1, of_one, token + 1)
            o = 0
            while o < count:
                b, at = w + o * w_pitch, 4 * o
                beside, some = bias + at if bias else 0, at_once if o + at_once <= count else 1
                runs, length = (1, some * groups) if pair_pitch == 2 * groups else (some, groups)
                for run in range(runs if coded else 0):
                    wide(scale + (o + run) * pair_pitch, length, s + run * pitch)
                    wide(zero + (o + run) * pair_pitch, length, z + run * pitch)
                if some == at_once:
                    for t in range(token, last, rows):
                        p, q = x + t * x_pitch, out + t * out_pitch + at
                        if rows == tall:
                            largest(p, x_pitch, b, w_pitch, s, z, pitch, 4, inputs, q, out_pitch, beside, add)
                        elif rows == 2:
                            two(p, x_pitch, b, w_pitch, s, z, pitch, 4, inputs, q, out_pitch, beside, add)
                        else:
                            single(p, x_pitch, b, w_pitch, s, z, pitch, 4, inputs, q, out_pitch, beside, add)
                else:
                    for t in range(token, last):
                        p, q = x + t * x_pitch, out + t * out_pitch + at
                        one(p, x_pitch, b, w_pitch, s, z, pitch, 4, inputs, q, out_pitch, beside, add)
                o += some
            token = last

    return block


def make_product(form: Form, direct: bool, paneled: bool) -> Callable[..., Any]:
    """out (T, O) (+)= x (T, I) w (O, I)^T + bias, of rows `first` to `last` of w, which have groups of `group`.

    paneled: whether several rows of x meet those of w in `panels`.
    """
    expanded, as_floats, in_panels = expand_row(form), _block(FLOATS), panels(form)
    stored = _block(form) if direct else as_floats
    packs_from = PANEL_TOKENS["codes" if form.coded else "numbers"]
    never, always = form == FLOATS, not direct  # what does not occur is not compiled

    def product(
        x, x_pitch, tokens, w, w_pitch, scale, zero, pair_pitch, step, group, inputs, first, last, out, out_pitch,
        bias, add, block, scratch,
    ) -> None:  # fmt: skip
        if paneled and tokens >= packs_from:
            for o in range(first, last, block):
                pair = o * pair_pitch
                in_panels(
                    x, x_pitch, tokens, w + o * w_pitch, w_pitch, scale + pair, zero + pair, pair_pitch, step, group,
                    inputs, min(block, last - o), out + 4 * o, out_pitch, bias + 4 * o if bias else 0, add, scratch,
                )  # fmt: skip
            return
        held_pitch, groups = 4 * inputs, inputs // group if group else 0
        expands = not never and (always or tokens > FEW_TOKENS)
        if tokens <= FEW_TOKENS and not expands:
            block = max(1, last - first)  # a row of w is read once in any case
        some = max(LANES, BLOCK_FLOATS // max(1, inputs) // LANES * LANES)
        for o in range(first, last, block):
            count = min(block, last - o)
            b, s, z = w + o * w_pitch, scale + o * pair_pitch, zero + o * pair_pitch
            if expands:
                for row in range(count):
                    pair = row * pair_pitch
                    expanded(b + row * w_pitch, s + pair, z + pair, step, inputs, group, scratch + row * held_pitch)
            beside = bias + 4 * o if bias else 0
            for token in range(0, tokens, some):
                p, q, n = x + token * x_pitch, out + token * out_pitch + 4 * o, min(some, tokens - token)
                if expands:
                    as_floats(
                        p, x_pitch, n, scratch, held_pitch, 0, 0, 0, 0, inputs, count, q, out_pitch, beside, add, 0
                    )
                else:
                    stored(
                        p, x_pitch, n, b, w_pitch, s, z, pair_pitch, groups, inputs, count, q, out_pitch, beside, add,
                        scratch,
                    )  # fmt: skip

    return product


def make_expand(form: Form) -> Callable[..., Any]:
    """Rows `first` to `last` of w (O, I) as float32 in `out`."""
    expanded = expand_row(form)

    def expand(w, w_pitch, scale, zero, pair_pitch, pair_step, group, inputs, first, last, out, out_pitch) -> None:
        for row in range(first, last):
            pair = row * pair_pitch
            expanded(w + row * w_pitch, scale + pair, zero + pair, pair_step, inputs, group, out + row * out_pitch)

    return expand
