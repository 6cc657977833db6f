"""What one case asks of the commands and what came of it, as values; nothing here runs or judges."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

Meddle = Callable[[int], None]
"""Something that is done to a running command, by its process number."""

IN, OUT, TEMPORARY, CACHE = MADE = ("in", "out", "tmp", "cache")
"""Folders of a case: what is read, where the command works and writes, its temporary folder, its cache."""

ORDINARY_CODES = frozenset({0, 1, 2})


@dataclass(slots=True)
class Trial:
    """Some commands that are run one after another in the folder of a case, until one does not succeed.

    Every command is a process: of its own making (`fresh`), or a copy of one that has imported everything (fast).
    """

    commands: list[list[str]]
    folder: Path
    fresh: bool = False
    stdin: bytes = b""
    stdout: str = "file"
    """`file`, `closed`, `full`, or `gone` (a pipe without a reader); the same words for `stderr`."""
    stderr: str = "file"
    environment: dict[str, str] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    """By the name of the resource, such as `RLIMIT_AS`."""
    user: int | None = None
    """As whose it counts, where root may choose that: limits of processes do not hold for root."""
    meddling: list[tuple[float, Meddle]] = field(default_factory=list)
    """What is done to the last command, in seconds after it has begun."""
    signals: tuple[int, ...] = ()
    """Those that `meddling` sends."""
    codes: frozenset[int] = ORDINARY_CODES
    """Exit codes that are in the rule for this case; those of `signals` are added."""
    disk_bytes: int | None = None
    """How much the working folder can hold, where a small disk can be had."""
    outputs: frozenset[str] = frozenset()
    """Names in the working folder that the commands may write."""
    expected: list[list[int]] | None = None
    """The tokens that the last command must give if it succeeds; see also `compare`."""
    compare: bool = False
    """Whether the first command's tokens are those that the last one must give."""
    changes_inputs: bool = False
    """Whether `meddling` changes what is read."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One command that has ended."""

    arguments: list[str]
    code: int
    """Its exit code; the number of the signal that ended it, negative; `HUNG` if it had to be ended."""
    stdout: bytes
    stderr: bytes
    seconds: float
    peak_bytes: int


HUNG = -1000


@dataclass(frozen=True, slots=True)
class Judged:
    """A case with its verdict: `faults` is empty where everything held."""

    number: int
    kind: str
    outcome: str
    """`accepted`, `refused`, `ended` (in order, by a signal), `killed` (at once, by one), `limited` or `failed`."""
    faults: list[str]
    commands: list[list[str]]
    complaint: str = ""
    """The end of the last command's stderr, where something is wrong."""
