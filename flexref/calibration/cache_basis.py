"""Attention in a basis in which 4-bit keys and values lose least, its function unchanged; it knows no file and no code.

Keys meet queries alone, and values the output matrix W alone. With any invertible M and A and any shifts, for a head

    q' = M^-T q       k' = M (k - shift)        a shift of all keys moves a query's scores alike: softmax is blind to it
    W' = W A^-1       v' = A (v - shift)        shares add up to 1: what the shift takes, the output's bias gives back

compute what they did before. A 4-bit group spreads its error evenly over its elements. Of a key it costs the square of
the group's range times the trace of q's second moments; of a value, times that of W^T W. The product of the traces of
both sides is least where both are one diagonal matrix, the *balanced* basis (Moore, 1981, of linear systems; computed
as by Laub et al., 1987). A rotation changes no trace: one by a Hadamard matrix makes all elements of k' and v' vary
alike, so that no channel sets the range for its group (for weights: Tseng et al., *QuIP#*, 2024).
"""

from dataclasses import dataclass

import numpy as np

from flexref.calibration.quant_calibrated import Moments
from flexref.storage.quant import Array

DAMPING = 1e-3
"""Added to the diagonals of second moments, as a part of their mean: what a sample has not seen must count, too."""


@dataclass(frozen=True, slots=True)
class AttentionMaps:
    """A layer's attention: `qkv` (3 H D, E), queries before keys before values, and `out` (E, H D); biases or None."""

    qkv: Array
    qkv_bias: Array | None
    out: Array
    out_bias: Array | None


@dataclass(frozen=True, slots=True)
class Rebased:
    """Maps in the new basis; an input x (H, D) of `out` has become turns (H, D, D) times x - shifts (H, D)."""

    maps: AttentionMaps
    turns: Array
    shifts: Array

    def moments(self, before: Moments) -> Moments:
        """The moments of the inputs of `out`, from those before."""
        heads, width = self.shifts.shape
        turns, mean = self.turns.astype(np.float32), (before.mean - self.shifts.ravel()).reshape(heads, width, 1)
        half = turns @ before.covariance.reshape(heads, width, -1)
        covariance = turns @ half.reshape(heads * width, -1).T.reshape(heads, width, -1)
        return Moments((turns @ mean).ravel().astype(np.float32), covariance.reshape(heads * width, -1))


def rebased(maps: AttentionMaps, inputs: Moments, heads: int) -> Rebased:
    """`maps`, in float32, in the balanced basis of every head, where the inputs of `qkv` have such moments.

    Keys and values stay as large as they are. Without biases nothing is shifted; the moments are about 0 then.
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
    """M (D, D) that takes `stored`, a second-moment matrix (D, D), to the spread to which M^-T takes `other`.

    Up to a factor: the trace of the stored side stays. All elements vary alike (nearly, where D is no power of two).
    """
    stored, other = _damped(stored), _damped(other)
    lower, other_lower = np.linalg.cholesky(stored), np.linalg.cholesky(other)
    left, spread, _ = np.linalg.svd(other_lower.T @ lower)
    turn: Array = (left / np.sqrt(spread)).T @ other_lower.T  # M S M^T = M^-T O M^-1 = diag(spread)
    scale = np.sqrt(np.trace(stored) / spread.sum())
    return scale * (even_rotation(len(stored)) @ turn)  # type: ignore[no-any-return]


def even_rotation(width: int) -> Array:
    """An orthogonal matrix (D, D) that mixes all elements: Hadamard's for a power of two, Hartley's for the rest."""
    halvings, rest = 0, width
    while rest % 2 == 0:
        halvings, rest = halvings + 1, rest // 2
    angles = 2 * np.pi * np.outer(np.arange(rest), np.arange(rest)) / rest
    mixed = np.cos(angles) + np.sin(angles)
    for _ in range(halvings):
        mixed = np.block([[mixed, mixed], [mixed, -mixed]])
    return mixed / np.sqrt(width)  # type: ignore[no-any-return]


def _spread(weight: Array, covariance: Array | None = None) -> Array:
    """Second moments (D, D), in float64, of `weight` (D, I) times inputs of such ones (I, I); None: of all alike."""
    through = weight if covariance is None else weight @ covariance
    return (through @ weight.T).astype(np.float64)  # type: ignore[no-any-return]


def _damped(spread: Array) -> Array:
    mean = max(float(np.trace(spread)) / len(spread), float(np.finfo(np.float32).tiny))
    damped: Array = spread + DAMPING * mean * np.eye(len(spread))
    return damped
