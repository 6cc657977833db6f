"""Failing inputs of clauses in .npz files: written for a port's author, and believed nothing when they come back.

`draw_N` are the arrays that the clause drew, which a replay reads, with its other draws in `case`. What the failing
call was given (`operand_...`), and what was compared (`found`, `needed`, `bound`), is there to be looked at.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flexref.check.logits_file import ArraysFile, ArraysWriter
from flexref.json_types.parsing import as_json
from flexref.json_types.values import shown
from flexref.testing.conformance.blame import FailedCall
from flexref.testing.conformance.draws import DTYPES, CaseError, DrawnValues, Values
from flexref.testing.contract import CONTRACT, clause_name
from flexref.version import __version__

FORMAT = "flexref-case 1"

REPEATED = frozenset(map(clause_name, CONTRACT))
"""Clauses that draw, and so have cases."""

LARGEST_BYTES, MOST_ARRAYS, LARGEST_TEXT_BYTES = 1 << 28, 1 << 10, 1 << 22
"""Bound what is read of a case: the arrays in all, their number, the text."""


@dataclass(frozen=True, slots=True)
class Case:
    """A clause, what it drew, and what was wrong with `backend` when it was saved."""

    clause: str
    drawn: DrawnValues
    backend: str
    error: str


def write_case(path: str, case: Case, failed: FailedCall | None) -> None:
    """Write a case to `path`; `StorageError` if that cannot be done."""
    failed = failed or FailedCall()
    about: dict[str, Any] = {
        "format": FORMAT,
        "flexref": __version__,
        "clause": case.clause,
        "backend": case.backend,
        "error": case.error,
        "method": failed.method,
        "arguments": failed.arguments,
        "draws": case.drawn.values,
        "arrays": len(case.drawn.arrays),
    }
    with ArraysWriter(path) as writer:
        writer.text("case", json.dumps(about, default=str))
        for number, array in enumerate(case.drawn.arrays):
            writer.whole(f"draw_{number}", np.atleast_1d(array))
        for name, array in (*_named("operand_", failed.operands), *_named("", failed.compared)):
            writer.whole(name, array)


def _named(prefix: str, arrays: Mapping[str, Values]) -> list[tuple[str, Values]]:
    return [(f"{prefix}{name}", array) for name, array in arrays.items()]


def read_case(path: str) -> Case:
    """The case in a file; `CaseError` says what is wrong with it, `StorageError` that it cannot be read."""
    with ArraysFile(path, CaseError) as file:
        about = as_json(file.text("case", LARGEST_TEXT_BYTES), path, CaseError)
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise CaseError(f"{path} is no case: its format is {shown(about)}, needed {FORMAT!r}")
        clause, draws, count = about.get("clause"), about.get("draws"), about.get("arrays")
        if not isinstance(clause, str) or clause not in REPEATED:
            raise CaseError(f"{path}: there is no clause {shown(clause)}; flexref check --explain all lists them")
        if not isinstance(draws, list) or type(count) is not int or not 0 <= count <= MOST_ARRAYS:
            raise CaseError(f"{path}: needed a list of draws and at most {MOST_ARRAYS} arrays, found {shown(count)}")
        left, arrays = LARGEST_BYTES, []
        for number in range(count):
            arrays.append(_array(file, f"draw_{number}", left))
            left -= arrays[-1].nbytes
    drawn = DrawnValues(draws, arrays)
    for number in range(len(draws)):
        drawn.decoded(number)
    backend, error = (str(about.get(name))[:LARGEST_TEXT_BYTES] for name in ("backend", "error"))
    return Case(clause, drawn, backend, error)


def _array(file: ArraysFile, name: str, most_bytes: int) -> Values:
    """An array of a type that clauses draw, of at most so many bytes."""
    stored = file.array(name)
    if not stored.fits(DTYPES, most_bytes):
        raise CaseError(
            f"{file.path}: the array {name!r} is {stored.dtype} {stored.shape}, needed one of {', '.join(DTYPES)} "
            f"with an axis, all of them in at most {LARGEST_BYTES} bytes"
        )
    return stored.whole()
