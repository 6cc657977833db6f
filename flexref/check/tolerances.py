"""How far a correct port may be from the exact result: bounds computed from the arithmetic; it knows no port.

Notation and rules are those of Higham, *Accuracy and Stability of Numerical Algorithms* (2nd edition, 2002): the
standard model with underflow, fl(a op b) = (a op b)(1 + d) + t with |d| <= u and |t| <= tiny (equations 2.4, 2.8), and
gamma_n = n u / (1 - n u), which bounds the product of n factors (1 + d) (lemma 3.1). A sum of n terms in *any* order
is off by at most gamma_(n-1) times the sum of magnitudes (section 4.2), so no bound here knows an order of summation.

What is asked of a port: it sums in float32 or wider, whatever the type of its activations, and rounds to that type
where it stores. Functions take the exact operands in float64 and return the permitted |error| elementwise.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]

Numbers = npt.NDArray[np.float64]

FUNCTION_ULPS = 4
"""Greatest error of an elementary function in units in the last place: numpy's vector code promises 4 for float32, the
CUDA programming guide 2 for expf, tanhf, erff, rsqrtf and divisions without `-prec-div`."""

KEYS_PER_RESCALE = 16
"""An online softmax may rescale its sums once per so many keys (a tile), and once more at its end."""


@dataclass(frozen=True, slots=True)
class Precision:
    """A floating-point type: `unit` roundoff, and `tiny`, the most that a result may lose to underflow."""

    unit: float
    tiny: float
    largest: float


FLOAT64 = Precision(2.0**-53, 2.0**-1022, float(np.finfo(np.float64).max))
FLOAT32 = Precision(2.0**-24, 2.0**-126, float(np.finfo(np.float32).max))
"""Results below the smallest normal number may be flushed to zero, as GPUs and fast modes do."""

FLOAT16 = Precision(2.0**-11, 2.0**-25, 65504.0)
"""Conversions to float16 keep its subnormal numbers everywhere, so only their rounding is lost."""

PRECISIONS = {"float64": FLOAT64, "float32": FLOAT32, "float16": FLOAT16}


def gamma(terms: int, precision: Precision) -> float:
    """gamma_n = n u / (1 - n u) (Higham, lemma 3.1); infinite where n u reaches 1."""
    share = terms * precision.unit
    return share / (1 - share) if share < 1 else float("inf")


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How a port computes: it sums in `accumulator` and keeps activations in `stored`."""

    accumulator: Precision
    stored: Precision

    def sums(self, terms: int) -> float:
        """Relative error of a sum of `terms` products, the float64 reference's own included."""
        return gamma(terms, self.accumulator) + gamma(terms, FLOAT64)

    def storing(self, values: Numbers, roundings: int = 1) -> Numbers:
        """Error of rounding `values`, a sum of magnitudes, to the stored type `roundings` times."""
        return gamma(roundings, self.stored) * np.abs(values) + roundings * self.stored.tiny


def arithmetic(compute_dtype: str) -> Arithmetic:
    """What the contract asks of a port with activations of `compute_dtype`."""
    return Arithmetic(FLOAT32, PRECISIONS[compute_dtype])


@dataclass(frozen=True, slots=True)
class Operand:
    """What an operator reads: exact `values`, and how far the port's own copy of them may be off, elementwise.

    `magnitude` bounds what is summed for one element: |values|, or |code * scale| + |zero| where a port may fold the
    scale out of the sum.
    """

    values: Numbers
    magnitude: Numbers
    error: Numbers


def exact(values: npt.NDArray[Any]) -> Operand:
    """An operand that the port reads as it is."""
    wide = np.asarray(values, np.float64)
    return Operand(wide, np.abs(wide), np.zeros_like(wide))


def converted(values: npt.NDArray[Any], how: Arithmetic) -> Operand:
    """An operand that the port may first round to the type of its activations; exact where that type is wide enough."""
    wide = np.asarray(values, np.float64)
    fits = PRECISIONS[str(values.dtype)].unit >= how.stored.unit
    return exact(values) if fits else Operand(wide, np.abs(wide), how.storing(wide))


def expanded(coded: Numbers, zero: Numbers, how: Arithmetic) -> Operand:
    """An operand in groups, coded = code * scale: one product, one sum, one rounding to the stored type."""
    magnitude = np.abs(coded) + np.abs(zero)
    error = how.sums(2) * magnitude + 2 * how.accumulator.tiny
    return Operand(coded + zero, magnitude, error + how.storing(magnitude + error))


def linear_bound(x: Operand, w: Operand, addends: Numbers, count: int, how: Arithmetic) -> Numbers:
    """x (T, I) w (O, I) -> the error of x w^T plus `count` addends whose magnitudes sum to `addends`, (T, O).

    Inner product: gamma_n sum |x||w| (Higham, equation 3.5), more for inexact operands; every product, and every
    operand that is subnormal, may be flushed: tiny (|x| + |w| + 1) each. Every addend is one more rounding.
    """
    inputs, tiny = x.values.shape[-1], how.accumulator.tiny
    x_most, w_most = x.magnitude + x.error, w.magnitude + w.error
    terms = x_most @ w_most.T
    error = how.sums(inputs) * terms + x.error @ w_most.T + x_most @ w.error.T
    error += tiny * (x_most.sum(-1)[..., None] + w_most.sum(-1) + inputs)
    whole = np.abs(x.values @ w.values.T) + addends + error
    return error + how.storing(whole, 1 + count)


def layer_norm_bound(x: Numbers, w: Numbers, b: Numbers, epsilon: float, how: Arithmetic) -> Numbers:
    """x (..., E) -> the error of (x - mean) / sqrt(var + epsilon) * w + b, any stable way.

    Mean: gamma_n mean |x| (Higham, section 4.2). Variance: the error of the centred values, inserted into the sum of
    squares (two passes, Higham, section 1.9; Welford's and Chan's updates obey the same order
    n u sqrt(1 + mean^2 / var)). The textbook formula E[x^2] - mean^2 does not. Root: the two ends of the interval in
    which the variance lies.
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
    """x -> the error of y = activation(x), elementwise.

    Gates g(z) in [0, 1] that multiply x: z is off by some roundings, which moves g by at most max |z g'(z)| (0.25 for
    each of them) per unit of relative error; g itself is an elementary function, a sum and a product. So the error is a
    multiple of |x|, not of |y|: for large negative x the sum cancels, in PyTorch too.
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
    """One row: q (S, H, D), k and v (past + S, H, D) -> the error of causal attention (S, H, D).

    A score is an inner product, scaled: off by e_j <= gamma_(D+2) |scale| sum |q||k|. exp of it is off by a factor
    within exp(+-h_j), h_j the sum of e_j, of the roundings of the argument (in base 2 too) and of the function, and of
    the online rescalings. With a = sum p_j (exp(h_j) - 1) the quotient is off by at most (exp(h_j) - 1 + a) / (1 - a),
    relatively: the error of any common factor, the maximum's too, cancels. Probabilities may be rounded to the stored
    type; their sum and the weighted sum of values are sums of T terms (Higham, sections 3.1 and 4.2).
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

    The message names `what`, the shape of its `inputs`, the worst element and by how much. A bound that is not finite
    would pass anything and raises `ValueError`.
    """
    if not np.isfinite(bound).all():
        raise ValueError(f"{what}: the bound is not finite, so the comparison says nothing")
    if actual.shape != expected.shape:
        raise AssertionError(f"{what}: shape {actual.shape}, needed {expected.shape}")
    wide = actual.astype(np.float64)
    excess = np.abs(wide - expected) - np.broadcast_to(bound, expected.shape)
    excess = np.where(np.isfinite(wide), excess, np.inf)
    if excess.size and excess.max() > 0:
        at = tuple(int(place) for place in np.unravel_index(int(excess.argmax()), excess.shape))
        permitted = float(np.broadcast_to(bound, expected.shape)[at])
        raise AssertionError(
            f"{what}: element {at} of {actual.shape} (inputs {inputs or actual.shape}) is {wide[at]:.9g}, needed "
            f"{expected[at]:.9g} within {permitted:.3g}: off by {abs(wide[at] - expected[at]):.3g}; "
            f"{int((excess > 0).sum())} elements are"
        )
