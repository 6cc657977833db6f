"""Gives a port the operands of a real model again, one stored call after the other, and judges each of them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flexref.backend.protocol import Backend, QuantizedMatrix
from flexref.backend.registry import create
from flexref.check.checked import CheckedBackend
from flexref.check.findings import Findings, PortFailure, finite_or_none
from flexref.check.operands.file import (
    OperandsError,
    OperandsFile,
    StoredCall,
    StoredMatrix,
    StoredOperand,
    StoredRows,
    StoredSegments,
)
from flexref.check.operands.shapes import SHAPES, check_fits
from flexref.errors import described
from flexref.testing.bench import Bench, Guarded
from flexref.testing.conformance.black_box import BlackBox
from flexref.testing.conformance.clause_run import ended_with
from flexref.testing.conformance.contract_run import ask_port
from flexref.testing.conformance.processes import Telling, run_apart
from flexref.testing.conformance.results import FAILED, PASSED, ConformanceResult, MethodResult, OperandFailure
from flexref.version import __version__


@dataclass(slots=True)
class OperatorReplay:
    """What became of all stored calls of one operator: `worst_share` None if a call has no finite bound to keep."""

    calls: int = 0
    worst_share: float | None = None
    dtypes: set[str] = field(default_factory=set)


@dataclass(slots=True)
class OperandsReplay:
    """What a process has found until its end: by operator, and each call that is wrong.

    `done`: calls that need not be tried again; `skipped`: those of attention on the host, which the port has not.
    `refused`: what is wrong with the file.
    """

    operators: dict[str, OperatorReplay] = field(default_factory=dict)
    failures: list[OperandFailure] = field(default_factory=list)
    done: int = 0
    skipped: int = 0
    refused: str | None = None


def replay_operands(backend: str, path: str, limit_s: float) -> ConformanceResult:
    """Every stored call on a port; one that ends the process is a finding, and the next process goes on after it.

    `limit_s`: a process that takes longer hangs. Raises `OperandsError` for a file that is none, or is not for this
    port, and what `ask_port` raises.
    """
    began, port = time.monotonic(), ask_port(backend)
    with OperandsFile(path) as file:
        count = len(file)
    whole, first = OperandsReplay(), 0
    while first < count:
        end = run_apart(repeat_operands, (backend, path, first), limit_s)
        found: OperandsReplay = end.result if end.result is not None else end.told or OperandsReplay(done=first)
        if found.refused is not None:
            raise OperandsError(found.refused)
        _add(whole, found)
        first = found.done
        if end.result is None:
            method = (None if end.notes is None else end.notes.method) or "no operator"
            failure = OperandFailure(call=found.done, method=method, status=end.kind, error=str(end.how))
            whole.failures.append(failure)
            first += 1
    return ConformanceResult(
        backend=backend,
        flexref=__version__,
        devices=port.devices,
        versions=port.versions,
        examples=1,
        seconds=round(time.monotonic() - began, 3),
        clauses=(),
        methods=[_summed(name, part, whole.failures) for name, part in _with_dead(whole).items()],
        operands=whole.failures,
        operands_skipped=whole.skipped,
    )


def _add(whole: OperandsReplay, part: OperandsReplay) -> None:
    whole.failures += part.failures
    whole.skipped += part.skipped
    for name, found in part.operators.items():
        known = whole.operators.setdefault(name, OperatorReplay())
        known.calls += found.calls
        known.dtypes |= found.dtypes
        if found.worst_share is not None:
            known.worst_share = max(known.worst_share or 0.0, found.worst_share)


def _with_dead(whole: OperandsReplay) -> Mapping[str, OperatorReplay]:
    """The operators, those too of which no call came to its end."""
    for failure in whole.failures:
        whole.operators.setdefault(failure.method, OperatorReplay())
    return whole.operators


def _summed(name: str, part: OperatorReplay, failures: list[OperandFailure]) -> MethodResult:
    own = [failure for failure in failures if failure.method == name]
    return MethodResult(
        method=name,
        status=own[0].status if own else PASSED,
        calls=part.calls,
        worst_share=finite_or_none(part.worst_share),
        dtypes=sorted(part.dtypes),
        blamed_by=[f"call {failure.call}" for failure in own],
    )


def repeat_operands(box: BlackBox, tell: Telling, backend: str, path: str, first: int) -> OperandsReplay:
    """The stored calls from number `first` on, on a new port; what was found so far is told before every call."""
    port, found = create(backend), OperandsReplay(done=first)
    try:
        with OperandsFile(path) as file:
            if file.compute_dtype != port.caps.compute_dtype:
                raise OperandsError(
                    f"{path} was recorded on a port that computes in {file.compute_dtype}, {backend} computes in "
                    f"{port.caps.compute_dtype}: record it on one of that type"
                )
            for call in file.calls(tuple(SHAPES), first):
                check_fits(call, f"{path}, call {call.number}")
                tell(found)
                box.calls(call.operator)
                if _on_host(call) and not port.caps.attends_on_host:
                    found.done, found.skipped = call.number + 1, found.skipped + 1
                    continue
                _repeat(port, call, found)
                found.done = call.number + 1
    except OperandsError as error:
        found.refused = str(error)
    _close(port, found)
    return found


def _close(port: Backend, found: OperandsReplay) -> None:
    """The port's end."""
    raised = ended_with(port)
    if raised is not None:
        said = f"after the last call it raised {raised}"
        found.failures.append(OperandFailure(call=max(0, found.done - 1), method="close", status=FAILED, error=said))


def _on_host(call: StoredCall) -> bool:
    rows = call.arguments.get("rows")
    return isinstance(rows, StoredRows) and rows.tier == "host"


def _repeat(port: Backend, call: StoredCall, found: OperandsReplay) -> None:
    """One call, judged by its law on its own operands."""
    findings = Findings()
    checked: Any = CheckedBackend(port, findings)
    error = None
    bench = Bench(checked)
    placing = _Placing(bench)
    try:
        with bench:
            getattr(checked, call.operator)(**placing.arguments(call))
            placing.assert_untouched_around(call.operator)
    except (PortFailure, AssertionError) as failure:
        error = str(failure)
    except Exception as failure:  # whatever a broken port raises while operands are placed, read and given back
        error = described(failure)
    worst = findings.worst
    part = found.operators.setdefault(call.operator, OperatorReplay())
    part.calls += 1
    part.dtypes |= placing.dtypes
    if worst is not None:
        part.worst_share = max(part.worst_share or 0.0, worst.ratio)
        if not worst.within:
            error = (
                worst.fault or f"{worst.place} is {worst.found:.9g}, needed {worst.needed:.9g} within {worst.bound:.3g}"
            )
            error = f"{error} (operands {worst.inputs})"
    if error is not None:
        failure_of = OperandFailure(call=call.number, method=call.operator, status=FAILED, error=error)
        found.failures.append(failure_of)


class _Placing:
    """Puts the operands of one call onto the port, in the layouts in which an engine hands them over."""

    def __init__(self, bench: Bench) -> None:
        self._bench, self._guarded, self.dtypes = bench, list[Guarded](), set[str]()

    def arguments(self, call: StoredCall) -> dict[str, Any]:
        """The arguments by name. `x`, `ids` and others are positional in the protocol, which gives them these names."""
        return {name: self._placed(value) for name, value in call.arguments.items()}

    def assert_untouched_around(self, what: str) -> None:
        """`AssertionError` if a byte beside an operand has changed."""
        for guarded in self._guarded:
            guarded.assert_untouched_around(what)

    def _placed(self, value: Any) -> Any:
        if isinstance(value, StoredOperand):
            return value.content if value.tier == "values" else self._array(value.content, value.tier)
        if isinstance(value, StoredMatrix):
            self.dtypes.add(f"int{value.bits}/{value.scale.dtype}")
            codes, scale, zero = (self._array(part) for part in (value.codes, value.scale, value.zero))
            return QuantizedMatrix(codes, scale, zero, value.width, value.group_size, value.bits)
        if isinstance(value, StoredRows):
            self.dtypes.add("int4 records" if value.layout.quantized else f"{value.layout.dtype} records")
            records = [self._array(part, value.tier) for part in value.records]
            prefixes = [part and (self._array(part[0], value.tier), part[1]) for part in value.prefixes]
            given = prefixes if any(value.prefixes) else None
            return self._bench.backend.cache_rows(records, value.layout, given)
        if isinstance(value, StoredSegments):
            return self._bench.backend.segments(value.past, value.new)
        return value

    def _array(self, content: Any, tier: str = "device") -> Any:
        if content.dtype.kind == "f":
            self.dtypes.add(str(content.dtype))
        guarded = Guarded(self._bench, content, tier=tier)
        self._guarded.append(guarded)
        return guarded.array
