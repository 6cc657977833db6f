"""What came of a case, as a value; nothing here runs one."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """A case by its name and what was done in it: `faults` is empty where everything held."""

    name: str
    done: str
    outcome: str
    faults: list[str]
