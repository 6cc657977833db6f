"""What a conformance run found, as values and as JSON: of every clause and of every method; it runs nothing."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

from flexref.errors import FlexrefError
from flexref.files import read_object
from flexref.json_types.objects import object_of
from flexref.json_types.values import Number, OneOf, Whole

FORMAT = "flexref-conformance 1"

PASSED, FAILED, CRASHED, HUNG, EXITED = "passed", "failed", "crashed", "hung", "exited"
UNWRITTEN, NOT_NEEDED, NOT_CALLED = "not written", "not needed", "not called"

FINDINGS = (FAILED, CRASHED, HUNG, EXITED)
"""What is wrong with a port; a method that is not written is work left to do."""


class ConformanceError(FlexrefError):
    """A port that cannot be made, or a file that is no conformance result or list of known failures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClauseResult:
    """One clause of the contract on the port."""

    clause: Annotated[str, "The clause's name."]
    part: Annotated[str, "The part of the contract that it belongs to, named after the capability that it needs."]
    law: Annotated[str, "What it asks, in one line."]
    status: Annotated[
        str, OneOf((PASSED, *FINDINGS, UNWRITTEN, NOT_NEEDED)), "How it ended; not needed: the port need not pass it."
    ]
    cases: Annotated[int, Whole(0), "Examples that were tried until it ended."] = 0
    seconds: Annotated[float, Number(0), "Seconds that its process took."] = 0.0
    error: Annotated[str | None, "What is wrong, in one line; null if nothing is."] = None
    method: Annotated[str | None, "The method whose call is wrong, or is not written; null if none is known."] = None
    known: Annotated[str | None, "Why it is known to fail; null if it is not."] = None
    case_file: Annotated[str | None, "The smallest failing input, for --replay; null if there is none."] = None

    @property
    def counts(self) -> bool:
        """Whether it must turn the exit code to 1."""
        return self.status in (*FINDINGS, UNWRITTEN) and self.known is None


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodResult:
    """One method of the protocol, over all clauses that were tried."""

    method: Annotated[str, "Its name in the protocol."]
    status: Annotated[
        str, OneOf((PASSED, *FINDINGS, UNWRITTEN, NOT_CALLED)), "The worst of the clauses that blame it, or passed."
    ]
    calls: Annotated[int, Whole(0), "Calls of it in all clauses."] = 0
    seconds: Annotated[float, Number(0), "Seconds of the host in the calls that clauses are about."] = 0.0
    worst_share: Annotated[
        float | None, Number(0), "The largest error as a share of its computed bound; null: nothing of it has one."
    ] = None
    dtypes: Annotated[Sequence[str], "Types of operands that were tried."] = ()
    edges: Annotated[Sequence[str], "Edges that were tried."] = ()
    clauses: Annotated[Sequence[str], "Clauses that are about it."] = ()
    blamed_by: Annotated[Sequence[str], "Clauses that found it wrong, or not written."] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftToDo:
    """A method that the port has not written."""

    method: Annotated[str, "Its name in the protocol."]
    law: Annotated[str, "What it must do: the protocol's own words."]
    waiting: Annotated[Sequence[str], "Clauses that could not go on without it."]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperandFailure:
    """A stored call of a real model that the port gets wrong."""

    call: Annotated[int, Whole(0), "Its number in the file of operands."]
    method: Annotated[str, "The operator."]
    status: Annotated[str, OneOf(FINDINGS), "How it ended."]
    error: Annotated[str, "What is wrong, in one line."]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorRate:
    """One operator at one shape: how long a call takes, and the least time that the port's own limits allow."""

    method: Annotated[str, "The operator."]
    shape: Annotated[str, "What it was called on."]
    seconds: Annotated[float, Number(0), "Seconds of one call by the device's clock, the median of some windows."]
    least_s: Annotated[float, Number(0), "Seconds that its bytes or its operations take at the measured limits."]
    limit: Annotated[str, OneOf(("memory", "compute")), "Which of the two is longer."]
    bytes: Annotated[float, Number(0), "The fewest bytes that it must read and write."]
    flops: Annotated[float, Number(0), "Its floating-point operations."]

    @property
    def share(self) -> float:
        """The least time as a share of the time taken: 1 is as fast as the limit."""
        return self.least_s / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PortRates:
    """All operators, and the limits that they are held against."""

    memory_bytes_per_s: Annotated[
        float, Number(0), "Bytes per second that a large copy on the device reads and writes."
    ]
    flops_per_s: Annotated[float, Number(0), "Operations per second of a large product of the compute type."]
    operators: Annotated[Sequence[OperatorRate], "Every operator and shape."]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformanceResult:
    """What `flexref conformance --json` prints."""

    format: Annotated[str, OneOf((FORMAT,)), "Names this format and its version."] = FORMAT
    backend: Annotated[str, "The port's name."]
    flexref: Annotated[str, "The version of flexref."]
    devices: Annotated[Sequence[str], "The port's devices, as it names them."] = ()
    versions: Annotated[Mapping[str, str], "Versions of the port's libraries, by name."]
    examples: Annotated[int, Whole(1), "The most examples of each clause."]
    seconds: Annotated[float, Number(0), "Seconds that all of it took."]
    clauses: Annotated[Sequence[ClauseResult], "Every clause that was asked for, in the order of the contract."]
    methods: Annotated[Sequence[MethodResult], "Every method of the protocol, in its order."]
    to_do: Annotated[Sequence[LeftToDo], "Methods that are not written, in the order in which to write them."] = ()
    operands: Annotated[Sequence[OperandFailure], "Calls of a file of operands that are wrong."] = ()
    operands_skipped: Annotated[int, Whole(0), "Stored calls of attention on the host, which the port has not."] = 0
    rates: Annotated[PortRates | None, "How fast operators are; null: not asked for, or why not is in `not_timed`."] = (
        None
    )
    not_timed: Annotated[str | None, "Why operators were not timed; null if they were, or need not be."] = None

    @property
    def faults(self) -> Iterator[ClauseResult]:
        """Clauses that turn the exit code to 1."""
        return (clause for clause in self.clauses if clause.counts)

    @property
    def mended(self) -> Iterator[ClauseResult]:
        """Clauses that are known to fail, and pass."""
        return (clause for clause in self.clauses if clause.known is not None and clause.status == PASSED)

    def to_json(self) -> str:
        """It as one line of JSON."""
        return json.dumps(asdict(self), allow_nan=False)


def read_result(path: str) -> ConformanceResult:
    """The result in a file, as `--json` prints it; `ConformanceError` says what is wrong with it."""
    values = read_object(path, ConformanceError)
    if values.get("format") != FORMAT:
        raise ConformanceError(f"{path}: format is {values.get('format')!r:.60}, needed {FORMAT!r}")
    result: ConformanceResult = object_of(ConformanceResult).read(f"{path}: result", values, ConformanceError)
    return result


def read_known(path: str, clauses: Sequence[str]) -> Mapping[str, str]:
    """Known failures: a JSON object of reasons by clause. `ConformanceError` for a clause that is not there."""
    values = read_object(path, ConformanceError)
    for name, reason in values.items():
        if name not in clauses:
            raise ConformanceError(f"{path}: no clause is called {name!r:.60}; flexref check --explain all lists them")
        if not isinstance(reason, str) or not reason.strip():
            raise ConformanceError(f"{path}: {name} needs a reason in words, found {reason!r:.60}")
    return values
