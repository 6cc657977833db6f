"""Compares every operator of two ports on the same operands, and their tokens; it knows no command line.

The model runs on the first port. Every call that it gets is made on the second one too, with the first one's operands,
and both results are held against float64. So what one operator does wrong is never counted as the next one's, and of
two results that differ it is known which is right.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from flexref.architecture.stages import Stage
from flexref.backend.protocol import Backend
from flexref.check.checked import CheckedBackend
from flexref.check.findings import Call, Findings, PortFailure, finite_or_none
from flexref.check.operands.recorder import given_operands, stored_operands
from flexref.check.operands.shapes import SHAPES
from flexref.check.side_by_side.twin import Twin
from flexref.check.tolerances import PRECISIONS, Numbers, Values
from flexref.errors import FlexrefError, WrongCall


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a call's result: what was found, the right values, and the bound of the error."""

    part: str
    first: tuple[int, ...]
    found: Numbers
    value: Numbers
    bound: Numbers


@dataclass(slots=True)
class _TracedCall(Call):
    """A checked call whose comparisons are kept."""

    pieces: list[_Piece] = field(default_factory=list)

    def compare(self, found: Values, law: tuple[Numbers, Numbers], part: str = "", first: tuple[int, ...] = ()) -> None:
        """See `Call.compare`."""
        value = law[0]
        self.pieces.append(_Piece(part, first, found.astype(np.float64), value, np.broadcast_to(law[1], value.shape)))
        Call.compare(self, found, law, part, first)


class _TracedFindings(Findings):
    """Findings of which the pieces of the last call are kept, and its own worst share."""

    def __init__(self) -> None:
        super().__init__()
        self.last: _TracedCall | None = None

    def begin(self, operator: str, role: str, **shapes: tuple[int, ...]) -> Call | None:
        """See `Findings.begin`."""
        call = super().begin(operator, role, **shapes)
        self.last = None if call is None else _TracedCall(call.entry, call.base)
        return self.last


@dataclass(frozen=True, slots=True)
class PairFinding:
    """The element of one call on which two ports are furthest apart, as a multiple of what rounding permits both.

    `shares`: the error of each there as a multiple of its own bound. `fault`: what is wrong with one of them where that
    is no element's value.
    """

    operator: str
    stage: str
    turn: int
    group: int
    operands: str
    ratio: float
    place: str = ""
    values: tuple[float, float] = (0.0, 0.0)
    needed: float = 0.0
    shares: tuple[float, float] = (0.0, 0.0)
    rows: tuple[int, ...] = ()
    fault: str | None = None

    @property
    def apart(self) -> float:
        """How far the two values are from each other."""
        return abs(self.values[0] - self.values[1])

    def told(self, names: tuple[str, str]) -> str:
        """It in one line, the ports by their names."""
        where = f"{self.operator} of {self.stage} (pass {self.turn}, group {self.group}, operands {self.operands})"
        if self.fault is not None:
            return f"{where}: {self.fault}"
        blamed = [f"{name} by {share:.3g} times its bound" for name, share in zip(names, self.shares, strict=True)]
        count = len(self.rows)
        rows = f"token {self.rows[0]}" if count == 1 else f"{count} tokens from {min(self.rows, default=0)} on"
        return (
            f"{where}: {self.place} is {self.values[0]:.9g} on {names[0]} and {self.values[1]:.9g} on {names[1]}, "
            f"apart by {self.ratio:.3g} times what rounding permits, on {rows}; float64 gives {self.needed:.9g}: off "
            f"are {' and '.join(blamed)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name; null where one is infinite or no number."""
        values = {name: finite_or_none(value) for name, value in asdict(self).items()}
        pairs = {name: [finite_or_none(part) for part in values[name]] for name in ("values", "shares")}
        return {**values, **pairs, "rows": list(self.rows), "apart": finite_or_none(self.apart)}


@dataclass(slots=True)
class PairFindings:
    """What two ports, by `names`, give on the same operands: the worst call of every operator and stage, in order."""

    names: tuple[str, str]
    worst: dict[tuple[str, str], PairFinding] = field(default_factory=dict)
    calls: int = 0
    first: PairFinding | None = None
    """The first call in which they are further apart than rounding permits."""

    def note(self, finding: PairFinding) -> None:
        """One more call."""
        self.calls += 1
        key = finding.stage, finding.operator
        known = self.worst.get(key)
        if known is None or (finding.ratio, finding.fault is not None) > (known.ratio, known.fault is not None):
            self.worst[key] = finding
        if self.first is None and (finding.ratio > 1 or finding.fault is not None):
            self.first = finding

    def by_stage(self) -> Mapping[str, PairFinding]:
        """The worst call of every stage, in the order of the model."""
        found: dict[str, PairFinding] = {}
        for (stage, _), finding in self.worst.items():
            if stage not in found or finding.ratio > found[stage].ratio:
                found[stage] = finding
        return found


class PairedPort:
    """The first of two ports to an engine; every operator is called on the second one, too."""

    def __init__(self, first: Backend, second: Backend, names: tuple[str, str]) -> None:
        """`names`: what they are called in findings.

        Raises `WrongCall` if the first computes in a wider type than the second: no operand would be the same.
        """
        if PRECISIONS[first.caps.compute_dtype].unit < PRECISIONS[second.caps.compute_dtype].unit:
            raise WrongCall(
                f"{names[0]} computes in {first.caps.compute_dtype}, {names[1]} in {second.caps.compute_dtype}: name "
                f"the narrower first: {names[1]} {names[0]}"
            )
        self.findings = PairFindings(names)
        self._both = _TracedFindings(), _TracedFindings()
        self._checked, self._second = CheckedBackend(first, self._both[0]), CheckedBackend(second, self._both[1])
        self._twin = Twin(self._second, first.caps.compute_dtype)

    def on_visit(self, stage: Stage, group: int, turn: int) -> None:
        """Note that from now on calls belong to this stage, group and pass."""
        for findings in self._both:
            findings.on_visit(stage, group, turn)

    def close(self) -> None:
        """Close both."""
        try:
            self._checked.close()
        finally:
            self._second.close()

    def __getattr__(self, name: str) -> Any:
        """Memory and lanes of the first port; its operators, compared."""
        member = getattr(self._checked, name)
        return self._compared(name, member) if name in SHAPES else member

    def _compared(self, operator: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def compared(*arguments: Any, **named: Any) -> Any:
            operands = stored_operands(self._checked, given_operands(operator, arguments, named))
            result = call(*arguments, **named)
            try:
                self._twin.call(operator, operands)
            except PortFailure as error:
                self._note(str(error))
            except FlexrefError as error:
                self._note(f"{self.findings.names[1]} refuses what {self.findings.names[0]} takes: {error}")
            else:
                self._note(None)
            return result

        return compared

    def _note(self, fault: str | None) -> None:
        """Compare the last call of both."""
        one, other = (findings.last for findings in self._both)
        if one is None or other is None:
            return
        base = one.base
        about = (base.label, base.stage, base.turn, base.group, base.inputs)
        faults = [
            f"{name} {call.entry.worst.fault}"
            for name, call in zip(self.findings.names, (one, other), strict=True)
            if call.entry.worst.fault is not None
        ]
        if fault is None and faults:
            fault = faults[0]
        if fault is not None:
            self.findings.note(PairFinding(*about, float("inf"), fault=fault))
            return
        worst = PairFinding(*about, 0.0)
        for pair in zip(one.pieces, other.pieces, strict=True):
            found = _furthest(worst, *pair)
            if found.ratio > worst.ratio:
                worst = found
        self.findings.note(worst)


def _furthest(base: PairFinding, one: _Piece, other: _Piece) -> PairFinding:
    """The element of a part on which two results are furthest apart; `base` says of which call."""
    if not one.found.size or one.found.shape != other.found.shape:
        return base
    with np.errstate(all="ignore"):
        bound = one.bound + other.bound
        judged = np.isfinite(one.value) & np.isfinite(other.value) & np.isfinite(bound)
        # What is right may depend on what a port found (a code of a tie) or on its type (a copy that is rounded).
        permitted = np.abs(one.value - other.value)
        apart = np.where(judged, np.maximum(np.abs(one.found - other.found) - permitted, 0), 0)
        apart = np.where(np.isnan(apart), np.inf, apart)
        ratio = np.where(apart > 0, apart / bound, 0)
        shares = [
            np.where(piece.found == piece.value, 0, np.abs(piece.found - piece.value) / piece.bound)
            for piece in (one, other)
        ]
    at = np.unravel_index(int(ratio.argmax()), ratio.shape)
    element = tuple(int(place) + start for place, start in zip(at, one.first or (0,) * len(at), strict=True))
    beyond = np.unique(np.nonzero(ratio > 1)[0]) + (one.first[0] if one.first else 0)
    place = f"{one.part} ({', '.join(map(str, element))})".strip()
    return PairFinding(
        *(base.operator, base.stage, base.turn, base.group, base.operands),
        float(ratio[at]),
        place,
        (float(one.found[at]), float(other.found[at])),
        float(one.value[at]),
        (float(shares[0][at]), float(shares[1][at])),
        tuple(int(row) for row in beyond),
    )
