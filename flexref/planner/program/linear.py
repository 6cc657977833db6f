"""Numbers that are linear in the shares, each for many candidates at once; it knows no machine and no model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from flexref.machine.arrays import Numbers, numbers
from flexref.units import KINDS, TIERS

SHARES = tuple((kind, tier) for kind in KINDS for tier in TIERS)
"""How much of each kind is on each tier, nine variables in their order."""

IN_PLACE = ("cache", "in place")
"""The tenth variable: how much of the cache attention on the host reads where it lies, a part of what is off the
device; the rest of that crosses the link."""

VARIABLES = (*SHARES, IN_PLACE)

Share = tuple[str, str]
"""(kind of data, tier), or `IN_PLACE`."""

Places = npt.NDArray[np.int64] | npt.NDArray[np.bool_]
"""Some of the candidates: their places, or a mask."""


@dataclass(frozen=True)
class Linear:
    """constant + the sum of coefficients times shares; a share that is not named has coefficient 0."""

    constant: Numbers = field(default_factory=lambda: numbers(0.0))
    by_share: Mapping[Share, Numbers] = field(default_factory=dict)

    @classmethod
    def fixed(cls, value: object) -> "Linear":
        """What no share changes."""
        return cls(numbers(value))

    @classmethod
    def of(cls, value: object, kind: str, *tiers: str) -> "Linear":
        """`value` for as much of `kind` as is on `tiers`."""
        return cls(by_share={(kind, tier): numbers(value) for tier in tiers})

    @classmethod
    def in_place(cls, value: object) -> "Linear":
        """`value` for as much of the cache as attention on the host reads in place."""
        return cls(by_share={IN_PLACE: numbers(value)})

    def __add__(self, other: "Linear") -> "Linear":
        by_share = dict(self.by_share)
        for share, value in other.by_share.items():
            by_share[share] = by_share[share] + value if share in by_share else value
        return Linear(self.constant + other.constant, by_share)

    def times(self, factor: object) -> "Linear":
        """Every number times `factor`."""
        by = numbers(factor)
        return Linear(self.constant * by, {share: value * by for share, value in self.by_share.items()})

    def at(self, shares: Mapping[Share, float]) -> Numbers:
        """The value at these shares."""
        value = self.constant
        for share, coefficient in self.by_share.items():
            value = value + coefficient * shares[share]
        return value

    def taken(self, places: Places) -> "Linear":
        """The same for the candidates at `places` (an index, a mask or places)."""

        def some(value: Numbers) -> Numbers:
            return value[places] if value.ndim else value

        return Linear(some(self.constant), {share: some(value) for share, value in self.by_share.items()})

    def vector(self) -> tuple[float, Numbers]:
        """(constant, coefficients (10,) in the order of `VARIABLES`) of a single candidate."""
        row = np.zeros(len(VARIABLES))
        for share, value in self.by_share.items():
            row[VARIABLES.index(share)] = value.item()
        return self.constant.item(), row


def total(terms: Iterable[Linear]) -> Linear:
    """The sum; 0 of nothing."""
    constant, by_share = numbers(0.0), dict[Share, Numbers]()
    for term in terms:
        constant = constant + term.constant
        for share, value in term.by_share.items():
            by_share[share] = by_share[share] + value if share in by_share else value
    return Linear(constant, by_share)
