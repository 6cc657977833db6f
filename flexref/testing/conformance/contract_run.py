"""Tries the contract on an installed port, a process for each clause, and sums up what that says of each method."""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from flexref.backend.capabilities import Capabilities
from flexref.backend.registry import check_registered, preloaded
from flexref.check.findings import finite_or_none
from flexref.errors import BackendUnavailable, StorageError
from flexref.testing.conformance.blame import FailedCall
from flexref.testing.conformance.calls import calls_of
from flexref.testing.conformance.cases import Case, write_case
from flexref.testing.conformance.clause_run import ClauseTrial, PortSurface, facts, repeat_clause, try_clause
from flexref.testing.conformance.draws import CaseError, DrawnValues
from flexref.testing.conformance.processes import ProcessEnd, preload, run_apart
from flexref.testing.conformance.rates import measure_rates
from flexref.testing.conformance.results import (
    FAILED,
    FINDINGS,
    NOT_CALLED,
    NOT_NEEDED,
    PASSED,
    UNWRITTEN,
    ClauseResult,
    ConformanceError,
    ConformanceResult,
    LeftToDo,
    MethodResult,
    PortRates,
)
from flexref.testing.conformance.watch import METHODS, MethodUse, method_law
from flexref.testing.contract import PARTS, clause_name, clauses_for
from flexref.testing.verdicts import CLAUSES, law_of
from flexref.version import __version__

CLOSING = "closing"
"""The part of the contract whose one clause takes a port of its own."""

MAKING_S = 120.0
"""A port is made within this time, or hangs: a device may have to be found and a library to be loaded."""

PART_OF = {clause_name(clause): part for part, clauses in PARTS.items() for clause in clauses}

SEVERITY = (*FINDINGS, UNWRITTEN)
"""The worst first."""


@dataclass(frozen=True, slots=True)
class Conformance:
    """What to try: the installed port `backend`, `clauses` by name, those about one of `methods` if any is named.

    `limit_s`: a clause that takes longer hangs. `cases`: the folder in which failing inputs are saved, None for none.
    `timed`: operators are timed afterwards, if no clause fails. `known`: reasons of clauses that are known to fail.
    """

    backend: str
    clauses: Sequence[str] = tuple(CLAUSES)
    methods: Sequence[str] = ()
    examples: int = 100
    limit_s: float = 300.0
    cases: str | None = None
    timed: bool = False
    known: Mapping[str, str] = field(default_factory=dict)

    def chosen(self) -> list[str]:
        """The clauses that are asked for, in the contract's order."""
        wanted = set(self.methods)
        return [name for name in self.clauses if not wanted or wanted & calls_of(CLAUSES[name])]


def conform(asked: Conformance, on_clause: Callable[[ClauseResult], object] = lambda _: None) -> ConformanceResult:
    """Try what is asked for; `on_clause` hears of each clause as soon as it is decided.

    Raises `UnknownBackend`, `BackendUnavailable`, `ConformanceError` for a port that cannot be made, `StorageError`.
    """
    began = time.monotonic()
    if asked.cases is not None and os.path.exists(asked.cases) and not os.path.isdir(asked.cases):
        raise StorageError(f"cannot save cases in {asked.cases}: it is no folder")
    port = ask_port(asked.backend)
    needed = {clause_name(clause) for clause in clauses_for(Capabilities(**port.caps))} | {list(CLAUSES)[-1]}
    found, uses = list[ClauseResult](), dict[str, dict[str, MethodUse]]()
    for name in asked.chosen():
        about = _undecided(name, asked.known.get(name))
        if name in needed:
            end = run_apart(try_clause, (asked.backend, name, asked.examples), asked.limit_s)
            about = judged(about, end, asked)
            uses[name] = end.result.uses if end.result is not None else {}
        found.append(about)
        on_clause(about)
    rates, not_timed = _timed(asked, found) if asked.timed else (None, None)
    return ConformanceResult(
        backend=asked.backend,
        flexref=__version__,
        devices=port.devices,
        versions=port.versions,
        examples=asked.examples,
        seconds=round(time.monotonic() - began, 3),
        clauses=found,
        methods=_methods(asked, found, uses, port),
        to_do=_to_do(found, port),
        rates=rates,
        not_timed=not_timed,
    )


def _undecided(name: str, known: str | None = None) -> ClauseResult:
    """A clause of which nothing but its place in the contract is said yet."""
    part, law = PART_OF.get(name, CLOSING), law_of(CLAUSES[name])
    return ClauseResult(clause=name, part=part, law=law, status=NOT_NEEDED, known=known)


def _timed(asked: Conformance, found: Sequence[ClauseResult]) -> tuple[PortRates | None, str | None]:
    """(the rates, why there are none): what is wrong is not timed."""
    wrong = [clause.clause for clause in found if clause.status in SEVERITY]
    if wrong:
        return None, f"operators are not timed while a clause fails: {wrong[0]}"
    end = run_apart(measure_rates, (asked.backend,), asked.limit_s)
    if end.result is None:
        return None, f"timing operators: {end.how}"
    return (end.result, None) if isinstance(end.result, PortRates) else (None, f"timing operators: {end.result}")


def ask_port(backend: str) -> PortSurface:
    """What the port says of itself, in a process of its own."""
    check_registered(backend)
    preload(preloaded(backend))
    end = run_apart(facts, (backend,), MAKING_S)
    if end.result is None:
        raise ConformanceError(f"backend {backend} cannot be made: {end.how}")
    port: PortSurface = end.result
    if port.unavailable:
        raise BackendUnavailable(str(port.error))
    if port.error is not None:
        raise ConformanceError(f"backend {backend} cannot be made: {port.error}")
    return port


def judged(about: ClauseResult, end: ProcessEnd, asked: Conformance) -> ClauseResult:
    """The clause's result, from how its process ended; a failing input is saved."""
    trial: ClauseTrial | None = end.result
    drawn: DrawnValues | None
    failed: FailedCall | None
    if trial is not None:
        if trial.missing is not None:
            said = f"`{trial.missing}` is not written"
            return _ended(about, end, UNWRITTEN, trial.cases, said, trial.missing)
        if trial.error is None:
            return _ended(about, end, PASSED, trial.cases, None, None)
        status, error, drawn, failed = FAILED, trial.error, trial.drawn, trial.failed
        cases = trial.cases
    else:
        notes = end.notes
        method, drawn = (None, None) if notes is None else (notes.method, notes.drawn)
        status, cases = end.kind, 0
        error = f"{end.how}, in `{method}`" if method else str(end.how)
        if end.told is not None:  # it had failed before, and hung on the way to something smaller
            (error, drawn), status = end.told, FAILED
        failed = FailedCall(method)
    result = _ended(about, end, status, cases, error, None if failed is None else failed.method)
    if drawn is None or asked.cases is None or about.part == CLOSING:
        return result
    try:
        Path(asked.cases).mkdir(parents=True, exist_ok=True)
    except OSError as refused:
        raise StorageError(f"cannot save cases in {asked.cases}: {refused.strerror or refused}") from refused
    path = str(Path(asked.cases) / f"{about.clause}.npz")
    write_case(path, Case(about.clause, drawn, asked.backend, error), failed)
    return replace(result, case_file=path)


def _ended(
    about: ClauseResult, end: ProcessEnd, status: str, cases: int, error: str | None, method: str | None
) -> ClauseResult:
    seconds = round(end.seconds, 3)
    return replace(about, status=status, cases=cases, seconds=seconds, error=error, method=method)


def replay(backend: str, case: Case, limit_s: float) -> ClauseResult:
    """A saved case on a port, in a process of its own; errors as `conform`."""
    ask_port(backend)
    end = run_apart(repeat_clause, (backend, case.clause, case.drawn), limit_s)
    if end.result is not None and end.result.stale is not None:
        raise CaseError(f"the case of {case.clause} does not fit its clause: {end.result.stale}")
    return judged(_undecided(case.clause), end, Conformance(backend))


def _methods(
    asked: Conformance, found: Sequence[ClauseResult], uses: Mapping[str, Mapping[str, MethodUse]], port: PortSurface
) -> list[MethodResult]:
    """What all clauses say of every method."""
    blamed: dict[str, list[ClauseResult]] = defaultdict(list)
    for clause in found:
        if clause.method is not None and clause.status in SEVERITY:
            blamed[clause.method].append(clause)
    results = []
    for method in asked.methods or METHODS:
        parts = {name: used[method] for name, used in uses.items() if method in used}
        shares = [use.worst_share for use in parts.values() if use.worst_share is not None]
        status = PASSED if parts else NOT_CALLED
        if method in (*port.absent, *port.unwritten):
            status = UNWRITTEN
        for clause in blamed[method]:
            status = min(
                status, clause.status, key=lambda one: SEVERITY.index(one) if one in SEVERITY else len(SEVERITY)
            )
        results.append(
            MethodResult(
                method=method,
                status=status,
                calls=sum(use.calls for use in parts.values()),
                seconds=round(sum(use.seconds for use in parts.values()), 6),
                worst_share=finite_or_none(max(shares, default=None)),
                dtypes=sorted({dtype for use in parts.values() for dtype in use.dtypes}),
                edges=sorted({edge for use in parts.values() for edge in use.edges}),
                clauses=[name for name, use in parts.items() if use.own_calls],
                blamed_by=[clause.clause for clause in blamed[method]],
            )
        )
    return results


def _to_do(found: Sequence[ClauseResult], port: PortSurface) -> list[LeftToDo]:
    """Methods that are not written: in the order of the protocol, which is memory, copies, lanes, operators."""
    waiting: dict[str, list[str]] = defaultdict(list)
    for clause in found:
        if clause.status == UNWRITTEN and clause.method is not None:
            waiting[clause.method].append(clause.clause)
    left = {*port.absent, *port.unwritten, *waiting}
    return [
        LeftToDo(method=name, law=method_law(name), waiting=waiting.get(name, ())) for name in METHODS if name in left
    ]
