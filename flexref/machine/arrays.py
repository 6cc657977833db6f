"""`Durations` over arrays of sizes: seconds of calls and copies for many candidates at once."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flexref.errors import PolicyError
from flexref.machine.curves import Curve, Surface
from flexref.machine.durations import EXPANDED_FIRST
from flexref.machine.machine import Machine, nearest_attention

Numbers = npt.NDArray[np.float64]
"""One number per candidate (N,), or one for all of them ()."""

ELEMENT_BYTES = {"float16": 2, "float32": 4}
"""Bytes of an element of every type in which a port computes."""


def numbers(value: object) -> Numbers:
    """`value` as numbers."""
    return np.asarray(value, np.float64)


def curve_seconds(curve: Curve, sizes: object) -> Numbers:
    """`Curve.seconds` of every size."""
    wanted, (first, _), (last, last_s) = numbers(sizes), curve.points[0], curve.points[-1]
    log_sizes, log_seconds = np.log(curve.points).T
    between = np.exp(np.interp(np.log(np.maximum(wanted, first)), log_sizes, log_seconds))
    return np.where(wanted <= 0, 0.0, np.where(wanted >= last, last_s * wanted / last, between))


def surface_seconds(surface: Surface, breadth: float, sizes: object) -> Numbers:
    """`Surface.seconds` at one breadth of every size."""
    wanted = numbers(sizes)
    breadths = [at for at, _ in surface.curves]
    if breadth <= 0:
        return np.zeros_like(wanted)
    above = int(np.searchsorted(breadths, breadth, side="right"))
    if above == 0:
        return curve_seconds(surface.curves[0][1], wanted)
    last = curve_seconds(surface.curves[above - 1][1], wanted)
    if above == len(breadths):
        return last * (breadth / breadths[-1])
    low, high = breadths[above - 1 : above + 1]
    weight = np.log(breadth / low) / np.log(high / low)
    after = curve_seconds(surface.curves[above][1], wanted)
    return np.where(wanted > 0, last ** (1 - weight) * after**weight, 0.0)


@dataclass(frozen=True, slots=True)
class ArrayDurations:
    """Seconds of calls and copies on `machine`, each alone on it, as `Durations` has them; sizes are arrays."""

    machine: Machine

    def copy(self, curve: str, nbytes: object) -> Numbers:
        """One copy of so many bytes over a link, or (`WEIGHT_FILE`) from the weight file."""
        return curve_seconds(self.machine.copies[curve], nbytes)

    def linear(self, tokens: object, outputs: float, inputs: float, stored: str) -> Numbers:
        """x (T, I) times w (O, I), stored as a type or in a scheme, with its bias."""
        products, dense = self.machine.products, self.machine.port.compute_dtype
        if stored == EXPANDED_FIRST and stored not in products:
            return self.expand(outputs * inputs, stored, dense) + self.linear(tokens, outputs, inputs, dense)
        if stored not in products:
            raise PolicyError(f"machine {self.machine.name!r} has no products with {stored} weights")
        return surface_seconds(products[stored], outputs * inputs, tokens)

    def expand(self, elements: object, stored: str, compute_dtype: str) -> Numbers:
        """A matrix of so many elements from how it is stored to the compute type; a copy, where both are one."""
        if stored == compute_dtype:
            return self.operator("assign", numbers(elements) * ELEMENT_BYTES[compute_dtype])
        if stored in self.machine.expansions:
            return curve_seconds(self.machine.expansions[stored], elements)
        return self.operator("assign", numbers(elements) * 2)

    def attend_records(self, where: tuple[str, str, int], nbytes: object) -> Numbers:
        """One call over rows of one new token each, which read so many bytes of records."""
        return curve_seconds(nearest_attention(self.machine.decode_attention, *where), nbytes)

    def attend_pairs(self, where: tuple[str, str, int], flops: object) -> Numbers:
        """One call over rows of several new tokens each, which take so many FLOPs."""
        return curve_seconds(nearest_attention(self.machine.prefill_attention, *where), flops)

    def append(self, place: str, scheme: str, nbytes: object) -> Numbers:
        """New records of so many bytes written to a cache."""
        on_host = f"append {scheme} host"
        name = on_host if place == "host" and on_host in self.machine.operators else f"append {scheme}"
        return self.operator(name, nbytes)

    def operator(self, name: str, nbytes: object) -> Numbers:
        """One call of an operator whose time follows from the bytes of its result."""
        if name not in self.machine.operators:
            raise PolicyError(f"machine {self.machine.name!r} has no operator {name!r}")
        return curve_seconds(self.machine.operators[name], nbytes)
