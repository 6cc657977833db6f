"""Changes the basis of attention so that 4-bit keys and values lose least; it knows no file and no codes.

1. Why it may. Keys are multiplied with queries only, and values with the output matrix W only. So for every head, with
   any invertible M and A and any shifts, attention computes the same with

       q' = M^-T q       k' = M (k - shift)
       W' = W A^-1       v' = A (v - shift)

   Shifting all keys adds the same number to all scores of a query, which softmax ignores. Probabilities add up to 1, so
   shifting all values shifts the output by a constant, which the output's bias takes up.
2. Which basis. The error of a 4-bit group is spread evenly over its elements. Its cost is the square of the group's
   range, times the trace of the second moments of q (for keys) or of W^T W (for values). The product of the traces of
   the two sides is least where both are the same diagonal matrix: the *balanced* basis (Moore, 1981, for linear
   systems; computed as in Laub et al., 1987).
3. Which rotation. A rotation changes no trace. One by a Hadamard matrix gives all elements of k' and v' the same
   variance, so that no single channel sets the range of its group (for weights: Tseng et al., *QuIP#*, 2024).
"""

from dataclasses import dataclass

import numpy as np

from flexref.calibration.quant_calibrated import Moments
from flexref.storage.quant import Array

DAMPING = 1e-3
"""This share of a diagonal's mean is added to it, so that directions which the sample has not seen count as well."""


@dataclass(frozen=True, slots=True)
class AttentionMaps:
    """A layer's attention: `qkv` (3 H D, E), rows of queries, keys, values in this order; `out` (E, H D); biases."""

    qkv: Array
    qkv_bias: Array | None
    out: Array
    out_bias: Array | None


@dataclass(frozen=True, slots=True)
class Rebased:
    """Attention in the new basis. An input x (H, D) of `out` becomes turns (H, D, D) times (x - shifts), (H, D)."""

    maps: AttentionMaps
    turns: Array
    shifts: Array

    def moments(self, before: Moments) -> Moments:
        """The moments of the inputs of `out` in the new basis, from those in the old one."""
        heads, width = self.shifts.shape
        turns, mean = self.turns.astype(np.float32), (before.mean - self.shifts.ravel()).reshape(heads, width, 1)
        half = turns @ before.covariance.reshape(heads, width, -1)
        covariance = turns @ half.reshape(heads * width, -1).T.reshape(heads, width, -1)
        return Moments((turns @ mean).ravel().astype(np.float32), covariance.reshape(heads * width, -1))


def rebased(maps: AttentionMaps, inputs: Moments, heads: int) -> Rebased:
    """`maps` in the balanced basis of every head, in float32; `inputs`: the moments of what `qkv` is multiplied with.

    Keys and values keep their size. Without biases nothing is shifted, and the moments must be about 0.
    """
    width = len(maps.qkv) // 3 // heads
    qkv, out = maps.qkv.reshape(3, heads, width, -1).copy(), maps.out.reshape(-1, heads, width).copy()
    centres = (maps.qkv @ inputs.mean).reshape(3, heads, width)
    biases = np.zeros_like(centres) if maps.qkv_bias is None else maps.qkv_bias.reshape(3, heads, width)
    means, turns = centres + biases, np.empty((heads, width, width))
    moved = np.stack((biases[0], -centres[1], -centres[2]))
    for head in range(heads):
        query, key, value = (_spread(weight, inputs.covariance) for weight in qkv[:, head])
        query += np.outer(means[0, head], means[0, head])
        on_key = balanced(key, query)
        on_value = turns[head] = balanced(value, _spread(out[:, head].T))
        for part, turn in enumerate((np.linalg.inv(on_key).T, on_key, on_value)):
            qkv[part, head], moved[part, head] = turn @ qkv[part, head], turn @ moved[part, head]
        out[:, head] = out[:, head] @ np.linalg.inv(on_value)
    found = AttentionMaps(
        qkv.reshape(maps.qkv.shape),
        None if maps.qkv_bias is None else moved.ravel(),
        out.reshape(maps.out.shape),
        None if maps.out_bias is None else maps.out_bias + maps.out @ means[2].ravel(),
    )
    return Rebased(found, turns, means[2])


def balanced(stored: Array, other: Array) -> Array:
    """The M (D, D) for which M stored M^T and M^-T other M^-1 are equal, up to a factor; both given as (D, D).

    `stored` keeps its trace. All its elements then have the same variance; nearly, where D is not a power of two.
    Raises `numpy.linalg.LinAlgError` for matrices that are not positive definite after damping.
    """
    stored, other = _damped(stored), _damped(other)
    lower, other_lower = np.linalg.cholesky(stored), np.linalg.cholesky(other)
    left, spread, _ = np.linalg.svd(other_lower.T @ lower)
    turn: Array = (left / np.sqrt(spread)).T @ other_lower.T  # M S M^T = M^-T O M^-1 = diag(spread)
    scale = np.sqrt(np.trace(stored) / spread.sum())
    return scale * (even_rotation(len(stored)) @ turn)  # type: ignore[no-any-return]


def even_rotation(width: int) -> Array:
    """An orthogonal matrix (D, D) that mixes all elements: a Hadamard matrix, times Hartley's for an odd part."""
    halvings, rest = 0, width
    while rest % 2 == 0:
        halvings, rest = halvings + 1, rest // 2
    angles = 2 * np.pi * np.outer(np.arange(rest), np.arange(rest)) / rest
    mixed = np.cos(angles) + np.sin(angles)
    for _ in range(halvings):
        mixed = np.block([[mixed, mixed], [mixed, -mixed]])
    return mixed / np.sqrt(width)  # type: ignore[no-any-return]


def _spread(weight: Array, covariance: Array | None = None) -> Array:
    """Second moments (D, D) in float64 of weight (D, I) times inputs whose own are `covariance`; None: the identity."""
    through = weight if covariance is None else weight @ covariance
    return (through @ weight.T).astype(np.float64)  # type: ignore[no-any-return]


def _damped(spread: Array) -> Array:
    """Second moments with `DAMPING` of their mean diagonal added to it."""
    mean = max(float(np.trace(spread)) / len(spread), float(np.finfo(np.float32).tiny))
    damped: Array = spread + DAMPING * mean * np.eye(len(spread))
    return damped
