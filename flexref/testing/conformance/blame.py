"""Which call of a broken clause is wrong, and on what operands: each is judged by its own law; it runs no search."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flexref.backend.protocol import Backend, QuantizedMatrix
from flexref.check.checked import CheckedBackend
from flexref.check.findings import Findings, finite_or_none
from flexref.check.placed import Placed, PlacedRows, PlacedSegments, read_placed
from flexref.check.tolerances import Numbers, Values
from flexref.testing.conformance.draws import DrawnValues, RepeatedDraws
from flexref.testing.conformance.watch import WatchedPort, share_of_bound
from flexref.testing.contract import Clause


@dataclass(slots=True)
class FailedCall:
    """The call of a clause that is wrong: its method, by how much of its bound, and what it was given and gave.

    `share`: the error as a multiple of its bound; None where it is infinite or no value is wrong. `said`: the finding
    in a line, where the call was judged on its own operands. `arguments`: those that are no arrays.
    """

    method: str | None = None
    share: float | None = None
    said: str | None = None
    operands: dict[str, Values] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    compared: dict[str, Values] = field(default_factory=dict)


def failed_call(
    port: Backend, clause: Clause, drawn: DrawnValues, watched: WatchedPort, error: BaseException
) -> FailedCall:
    """Repeat a broken clause with every call judged: the first that is wrong on its own operands.

    If none is (bits that differ, a wrong lane) it is the call that raised or, in the end, the clause's last.
    """
    last = watched.raising if not isinstance(error, AssertionError) and watched.raising else watched.last
    findings = Findings()
    reading = _Reading(CheckedBackend(port, findings))
    try:
        with reading.comparing():
            clause(reading, RepeatedDraws(drawn))  # type: ignore[arg-type]
    except Exception:  # that it fails is known
        pass
    found = FailedCall(last)
    for entry in findings.entries.values():
        if not entry.worst.within:
            worst = entry.worst
            found = FailedCall(worst.operator, finite_or_none(worst.ratio), worst.fault or f"{worst.place} is off")
            break
    operands, arguments = reading.given.get(found.method or "", ({}, {}))
    found.operands, found.arguments, found.compared = operands, arguments, reading.beyond
    return found


class _Reading(WatchedPort):
    """A checked port under a clause: what each method was given last is read before the call."""

    def __init__(self, port: CheckedBackend) -> None:
        super().__init__(port)  # type: ignore[arg-type]
        self._checked = port
        self.given: dict[str, tuple[dict[str, Values], dict[str, Any]]] = {}
        self.beyond: dict[str, Values] = {}
        """What was found, what is needed and the bound, where the comparison failed."""

    def _note(self, name: str, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        super()._note(name, arguments, named)
        arrays, others = dict[str, Values](), dict[str, Any]()
        for what, value in self._bound(name, arguments, named):
            arrays.update(self._arrays(what, value))
            others.update(_others(what, value))
        self.given[name] = arrays, others

    def _arrays(self, what: str, value: Any) -> Iterator[tuple[str, Values]]:
        """The arrays in an argument, by names that a file may have."""
        if isinstance(value, Placed):
            yield what, np.atleast_1d(read_placed(self._checked, value))
        elif isinstance(value, np.ndarray):
            yield what, np.atleast_1d(value).copy()
        elif isinstance(value, QuantizedMatrix):
            for part in ("codes", "scale", "zero"):
                yield from self._arrays(f"{what}_{part}", getattr(value, part))
        elif isinstance(value, PlacedRows):
            for row, records in enumerate(value.records):
                yield from self._arrays(f"records_{row}", records)

    def _compared(self, actual: Values, expected: Numbers, bound: Numbers) -> None:
        super()._compared(actual, expected, bound)
        if share_of_bound(actual, expected, bound) > 1:
            bounds = np.broadcast_to(bound, expected.shape)
            self.beyond = {"found": np.atleast_1d(actual), "needed": np.atleast_1d(expected), "bound": bounds.copy()}


def _others(what: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What an argument holds that is no array, as JSON values."""
    if isinstance(value, bool | int | float | str) or value is None:
        yield what, value
    elif isinstance(value, QuantizedMatrix):
        yield what, {"width": value.width, "group_size": value.group_size, "bits": value.bits}
    elif isinstance(value, PlacedRows):
        layout = value.layout
        names = ("heads", "head_width", "dtype", "scheme", "group_size")
        yield "layout", {name: getattr(layout, name) for name in names}
        yield "shared", list(value.shared)
    elif isinstance(value, PlacedSegments):
        yield "past", list(value.past)
        yield "new", list(value.new)
