"""Every clause of the contract on one port, with its verdict; it needs hypothesis."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from flexref.backend.protocol import Backend
from flexref.testing.contract import CONTRACT, clause_name, clauses_for, violation

LONGEST_ERROR = 400
"""Characters of an error that are shown: a clause's own takes less, what a port raises may be of any length."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One clause: `applies` by the port's capabilities; `error`: its first violation in one line, None if it passed."""

    clause: str
    applies: bool
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Its name, whether it applies, whether it passed, and the error."""
        return {**asdict(self), "passed": self.applies and self.error is None}


def verdicts(port: Backend, examples: int) -> Iterator[Verdict]:
    """Each clause as soon as it is decided, by as many examples."""
    needed = clauses_for(port.caps)
    for clause in CONTRACT:
        if clause not in needed:
            yield Verdict(clause_name(clause), applies=False)
            continue
        error = violation(port, clause, examples)
        line = None if error is None else " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_ERROR]
        yield Verdict(clause_name(clause), applies=True, error=line)
