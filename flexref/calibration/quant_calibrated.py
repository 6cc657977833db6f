"""4-bit groups chosen by how a matrix's inputs spread: what counts is the error of its products; it knows no model.

With inputs x of covariance C, an output's row of errors e costs e C e^T, the variance of its error. The rounding of one
weight can be made up for by those after it (Frantar et al., *GPTQ*, 2023; as feedback through a factor of C itself:
Chee et al., *QuIP*, 2023, section 3):

    C + damping = U D U^T, U upper triangular with ones
    group by group: w' = w + (errors so far) U; scale and zero of least squares for w', weighed by the diagonal of C
    inside a group, weight by weight: w'' = w' + (errors in the group so far) U, to the nearest code
    sweeps: each weight in turn to the code that is best beside all others, as they are now (coordinate descent)

Its groups are laid out as any others. A row that this serves worse than `quant_fit` does is taken from there.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.storage.quant import LEVELS, Array, Quantized, dequantize, group_count, packed, quantize
from flexref.storage.quant_fit import LeastSquares, quantize_least_squares

DAMPING = 0.01
"""Added to the diagonal of a covariance, as a part of its mean: what a small sample has not seen must count, too."""

SWEEPS = 2
"""Passes of coordinate descent: they take some 7 % of the cost away, further ones hardly anything."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Inputs of a matrix (O, I) on a sample: their mean (I,), and their covariance (I, I) about it, both float32.

    For a map without a bias the mean is 0, and the covariance is about 0: nothing could take up a shift.
    """

    mean: Array
    covariance: Array


class Inputs:
    """Gathers the moments of inputs that come in batches; memory is one matrix (I, I)."""

    def __init__(self) -> None:
        self._count = 0
        self._shift, self._sum, self._products = (np.zeros(0, np.float32) for _ in range(3))

    def add(self, x: Array) -> None:
        """x (T, I), float32."""
        if not self._count:
            width = x.shape[1]
            self._sum, self._products = np.zeros(width, np.float64), np.zeros((width, width), np.float32)
            self._shift = x.mean(0)  # products about a number near the mean lose nothing when the mean is taken off
        centred = x - self._shift
        self._sum += centred.sum(0, np.float64)
        self._products += centred.T @ centred
        self._count += len(x)

    def moments(self, about_mean: bool) -> Moments:
        """What was gathered of at least one input, about the mean or, if that must not be moved, about 0."""
        drift = (self._sum / self._count).astype(np.float32)
        mean = self._shift + drift
        covariance = self._products / np.float32(self._count) - np.outer(drift, drift)
        if about_mean:
            return Moments(mean, covariance)
        return Moments(np.zeros_like(mean), covariance + np.outer(mean, mean))


def quantize_calibrated(
    values: Array, moments: Moments, group_size: int, scale_dtype: npt.DTypeLike, what: str
) -> Quantized:
    """Values (O, I) in 4-bit groups that make the error of products with such inputs small.

    No output's cost is larger than by `quantize_least_squares`. `QuantizationError` names `what` where a value is not
    finite or the scale type cannot hold a group.
    """
    plain = quantize_least_squares(values, group_size, scale_dtype, what)
    cost = _damped(moments.covariance)
    search = _CodeSearch(values, cost, group_size, np.dtype(scale_dtype), what)
    search.feed_back(np.maximum(np.diagonal(moments.covariance), 0))
    for _ in range(SWEEPS):
        search.sweep()
    better = search.costs(search.errors) < search.costs((values - dequantize(plain)).T)
    worse = ~better  # a cost that is no number is no better, either
    found = search.quantized(values.shape[1])
    for mine, other in ((found.codes, plain.codes), (found.scale, plain.scale), (found.zero, plain.zero)):
        mine[worse] = other[worse]
    return found


def _damped(covariance: Array) -> Array:
    mean = max(float(np.diagonal(covariance).mean()), float(np.finfo(np.float32).tiny))
    damped: Array = covariance + np.float32(DAMPING * mean) * np.eye(len(covariance), dtype=np.float32)
    return damped


def _feedback(cost: Array) -> Array:
    """U (I, I) of cost = U D U^T, upper triangular with ones: Cholesky's factor, from the last input to the first."""
    lower = np.linalg.cholesky(cost[::-1, ::-1].astype(np.float64))
    upper: Array = lower[::-1, ::-1]
    upper = upper / np.diagonal(upper)
    return upper.astype(np.float32)


class _CodeSearch:
    """Codes (I, O), inputs first, with scales and zeros (G, O); `errors` (I, O) are the values less what codes say."""

    def __init__(self, values: Array, cost: Array, group_size: int, dtype: np.dtype[Any], what: str) -> None:
        inputs, groups = values.shape[1], group_count(values.shape[1], group_size)
        self._values = np.ascontiguousarray(values.T, np.float32)
        self._cost, self._size, self._dtype, self._what = cost, group_size, dtype, what
        self._groups = [(first, min(first + group_size, inputs)) for first in range(0, inputs, group_size)]
        self._codes = np.zeros(self._values.shape, np.uint8)
        self._scale, self._zero = (np.zeros((groups, len(values)), dtype) for _ in range(2))
        self.errors: Array = np.zeros_like(self._values)

    def feed_back(self, weights: Array) -> None:
        """Choose groups and codes from the first input to the last; errors are fed forward to later inputs."""
        feedback = _feedback(self._cost)
        for group, (first, last) in enumerate(self._groups):
            aims = self._values[first:last] + feedback[:first, first:last].T @ self.errors[:first]
            chooser = LeastSquares(weights[first:last]) if weights[first:last].any() else LeastSquares()
            found = quantize(aims.T, self._size, self._dtype, self._what, choose=chooser)
            self._scale[group], self._zero[group] = found.scale[:, 0], found.zero[:, 0]
            for place in range(first, last):
                aim = aims[place - first] + feedback[first:place, place] @ self.errors[first:place]
                self._round(group, place, aim)

    def _round(self, group: int, place: int, aim: Array) -> Array:
        """Take the codes nearest to `aim` (O,) for an input; the change of its errors (O,)."""
        scale, zero = self._scale[group].astype(np.float32), self._zero[group].astype(np.float32)
        steps = (aim - zero) / np.where(scale > 0, scale, np.float32(np.inf))
        codes = np.clip(np.rint(steps), 0, LEVELS)
        errors = self._values[place] - (codes * scale + zero)
        change = errors - self.errors[place]
        self._codes[place], self.errors[place] = codes, errors
        return change  # type: ignore[no-any-return]

    def sweep(self) -> None:
        """Take for every input in turn the codes that cost least beside all others."""
        pulls = self._cost @ self.errors  # half the slopes of the costs, (I, O)
        for group, (first, last) in enumerate(self._groups):
            cost, before = self._cost[first:last, first:last], self.errors[first:last].copy()
            for place in range(first, last):
                row = cost[place - first]
                best = self.errors[place] - pulls[place] / row[place - first]
                change = self._round(group, place, self._values[place] - best)
                pulls[first:last] += np.outer(row, change)
            changed = self.errors[first:last] - before
            pulls[:first] += self._cost[:first, first:last] @ changed
            pulls[last:] += self._cost[last:, first:last] @ changed

    def costs(self, errors: Array) -> Array:
        """The cost (O,) of errors (I, O)."""
        found: Array = np.einsum("io,io->o", errors, self._cost @ errors)
        return found

    def quantized(self, width: int) -> Quantized:
        """The groups as they are stored."""
        codes = packed(np.ascontiguousarray(self._codes.T), self._size, 4)
        return Quantized(codes, self._scale.T.copy(), self._zero.T.copy(), width, self._size)
