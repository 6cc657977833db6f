"""Seconds of single calls and copies on a machine, from their shapes: what both planner and simulator are made of.

A size is one number, or an array with one for every candidate; seconds are the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flexref.errors import PolicyError
from flexref.machine.arrays import Size, numbers
from flexref.machine.curves import Curve
from flexref.machine.machine import WEIGHT_FILE, Machine, nearest_attention
from flexref.units import DTYPE_BYTES

DECODE_TOKENS = 1
"""A row that brings so many new tokens reads its cache once; with more it is a prefill, and products set its time."""


EXPANDED_FIRST = "int8"
"""Of products with 8-bit groups machines say nothing that were measured long ago: there it is taken that they are
expanded, and multiplied by the dense matrix."""


@dataclass(frozen=True, slots=True)
class Durations:
    """Seconds of calls and copies on `machine`, each alone on it."""

    machine: Machine

    def copy(self, link: str, nbytes: Size, *, weights: bool = False) -> Size:
        """One copy of `nbytes` over `link`; `weights` from disk come from `WEIGHT_FILE`, a link's name too."""
        name = WEIGHT_FILE if weights and link == "disk->host" else link
        return self.machine.copies[name].seconds(nbytes)

    def linear(self, tokens: Size, outputs: float, inputs: float, stored: str) -> Size:
        """x (T, I) times w (O, I), stored as a type or in a scheme, with its bias."""
        products, elements = self.machine.products, outputs * inputs
        if stored == EXPANDED_FIRST and stored not in products:
            dense = self.linear(tokens, outputs, inputs, self.machine.port.compute_dtype)
            if isinstance(tokens, np.ndarray):
                return self.expand(numbers([elements]), stored) + dense
            return self.expand(elements, stored) + dense
        if stored not in products:
            raise PolicyError(f"machine {self.machine.name!r} has no products with {stored} weights")
        return products[stored].seconds(elements, tokens)

    def expand(self, elements: Size, stored: str) -> Size:
        """A matrix of so many elements from how it is stored to the compute type; a copy, where both are one."""
        dtype = self.machine.port.compute_dtype
        if stored == dtype:
            return self.operator("assign", elements * DTYPE_BYTES[dtype])
        if stored in self.machine.expansions:
            return self.machine.expansions[stored].seconds(elements)
        return self.operator("assign", elements * 2)

    def attend(
        self, where: tuple[str, str, int], heads: int, record_bytes: int, rows: Sequence[tuple[int, int]]
    ) -> float:
        """One call over rows of (past, new) tokens; `where`: place, scheme and head width."""
        return self.attend_sums(where, heads, record_bytes, decoding_records(rows), visible_pairs(rows))

    def attend_sums(
        self, where: tuple[str, str, int], heads: int, record_bytes: int, decoding: int, visible: int
    ) -> float:
        """One call over rows of which `decoding_records` and `visible_pairs` are given.

        The former take the bytes of the records that they read, the latter 4 E FLOPs each (FlexGen, appendix A.3,
        causal).
        """
        head_width, seconds = where[2], 0.0
        if decoding:
            seconds += self.attend_records(where, decoding * record_bytes)
        if visible:
            seconds += self.attend_pairs(where, 4 * heads * head_width * visible)
        return seconds

    def attend_records(self, where: tuple[str, str, int], nbytes: Size) -> Size:
        """One call over rows of one new token each, which read so many bytes of records."""
        return self._attention(self.machine.decode_attention, where, nbytes)

    def attend_pairs(self, where: tuple[str, str, int], flops: Size) -> Size:
        """One call over rows of several new tokens each, which take so many FLOPs."""
        return self._attention(self.machine.prefill_attention, where, flops)

    def _attention(self, curves: Mapping[str, Curve], where: tuple[str, str, int], size: Size) -> Size:
        """Attention at a place; where device and host are one memory never less on the host, whatever was measured."""
        seconds = nearest_attention(curves, *where).seconds(size)
        if where[0] == "host" and self.machine.port.one_memory:
            return _longer(seconds, nearest_attention(curves, "device", *where[1:]).seconds(size))
        return seconds

    def append(self, place: str, scheme: str, nbytes: Size) -> Size:
        """New records of so many bytes, in all, written to a cache."""
        on_host = f"append {scheme} host"
        if place != "host" or on_host not in self.machine.operators:
            return self.operator(f"append {scheme}", nbytes)
        seconds = self.operator(on_host, nbytes)
        if self.machine.port.one_memory:
            return _longer(seconds, self.operator(f"append {scheme}", nbytes))
        return seconds

    def operator(self, name: str, nbytes: Size) -> Size:
        """One call of an operator whose time follows from the bytes of its result."""
        if name not in self.machine.operators:
            raise PolicyError(f"machine {self.machine.name!r} has no operator {name!r}")
        return self.machine.operators[name].seconds(nbytes)


def _longer(one: Size, other: Size) -> Size:
    """The longer of two durations, or of each pair of two arrays of them."""
    if isinstance(one, np.ndarray):
        return np.maximum(one, other)
    return max(one, other)


def decoding_records(rows: Sequence[tuple[int, int]]) -> int:
    """Records that rows of (past, new) tokens read, those that bring one new token."""
    return sum(past + new for past, new in rows if new == DECODE_TOKENS)


def visible_pairs(rows: Sequence[tuple[int, int]]) -> int:
    """Visible pairs of query and key of rows of (past, new) tokens, those that bring more than one."""
    return sum(past * new + new * (new + 1) // 2 for past, new in rows if new != DECODE_TOKENS)
