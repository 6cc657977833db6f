"""Says what every operator must give on given operands, and how far it may be off; it knows no port.

The contract asks here with random operands, `checked` with those of a running port. An answer is called a law: two
float64 arrays, the exact value and the bound of a port's error, elementwise. `how` is the port's arithmetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from flexref.backend.records import RecordLayout
from flexref.check import reference
from flexref.check.tolerances import (
    FLOAT32,
    FLOAT64,
    FUNCTION_ULPS,
    Arithmetic,
    Numbers,
    Operand,
    Values,
    activation_bound,
    attention_bound,
    converted,
    exact,
    expanded,
    gamma,
    layer_norm_bound,
    linear_bound,
)
from flexref.storage.quant import Quantized, dequantize, quantize

Law = tuple[Numbers, Numbers]
"""(value, bound). The bound is infinite where a port's sums may overflow: nothing can be asked of it there."""


def coded(
    codes: Values, scale: Values, zero: Values, width: int, group_size: int, bits: int = 4
) -> tuple[Values, Values]:
    """(code * scale, zero) of every value, each (..., I) in float64, from the arrays of `storage.quant.Quantized`.

    Codes are unpacked one at a time, exactly as the text in `storage.quant` says, to check faster code against it.
    """
    products = np.zeros((*codes.shape[:-1], width))
    zeros = np.zeros_like(products)
    half = (group_size + 1) // 2
    for place in range(width):
        group, within = divmod(place, group_size)
        size = min(group_size, width - group * group_size)
        low = within < (size + 1) // 2
        if bits == 8:
            code = codes[..., place]
        else:
            packed = codes[..., group * half + (within if low else within - (size + 1) // 2)]
            code = packed & 15 if low else packed >> 4
        products[..., place] = code.astype(np.float64) * scale[..., group].astype(np.float64)
        zeros[..., place] = zero[..., group]
    return products, zeros


def _unless(overflows: npt.NDArray[np.bool_], bound: Numbers) -> Numbers:
    return np.where(overflows, np.inf, bound)


def _lengths(rows: Numbers) -> Numbers:
    """Euclidean lengths along the last axis. An inner product is at most the product of two (Cauchy and Schwarz)."""
    lengths: Numbers = np.sqrt(np.square(rows).sum(-1))
    return lengths


def linear(x: Values, w: Operand, b: Values | None, base: Values | None, how: Arithmetic) -> Law:
    """x (T, I), w (O, I), b (O,) -> x w^T + b, added to `base` (T, O) if there is one: (T, O)."""
    wide = x.astype(np.float64)
    value = reference.linear(wide, w.values, None if b is None else b.astype(np.float64))
    addends, count = np.zeros(value.shape), 0
    for part in (b, base):
        if part is not None:
            addends, count = addends + np.abs(part.astype(np.float64)), count + 1
    bound = linear_bound(exact(x), w, addends, count, how)
    if b is not None:
        bound = bound + converted(b, how).error
    most = _lengths(wide)[:, None] * _lengths(w.magnitude + w.error) + addends
    bound = _unless(most > how.accumulator.largest, bound)
    return (value if base is None else value + base.astype(np.float64)), bound


def matrix(values: Values | Quantized, how: Arithmetic) -> Operand:
    """A matrix (O, I) as a file holds it, and how far a port's copy may be off: converted, or expanded from groups."""
    return expanded(*_groups(values), how) if isinstance(values, Quantized) else converted(values, how)


def dense(values: Values | Quantized) -> Numbers:
    """The numbers that a file holds, in float64: groups are expanded without rounding."""
    if not isinstance(values, Quantized):
        return values.astype(np.float64)
    products, zeros = _groups(values)
    return products + zeros


def _groups(values: Quantized) -> tuple[Numbers, Numbers]:
    """(code * scale, zero) of every value."""
    ones = np.ones_like(values.scale)
    products = dequantize(replace(values, scale=ones, zero=0 * ones)).astype(np.float64)
    scale, zero = (
        np.repeat(part.astype(np.float64), values.group_size, -1)[..., : values.width]
        for part in (values.scale, values.zero)
    )
    products *= scale
    return products, zero


def add_rows(x: Values, rows: Values, how: Arithmetic) -> Law:
    """x (T, E) + rows (T, E) of a table: one rounding of each row to the port's type, and one of the sum."""
    added = converted(rows, how)
    value = x.astype(np.float64) + added.values
    return value, added.error + how.storing(np.abs(value) + added.error)


def layer_norm(x: Values, w: Values | None, b: Values | None, epsilon: float, how: Arithmetic) -> Law:
    """x (T, E) -> (x - mean) / sqrt(var + epsilon) * w + b."""
    wide = x.astype(np.float64)
    gain = np.ones(x.shape[-1]) if w is None else w.astype(np.float64)
    shift = np.zeros(x.shape[-1]) if b is None else b.astype(np.float64)
    bound = layer_norm_bound(wide, gain, shift, epsilon, how)
    squares = np.square(wide).sum(-1, keepdims=True)
    return reference.layer_norm(wide, gain, shift, epsilon), _unless(squares > how.accumulator.largest, bound)


def activate(x: Values, activation: str, how: Arithmetic) -> Law:
    """x -> activation(x), elementwise."""
    wide = x.astype(np.float64)
    value = reference.activate(wide, activation)
    return value, activation_bound(wide, value, activation, how)


def attend(q: Values, k: Operand, v: Operand, scale: float, how: Arithmetic) -> Law:
    """One row: its new tokens' q (S, H, D), all of its tokens' k and v (T, H, D) -> causal attention (S, H, D)."""
    query, past = exact(q), len(k.values) - len(q)
    value = reference.attend(query.values, k.values, v.values, past, scale)
    scores = abs(scale) * _lengths(query.values) * _lengths(k.magnitude + k.error).max(0)
    bound = attention_bound(query, k, v, past, scale, how)
    return value, _unless(scores[..., None] > how.accumulator.largest, bound)


def section(content: Values, layout: RecordLayout, which: int, first: int, last: int) -> tuple[Values, Values | None]:
    """K (`which` 0) or V (1) of tokens first to last, cut out of the bytes of a row's cache: (T, H, ...) each.

    Values and None, or, from a 4-bit cache, packed codes and pairs of scale and zero.
    """
    size = layout.record_bytes
    tokens = content[first * size : last * size].reshape(last - first, size)
    start = which * layout.value_offset
    codes = np.ascontiguousarray(tokens[:, start : start + layout.codes_bytes])
    if not layout.quantized:
        return codes.view(layout.dtype).reshape(last - first, layout.heads, layout.head_width), None
    pairs = tokens[:, start + layout.pairs_offset : start + layout.pairs_offset + layout.pairs_bytes]
    return (
        codes.reshape(last - first, layout.heads, layout.packed_width),
        np.ascontiguousarray(pairs).view(np.float16).reshape(last - first, layout.heads, layout.groups, 2),
    )


def held(content: Values, layout: RecordLayout, which: int, tokens: int, how: Arithmetic) -> Operand:
    """K (`which` 0) or V (1) of a row's first tokens, (T, H, D), as its cache holds them."""
    codes, pairs = section(content, layout, which, 0, tokens)
    if pairs is None:
        return exact(codes)
    return expanded(*coded(codes, pairs[..., 0], pairs[..., 1], layout.head_width, layout.group_size), how)


@dataclass(frozen=True, slots=True)
class Recorded:
    """One kind of numbers in the cache: `what` they are, those found, those needed, and the bound of their error."""

    what: str
    found: Numbers
    value: Numbers
    bound: Numbers


def recorded(content: Values, layout: RecordLayout, which: int, first: int, values: Values) -> Sequence[Recorded]:
    """What `content`, the bytes of a row's cache, holds of K (`which` 0) or V (1) from token `first` on, with its law.

    `values` (S, E) are what was appended. A plain cache must hold just these. A 4-bit cache must hold their groups as
    `storage.quant` makes them, with some room for rounding: zeros are exact; a scale may be the float16 next to the
    right one, since dividing by 15 and multiplying by 1/15 round differently; a code must be the integer nearest to
    (value - zero) / scale, with the scale that the port wrote, and near a tie it may be the other neighbour.
    Raises `QuantizationError` for values that are not finite or have no scale in float16.
    """
    codes, pairs = section(content, layout, which, first, first + len(values))
    name, fresh = "KV"[which], values.reshape(-1, layout.heads, layout.head_width)
    wide = fresh.astype(np.float64)
    if pairs is None:
        return (Recorded(name, codes.astype(np.float64), wide, np.zeros_like(wide)),)
    law = quantize(fresh.astype(np.float32), layout.group_size, np.float16, name)
    scale, zero = pairs[..., 0], pairs[..., 1]
    own_scale, own_zero = (np.where(np.isfinite(part), part, 0) for part in (scale, zero))
    neighbours = np.spacing(np.maximum(own_scale, law.scale)).astype(np.float64)
    groups = np.arange(layout.head_width) // layout.group_size
    step, low = (part.astype(np.float64)[..., groups] for part in (own_scale, own_zero))
    ones = np.ones_like(scale)
    found, _ = coded(codes, ones, ones, layout.head_width, layout.group_size)
    safe = np.where(step > 0, step, 1)
    quotient = np.where(step > 0, np.clip((wide - low) / safe, 0, 15), 0)
    half = np.where(step > 0, 0.5, 0)  # a code at most 0.5 from the quotient is the nearest one, or one of a tie
    slack = np.where(step > 0, 4 * FLOAT32.unit * ((np.abs(wide) + np.abs(low)) / safe + 16), 0)
    return (
        Recorded(f"{name} zeros", zero.astype(np.float64), law.zero.astype(np.float64), np.zeros(zero.shape)),
        Recorded(f"{name} scales", scale.astype(np.float64), law.scale.astype(np.float64), neighbours),
        Recorded(f"{name} codes", found, np.clip(found, quotient - half, quotient + half), slack),
    )


def possible_tokens(
    logits: npt.NDArray[np.float64], temperature: float, top_k: int, top_p: float, uniform: float
) -> set[int]:
    """The tokens that sampling in float32 may choose from logits (V,): one, unless `uniform` is near a border.

    Every token owns an interval of [0, 1) as long as its probability. Rounding of the arguments of exp, of exp and of
    sums moves the borders a little; where `uniform` is that close to one, both neighbours are right.
    """
    if temperature == 0:
        return {int(logits.argmax())}
    ranked = np.lexsort((np.arange(logits.size), -logits))[: top_k or None]
    arguments = (logits[ranked] - logits[ranked[0]]) / temperature
    weights = np.exp(arguments)
    function = gamma(2 * FUNCTION_ULPS, FLOAT32)
    errors = weights * (np.expm1(gamma(3, FLOAT32) * np.minimum(-arguments, 1e3)) + function) + FLOAT32.tiny
    reached = np.cumsum(weights)
    slack = float(2 * (errors.sum() + (gamma(ranked.size, FLOAT32) + gamma(ranked.size, FLOAT64)) * reached[-1]))
    least, most = (
        min(int(np.searchsorted(reached, top_p * reached[-1] + off, side="left")), ranked.size - 1)
        for off in (-slack, slack)
    )
    low, high = uniform * reached[least] - slack, uniform * reached[most] + slack
    before = np.concatenate(([0.0], reached[:-1]))
    taken = (reached[: most + 1] > low) & (before[: most + 1] <= high)
    return {int(token) for token in ranked[: most + 1][taken]}
