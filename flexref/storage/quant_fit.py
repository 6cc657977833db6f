"""Groups whose scale and zero minimize their squared error: as `quant` lays them out; it knows no file and no model.

The law of `quant` spans a group from its least to its greatest value. A narrower span cuts those two off and rounds all
others more finely, one that is a little wider may round them more luckily, and of all scales and zeros those of least
squares fit a given choice of codes best. So a group's search has two parts:

    over the grid    both ends of its span moved inwards, or a little outwards, each by itself: the best pair of ends
    in turns         codes nearest under scale and zero; scale and zero of least squares under the codes (Lloyd's way,
                     *Least squares quantization in PCM*, 1982); until no group of a block gets better

Scale and zero are rounded to their stored type before they are judged: what is minimized is what is stored. A group
keeps the law's where the search found nothing that is certainly better.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.storage.quant import FLOAT32_ROUNDOFF, LEVELS, Array, Quantized, quantize

ENDS = tuple(round(-0.06 + 0.05 * step, 2) for step in range(7))
"""How far each end of a span moves inwards, as parts of the span: beyond 0.24 hardly any group of a trained model gets
better, and further ends outside it leave codes unused."""

MOST_TURNS = 30
"""Bounds the turns of codes and least squares, which end by themselves after some twenty for groups of 128."""


class LeastSquares:
    """Finds scales and zeros, as a `quant.Chooser`; it holds memory, so every thread needs one of its own."""

    def __init__(self, weights: Array | None = None) -> None:
        """`weights` (n,) of a group's values, where their squared errors do not count alike."""
        self._weights = None if weights is None else weights.astype(np.float32)
        self._floats = np.empty((2, 0), np.float32)

    def __call__(self, values: Array, scale: Array, zero: Array) -> tuple[Array, Array]:
        """Values (n, rows, groups) and the law's scale and zero (rows, groups) -> better ones, of the same type."""
        if self._floats.shape[1] < values.size:
            self._floats = np.empty((2, values.size), np.float32)
        steps, spare = (part[: values.size].reshape(values.shape) for part in self._floats)
        with np.errstate(all="ignore"):  # what overflows is never taken: it compares as not better
            search = _Search(values, scale, zero, steps, spare, self._weights)
            for low in ENDS:
                for high in ENDS:
                    search.try_ends(low, high)
            for _ in range(MOST_TURNS):
                if not search.try_least_squares():
                    break
            return search.certain(values)


class _Search:
    """The best scale and zero so far of every group, in units of the law's: a value is (value - zero) / scale."""

    def __init__(self, values: Array, scale: Array, zero: Array, steps: Array, spare: Array, weights: Any) -> None:
        self._law, self._steps, self._spare, self._weights = (scale, zero), steps, spare, weights
        self._unit = np.where(scale > 0, scale, 1).astype(np.float32)
        self._shift = zero.astype(np.float32)
        np.subtract(values, self._shift, out=steps)
        steps /= self._unit
        self._low, self._span = steps.min(0), np.ptp(steps, axis=0)
        self._total = steps.shape[0] if weights is None else weights.sum()
        self._mean = self._sum(steps) / self._total
        self._scale, self._zero = scale, zero
        self._error = self._error_of(np.ones_like(self._unit), np.zeros_like(self._unit))

    def _sum(self, x: Array, y: Array | None = None) -> Array:
        """Sums (rows, groups) over the values of x, or of x * y, each with its weight."""
        sums: Array
        if self._weights is None:
            sums = x.sum(0) if y is None else np.einsum("nrg,nrg->rg", x, y)
        else:
            operands = (x,) if y is None else (x, y)
            sums = np.einsum(f"n,{','.join(['nrg'] * len(operands))}->rg", self._weights, *operands)
        return sums

    def _codes_of(self, scale: Array, zero: Array) -> Array:
        """The nearest codes, in the spare memory."""
        codes = np.subtract(self._steps, zero, out=self._spare)
        codes *= 1 / scale
        np.rint(codes, out=codes)
        return np.clip(codes, 0, LEVELS, out=codes)

    def _error_of(self, scale: Array, zero: Array) -> Array:
        """The squared error (rows, groups) under the nearest codes; the spare memory holds the errors."""
        errors = self._codes_of(scale, zero)
        errors *= scale
        errors += zero
        errors -= self._steps
        return self._sum(errors, errors)

    def _judge(self, scale: Array, zero: Array) -> bool:
        """Take scale and zero, in the law's units, as they are stored, where they are better; whether any is."""
        stored_scale = (scale * self._unit).astype(self._law[0].dtype)
        stored_zero = (zero * self._unit + self._shift).astype(self._law[1].dtype)
        scale, zero = self._in_units(stored_scale, stored_zero)
        error = self._error_of(scale, zero)
        better = (error < self._error) & (stored_scale > 0)
        self._error = np.where(better, error, self._error)
        self._scale = np.where(better, stored_scale, self._scale)
        self._zero = np.where(better, stored_zero, self._zero)
        return bool(better.any())

    def _in_units(self, scale: Array, zero: Array) -> tuple[Array, Array]:
        return scale.astype(np.float32) / self._unit, (zero.astype(np.float32) - self._shift) / self._unit

    def try_ends(self, low: float, high: float) -> bool:
        """The span with its ends moved inwards by these parts of it."""
        scale = self._span * np.float32((1 - low - high) / LEVELS)
        return self._judge(scale, self._low + np.float32(low) * self._span)

    def try_least_squares(self) -> bool:
        """Scale and zero of least squares under the codes of the best so far."""
        codes = self._codes_of(*self._in_units(self._scale, self._zero))
        mean = self._sum(codes) / self._total
        codes -= mean
        squares = self._sum(codes, codes)
        scale = self._sum(codes, self._steps) / np.where(squares > 0, squares, 1)
        return self._judge(scale, self._mean - scale * mean)

    def certain(self, values: Array) -> tuple[Array, Array]:
        """The best, where no rounding of this judgement can hide that the law is better and the scale type holds it."""
        law, found = (self._stored_error(values, *pair) for pair in (self._law, (self._scale, self._zero)))
        doubt = np.float32(1 + 4 * (len(values) + 8) * FLOAT32_ROUNDOFF)
        largest = float(np.finfo(self._law[0].dtype).max)
        zero = self._zero.astype(np.float64)
        inside = (np.abs(zero) <= largest) & (np.abs(zero + LEVELS * self._scale.astype(np.float64)) <= largest)
        better = inside & (found * doubt < law) & (self._law[0] > 0)
        return np.where(better, self._scale, self._law[0]), np.where(better, self._zero, self._law[1])

    def _stored_error(self, values: Array, scale: Array, zero: Array) -> Array:
        """The squared error of what the stored codes expand to by the operations of `quant`, in the law's units."""
        step, low = scale.astype(np.float32), zero.astype(np.float32)
        found = np.subtract(values, low, out=self._spare)
        found /= np.where(step > 0, step, np.float32(np.inf))
        np.rint(found, out=found)
        np.clip(found, 0, LEVELS, out=found)
        found *= step
        found += low
        found -= values
        found /= self._unit
        return self._sum(found, found)


def quantize_least_squares(values: Array, group_size: int, scale_dtype: npt.DTypeLike, what: str) -> Quantized:
    """`quantize` to 4 bits, with the scale and zero of every group that make its squared error least.

    No group's squared error is larger than by `quantize`; a single value's may be.
    """
    return quantize(values, group_size, scale_dtype, what, choose=LeastSquares())
