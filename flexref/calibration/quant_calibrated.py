"""Chooses 4-bit groups that make the error of a matrix's products small, for given inputs; it knows no model.

For inputs x of covariance C, a row of weight errors e gives an output an error of variance e C e^T: that is the row's
cost. The rounding of one weight can be corrected in the weights after it (Frantar et al., *GPTQ*, 2023; written as
feedback through a factor of C: Chee et al., *QuIP*, 2023, section 3):

1. C + damping = U D U^T, with U upper triangular and ones on its diagonal.
2. Group by group: w' = w + (errors so far) U. Scale and zero are those of least squares for w', with the diagonal of C
   as weights.
3. Inside a group, weight by weight: w'' = w' + (errors in the group so far) U, rounded to the nearest code.
4. Sweeps of coordinate descent: each weight in turn takes the code that costs least while all others stay.

The groups are stored as any others. Where a row costs more than with `quant_fit`, the row of `quant_fit` is taken.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.storage.quant import LEVELS, Array, Quantized, dequantize, group_count, packed, quantize
from flexref.storage.quant_fit import LeastSquares, quantize_least_squares

DAMPING = 0.01
"""This share of a covariance's mean diagonal is added to it, so that inputs that a small sample lacks count too."""

SWEEPS = 2
"""Sweeps of coordinate descent. Two lower the cost by about 7 %, further ones by hardly anything."""


@dataclass(frozen=True, slots=True)
class Moments:
    """The inputs of a matrix (O, I) on a sample: mean (I,) and covariance about it (I, I), both float32.

    Where the matrix has no bias, nothing can correct a mean error: then the mean is 0, and the covariance is about 0.
    """

    mean: Array
    covariance: Array


class Inputs:
    """Gathers the moments of inputs that come in batches, in the memory of one matrix (I, I)."""

    def __init__(self) -> None:
        self._count = 0
        self._shift, self._sum, self._products = (np.zeros(0, np.float32) for _ in range(3))

    def add(self, x: Array) -> None:
        """Add a batch x (T, I), float32, of at least one row."""
        if not self._count:
            width = x.shape[1]
            self._sum, self._products = np.zeros(width, np.float64), np.zeros((width, width), np.float32)
            self._shift = x.mean(0)  # near the mean, so that subtracting the mean at the end cancels few digits
        centred = x - self._shift
        self._sum += centred.sum(0, np.float64)
        self._products += centred.T @ centred
        self._count += len(x)

    def moments(self, about_mean: bool) -> Moments:
        """The moments of at least one input: about its mean, or about 0."""
        drift = (self._sum / self._count).astype(np.float32)
        mean = self._shift + drift
        covariance = self._products / np.float32(self._count) - np.outer(drift, drift)
        if about_mean:
            return Moments(mean, covariance)
        return Moments(np.zeros_like(mean), covariance + np.outer(mean, mean))


def quantize_calibrated(
    values: Array, moments: Moments, group_size: int, scale_dtype: npt.DTypeLike, what: str
) -> Quantized:
    """Quantize values (O, I) to 4-bit groups so that products with inputs of these moments have small errors.

    No row costs more than with `quantize_least_squares`. Raises `QuantizationError`, which names `what`, where a value
    is not finite or the scale type cannot hold a group.
    """
    plain = quantize_least_squares(values, group_size, scale_dtype, what)
    cost = _damped(moments.covariance)
    search = _CodeSearch(values, cost, group_size, np.dtype(scale_dtype), what)
    search.feed_back(np.maximum(np.diagonal(moments.covariance), 0))
    for _ in range(SWEEPS):
        search.sweep()
    better = search.costs(search.errors) < search.costs((values - dequantize(plain)).T)
    worse = ~better  # a cost that is NaN counts as worse
    found = search.quantized(values.shape[1])
    for mine, other in ((found.codes, plain.codes), (found.scale, plain.scale), (found.zero, plain.zero)):
        mine[worse] = other[worse]
    return found


def _damped(covariance: Array) -> Array:
    """A covariance with `DAMPING` of its mean diagonal added to it."""
    mean = max(float(np.diagonal(covariance).mean()), float(np.finfo(np.float32).tiny))
    damped: Array = covariance + np.float32(DAMPING * mean) * np.eye(len(covariance), dtype=np.float32)
    return damped


def _feedback(cost: Array) -> Array:
    """The U (I, I) of cost = U D U^T: Cholesky's factor, computed from the last input to the first."""
    lower = np.linalg.cholesky(cost[::-1, ::-1].astype(np.float64))
    upper: Array = lower[::-1, ::-1]
    upper = upper / np.diagonal(upper)
    return upper.astype(np.float32)


class _CodeSearch:
    """Codes (I, O), inputs first, their scales and zeros (G, O), and `errors` (I, O): values minus stored values."""

    def __init__(self, values: Array, cost: Array, group_size: int, dtype: np.dtype[Any], what: str) -> None:
        inputs, groups = values.shape[1], group_count(values.shape[1], group_size)
        self._values = np.ascontiguousarray(values.T, np.float32)
        self._cost, self._size, self._dtype, self._what = cost, group_size, dtype, what
        self._groups = [(first, min(first + group_size, inputs)) for first in range(0, inputs, group_size)]
        self._codes = np.zeros(self._values.shape, np.uint8)
        self._scale, self._zero = (np.zeros((groups, len(values)), dtype) for _ in range(2))
        self.errors: Array = np.zeros_like(self._values)

    def feed_back(self, weights: Array) -> None:
        """Choose groups and codes from the first input to the last, correcting each error in the inputs after it."""
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
        """Round `aim` (O,) to the codes of one input, and return the change (O,) of its errors."""
        scale, zero = self._scale[group].astype(np.float32), self._zero[group].astype(np.float32)
        steps = (aim - zero) / np.where(scale > 0, scale, np.float32(np.inf))
        codes = np.clip(np.rint(steps), 0, LEVELS)
        errors = self._values[place] - (codes * scale + zero)
        change = errors - self.errors[place]
        self._codes[place], self.errors[place] = codes, errors
        return change  # type: ignore[no-any-return]

    def sweep(self) -> None:
        """For every input in turn, choose the codes that cost least while all others stay."""
        pulls = self._cost @ self.errors  # half the gradient of the costs, (I, O)
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
        """The cost (O,) of every row, for errors (I, O)."""
        found: Array = np.einsum("io,io->o", errors, self._cost @ errors)
        return found

    def quantized(self, width: int) -> Quantized:
        """The groups as they are stored."""
        codes = packed(np.ascontiguousarray(self._codes.T), self._size, 4)
        return Quantized(codes, self._scale.T.copy(), self._zero.T.copy(), width, self._size)
