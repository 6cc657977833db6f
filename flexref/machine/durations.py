"""Seconds of single calls and copies on a machine, from their shapes: what both planner and simulator are made of."""

from collections.abc import Sequence
from dataclasses import dataclass

from flexref.errors import PolicyError
from flexref.machine.curves import Curve
from flexref.machine.machine import WEIGHT_FILE, Machine, nearest_attention

DECODE_TOKENS = 1
"""A row that brings so many new tokens reads its cache once; with more it is a prefill, and products set its time."""


EXPANDED_FIRST = "int8"
"""Products with 8-bit groups are not measured: ports expand them, then multiply by the dense matrix."""


@dataclass(frozen=True, slots=True)
class Durations:
    """Seconds of calls and copies on `machine`, each alone on it."""

    machine: Machine

    def copy(self, link: str, nbytes: int, *, weights: bool = False) -> float:
        """One copy of `nbytes` over `link`; `weights` from disk come from the weight file."""
        name = WEIGHT_FILE if weights and link == "disk->host" else link
        return self.machine.copies[name].seconds(nbytes)

    def linear(self, tokens: int, outputs: int, inputs: int, stored: str) -> float:
        """x (T, I) times w (O, I), stored as a type or in a scheme, with its bias."""
        products, dense = self.machine.products, self.machine.port.compute_dtype
        if stored == EXPANDED_FIRST and stored not in products:
            return self.expand(outputs * inputs, stored) + self.linear(tokens, outputs, inputs, dense)
        if stored not in products:
            raise PolicyError(f"machine {self.machine.name!r} has no products with {stored} weights")
        return products[stored].seconds(outputs * inputs, tokens)

    def expand(self, elements: int, stored: str) -> float:
        """A matrix of so many elements from how it is stored to the compute type; a copy, where both are one."""
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
        place, scheme, head_width = where
        machine, width = self.machine, heads * head_width
        seconds = 0.0
        if decoding:
            curve = nearest_attention(machine.decode_attention, place, scheme, head_width)
            seconds += curve.seconds(decoding * record_bytes)
        if visible:
            curve = nearest_attention(machine.prefill_attention, place, scheme, head_width)
            seconds += curve.seconds(4 * width * visible)
        return seconds

    def append(self, place: str, scheme: str, nbytes: int) -> float:
        """New records of so many bytes, in all, written to a cache."""
        on_host = f"append {scheme} host"
        name = on_host if place == "host" and on_host in self.machine.operators else f"append {scheme}"
        return self.operator(name, nbytes)

    def operator(self, name: str, nbytes: int) -> float:
        """One call of an operator whose time follows from the bytes of its result."""
        curve: Curve | None = self.machine.operators.get(name)
        if curve is None:
            raise PolicyError(f"machine {self.machine.name!r} has no operator {name!r}")
        return curve.seconds(nbytes)


def decoding_records(rows: Sequence[tuple[int, int]]) -> int:
    """Records that rows of (past, new) tokens read, those that bring one new token."""
    return sum(past + new for past, new in rows if new == DECODE_TOKENS)


def visible_pairs(rows: Sequence[tuple[int, int]]) -> int:
    """Visible pairs of query and key of rows of (past, new) tokens, those that bring more than one."""
    return sum(past * new + new * (new + 1) // 2 for past, new in rows if new != DECODE_TOKENS)
