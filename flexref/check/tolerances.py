"""Computes how far a correct operator may be from its exact result, from the arithmetic alone; it knows no port.

Rules and notation are those of Higham, *Accuracy and Stability of Numerical Algorithms* (2nd edition, 2002):
- One operation: fl(a op b) = (a op b)(1 + d) + t, with |d| <= u and |t| <= tiny (equations 2.4 and 2.8). u is the unit
  roundoff, and t allows for underflow.
- A product of n factors (1 + d) differs from 1 by at most gamma_n = n u / (1 - n u) (lemma 3.1).
- A sum of n terms, in *any* order, is off by at most gamma_(n-1) times the sum of their magnitudes (section 4.2). So no
  bound depends on the order in which a port sums.

A port must sum in float32 or wider, whatever the type of its activations, and round to that type when it stores a
result. Every function here takes exact operands in float64 and returns the largest permitted |error|, elementwise.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]

Numbers = npt.NDArray[np.float64]

FUNCTION_ULPS = 4
"""Largest error of an elementary function (exp, tanh ...), in units in the last place. numpy's vector code promises 4
for float32; the CUDA programming guide 2 for expf, tanhf, erff, rsqrtf, and division without `-prec-div`."""

KEYS_PER_RESCALE = 16
"""An online softmax may rescale its sums once per tile of at least 16 keys, and once more at the end."""

Witness = Callable[[Values, Numbers, Numbers], None]

WITNESS: ContextVar[Witness | None] = ContextVar("flexref_witness", default=None)
"""Who hears, in this context, of everything that is compared: what was found, what is needed, and the bound."""


@dataclass(frozen=True, slots=True)
class Precision:
    """A floating-point type: its unit roundoff, the most that underflow may cost a result, its largest value."""

    unit: float
    tiny: float
    largest: float


FLOAT64 = Precision(2.0**-53, 2.0**-1022, float(np.finfo(np.float64).max))
FLOAT32 = Precision(2.0**-24, 2.0**-126, float(np.finfo(np.float32).max))
"""A result below the smallest normal number may become 0, as on GPUs and in fast modes."""

FLOAT16 = Precision(2.0**-11, 2.0**-25, 65504.0)
"""Conversions to float16 keep subnormal numbers everywhere, so underflow costs no more than a rounding."""

BFLOAT16 = Precision(2.0**-8, 2.0**-126, 255 * 2.0**120)
"""Whether its subnormal numbers are kept differs from device to device."""

PRECISIONS = {"float64": FLOAT64, "float32": FLOAT32, "float16": FLOAT16, "bfloat16": BFLOAT16}


def gamma(terms: int, precision: Precision) -> float:
    """gamma_n = n u / (1 - n u) (Higham, lemma 3.1); infinite where n u reaches 1."""
    share = terms * precision.unit
    return share / (1 - share) if share < 1 else float("inf")


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How a port computes: the type in which it sums (`accumulator`), and that of its activations (`stored`)."""

    accumulator: Precision
    stored: Precision

    def sums(self, terms: int) -> float:
        """Relative error of a sum of `terms` products, plus that of the reference, which sums in float64."""
        return gamma(terms, self.accumulator) + gamma(terms, FLOAT64)

    def storing(self, values: Numbers, roundings: int = 1) -> Numbers:
        """Error of rounding results of magnitude `values` to the stored type, `roundings` times in a row."""
        return gamma(roundings, self.stored) * np.abs(values) + roundings * self.stored.tiny


def arithmetic(compute_dtype: str) -> Arithmetic:
    """The least accurate arithmetic that a port with activations of `compute_dtype` may have."""
    return Arithmetic(FLOAT32, PRECISIONS[compute_dtype])


@dataclass(frozen=True, slots=True)
class Operand:
    """An array that an operator reads: exact `values`, and how far a port's copy of each may be off (`error`).

    `magnitude` is what an element adds to a sum of magnitudes: |value|, or |code * scale| + |zero|, since a port may
    sum these two apart.
    """

    values: Numbers
    magnitude: Numbers
    error: Numbers


def exact(values: npt.NDArray[Any]) -> Operand:
    """An operand that a port reads as it is, without rounding."""
    wide = np.asarray(values, np.float64)
    return Operand(wide, np.abs(wide), np.zeros_like(wide))


def converted(values: npt.NDArray[Any], how: Arithmetic) -> Operand:
    """An operand that a port may round to the type of its activations first; exact where that type can hold it."""
    wide = np.asarray(values, np.float64)
    fits = PRECISIONS[str(values.dtype)].unit >= how.stored.unit
    return exact(values) if fits else Operand(wide, np.abs(wide), how.storing(wide))


def expanded(coded: Numbers, zero: Numbers, how: Arithmetic) -> Operand:
    """An operand stored in groups, of value coded + zero with coded = code * scale.

    A port computes one product and one sum, and rounds once to the stored type.
    """
    magnitude = np.abs(coded) + np.abs(zero)
    error = how.sums(2) * magnitude + 2 * how.accumulator.tiny
    return Operand(coded + zero, magnitude, error + how.storing(magnitude + error))


def linear_bound(x: Operand, w: Operand, addends: Numbers, count: int, how: Arithmetic) -> Numbers:
    """x (T, I), w (O, I) -> the error (T, O) of x w^T plus `count` addends, whose magnitudes sum to `addends` (T, O).

    An inner product is off by gamma_n sum |x||w| (Higham, equation 3.5), and by more where x or w are inexact. Every
    product, and every subnormal operand, may become 0: tiny (|x| + |w| + 1) each. Every addend adds a rounding.
    """
    inputs, tiny = x.values.shape[-1], how.accumulator.tiny
    x_most, w_most = x.magnitude + x.error, w.magnitude + w.error
    terms = x_most @ w_most.T
    error = how.sums(inputs) * terms
    if x.error.any():
        error += x.error @ w_most.T
    if w.error.any():
        error += x_most @ w.error.T
    error += tiny * (x_most.sum(-1)[..., None] + w_most.sum(-1) + inputs)
    whole = np.abs(x.values @ w.values.T) + addends + error
    return error + how.storing(whole, 1 + count)


def layer_norm_bound(x: Numbers, w: Numbers, b: Numbers, epsilon: float, how: Arithmetic) -> Numbers:
    """x (..., E), w and b (E,) -> the error of (x - mean) / sqrt(var + epsilon) * w + b, for any stable algorithm.

    The mean is off by gamma_n mean |x| (Higham, section 4.2). The variance's error follows from that of the centred
    values in the sum of squares: two passes (Higham, section 1.9), or the updates of Welford or Chan, whose error is of
    the same order n u sqrt(1 + mean^2 / var). The textbook formula E[x^2] - mean^2 is not within it. The error of the
    root is taken at both ends of the interval in which the variance lies.
    """
    width, unit, tiny = x.shape[-1], how.accumulator.unit, how.accumulator.tiny
    centred = x - x.mean(-1, keepdims=True)
    mean_error = how.sums(width) * np.abs(x).mean(-1, keepdims=True) + 2 * tiny
    centred_error = mean_error + unit * (np.abs(centred) + mean_error) + tiny
    most = np.abs(centred) + centred_error
    variance = (centred**2).mean(-1, keepdims=True)
    variance_error = (2 * np.abs(centred) * centred_error + centred_error**2).mean(-1, keepdims=True)
    variance_error += how.sums(width + 1) * (most**2).mean(-1, keepdims=True) + 2 * tiny
    root = 1 / np.sqrt(variance + epsilon)
    least = np.maximum(variance - variance_error, 0) + epsilon * (1 - unit)
    greatest = variance + variance_error + epsilon * (1 + unit)
    root_error = np.maximum(1 / np.sqrt(least) - root, root - 1 / np.sqrt(greatest))
    # One sum under the root, the root and the quotient, each as good as an elementary function.
    root_error += how.sums(1 + 4 * FUNCTION_ULPS) * (root + root_error) + tiny
    error = centred_error * (root + root_error) + np.abs(centred) * root_error
    whole = most * (root + root_error) * np.abs(w) + np.abs(b)
    total: Numbers = error * np.abs(w) + how.sums(4) * whole + 3 * tiny * (1 + np.abs(w)) + how.storing(whole)
    return total


def activation_bound(x: Numbers, y: Numbers, activation: str, how: Arithmetic) -> Numbers:
    """x -> the error of y = activation(x), elementwise; relu is exact.

    gelu, its tanh form, silu and quick_gelu are x g(z), with a gate g in [0, 1]; sigmoid is the gate alone. z is
    rounded several times, and a relative error of z moves g by at most max |z g'(z)|, which is below 0.25 for all of
    them, times that error. g itself is an elementary function, a sum and a product. So the error is a multiple of |x|
    and not of |y|: for large negative x the sum in g cancels, in PyTorch too.
    """
    if activation == "relu":
        return np.zeros_like(x)
    function = how.sums(2 * FUNCTION_ULPS)
    if activation == "tanh":
        error = (0.5 * how.sums(2) + function) * np.abs(y) + how.accumulator.tiny
    else:
        argument_roundings = 8  # x (1 + 0.044715 x^2) sqrt(2 / pi), each factor rounded: the longest of them
        gate_error = 0.25 * how.sums(argument_roundings) + function + how.sums(3) + 3 * how.accumulator.tiny
        factor = np.ones_like(x) if activation == "sigmoid" else np.abs(x)
        error = factor * gate_error + how.sums(1) * np.abs(y) + how.accumulator.tiny
    return error + how.storing(np.abs(y) + error)


def attention_bound(q: Operand, k: Operand, v: Operand, past: int, scale: float, how: Arithmetic) -> Numbers:
    """One row's q (S, H, D), k and v (past + S, H, D) -> the error (S, H, D) of causal attention.

    1. The score of key j is a scaled inner product, off by e_j <= gamma_(D+2) |scale| sum |q||k|.
    2. Its exp is off by a factor between exp(-h_j) and exp(h_j). h_j is the sum of e_j, of the roundings of the
       argument (also in base 2), of the error of exp, and of the rescalings of an online softmax.
    3. A probability p_j is a quotient of such terms. With a = sum p_j (exp(h_j) - 1) its relative error is at most
       (exp(h_j) - 1 + a) / (1 - a). The error of a common factor, that of the subtracted maximum too, cancels.
    4. Probabilities may be rounded to the stored type. Their sum, and the sum of values weighted with them, are sums of
       T terms (Higham, sections 3.1 and 4.2).
    """
    keys, width = k.values.shape[0], k.values.shape[2]
    unit, tiny = how.accumulator.unit, how.accumulator.tiny
    q_heads, k_heads = (np.moveaxis(part, 1, 0) for part in (q.magnitude + q.error, k.magnitude + k.error))
    error_heads = np.moveaxis(q.error, 1, 0) @ k_heads.transpose(0, 2, 1)
    error_heads = error_heads + q_heads @ np.moveaxis(k.error, 1, 0).transpose(0, 2, 1)
    scores = scale * np.einsum("shd,thd->hst", q.values, k.values)
    score_error = abs(scale) * (how.sums(width + 2) * (q_heads @ k_heads.transpose(0, 2, 1)) + error_heads)
    score_error += tiny * (abs(scale) * (q_heads.sum(-1)[..., None] + k_heads.sum(-1)[:, None]) + width + 1)
    visible = np.arange(keys) <= past + np.arange(q.values.shape[0])[:, None]
    scores = np.where(visible, scores, -np.inf)
    highest = scores.max(-1, keepdims=True)
    probabilities = np.exp(scores - highest)
    probabilities /= probabilities.sum(-1, keepdims=True)
    reach = np.where(visible, highest - scores + 2 * score_error, 0).max(-1, keepdims=True)
    rescales = 2 + keys // KEYS_PER_RESCALE
    exponent_error = np.where(visible, score_error, 0) + 8 * unit * reach
    exponent_error += rescales * how.sums(2 * FUNCTION_ULPS + 2)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        factor = np.expm1(exponent_error)
        common = (probabilities * factor).sum(-1, keepdims=True)
        relative = np.where(common < 1, (factor + common) / (1 - common), np.inf)
        relative += (1 + relative) * (how.sums(keys + 2 * FUNCTION_ULPS + 2) + how.stored.unit)
        relative += (1 + relative) * how.sums(keys)
        lost = visible * (keys * tiny + how.stored.tiny)
        weights = probabilities * relative + (1 + relative) * lost
        error: Numbers = np.einsum("hst,thd->shd", weights, v.magnitude + v.error)
    error += np.einsum("hst,thd->shd", probabilities, v.error) + keys * tiny
    whole = np.einsum("hst,thd->shd", probabilities, v.magnitude) + error
    return error + how.storing(whole)


def assert_within(
    actual: npt.NDArray[Any], expected: Numbers, bound: Numbers, what: str, inputs: tuple[int, ...] = ()
) -> None:
    """Raise `AssertionError` unless |actual - expected| <= bound everywhere, all of one shape.

    The message names `what`, the shape of its `inputs`, the worst element and its error. Raises `ValueError` where a
    bound is not finite, since it would permit anything.
    """
    if not np.isfinite(bound).all():
        raise ValueError(f"{what}: the bound is not finite, so the comparison says nothing")
    if (witness := WITNESS.get()) is not None:
        witness(actual, expected, bound)
    if actual.shape != expected.shape:
        raise AssertionError(f"{what}: shape {actual.shape}, needed {expected.shape}")
    wide = actual.astype(np.float64)
    excess = np.abs(wide - expected) - np.broadcast_to(bound, expected.shape)
    excess = np.where(np.isfinite(wide), excess, np.inf)
    if excess.size and excess.max() > 0:
        at = tuple(int(place) for place in np.unravel_index(int(excess.argmax()), excess.shape))
        permitted = float(np.broadcast_to(bound, expected.shape)[at])
        of = f" (inputs {inputs})" if inputs not in ((), actual.shape) else ""
        is_finite = "" if np.isfinite(wide[at]) else ", which is no finite number"
        raise AssertionError(
            f"{what}: element {at} of {actual.shape}{of} is {wide[at]:.9g}{is_finite}, needed {expected[at]:.9g} "
            f"within {permitted:.3g}: off by {abs(wide[at] - expected[at]):.3g}; "
            f"{int((excess > 0).sum())} of {excess.size} elements are beyond what is permitted"
        )
