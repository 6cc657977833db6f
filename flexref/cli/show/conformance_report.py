"""What a conformance run found as tables for people: methods, clauses that fail, what is left to write."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from flexref.cli.show.console import FilledTable, print_wrapped
from flexref.cli.streams import printable
from flexref.errors import how_many
from flexref.units import GIGA

if TYPE_CHECKING:
    from flexref.testing.conformance.results import ClauseResult, ConformanceResult, MethodResult, PortRates

HEADINGS = ("method", "", "clauses", "calls", "worst share", "seconds", "types", "edges")

EDGES_WIDTH = 160
"""Columns of a line from which on there is room for edges."""


def print_result(console: Console, result: "ConformanceResult") -> None:
    """Print the support table, each clause that fails with its law, and what is left to write."""
    about = ", ".join([*result.devices, *(f"{name} {version}" for name, version in result.versions.items())])
    if not result.clauses:
        calls, wrong = sum(method.calls for method in result.methods), len(result.operands)
        skipped = f", {result.operands_skipped} on the host were skipped" if result.operands_skipped else ""
        print_wrapped(
            console,
            f"port {result.backend} ({printable(about)}): {how_many(calls, 'call')} of a model's operators repeated, "
            f"{wrong} wrong{skipped}",
        )
        _print_methods(console, result)
        for failure in result.operands:
            console.print(Text(f"call {failure.call}, {failure.method}: {failure.status}: {failure.error}"))
        return
    tried = [clause for clause in result.clauses if clause.status != "not needed"]
    passed = sum(clause.status == "passed" for clause in tried)
    print_wrapped(
        console,
        f"port {result.backend} ({printable(about)}): {passed} of {how_many(len(tried), 'clause')} passed, "
        f"{len(result.clauses) - len(tried)} are not needed of it",
    )
    _print_methods(console, result)
    if result.rates is not None:
        _print_rates(console, result.rates)
    if result.not_timed is not None:
        console.print(Text(result.not_timed))
    for clause in result.clauses:
        if clause.error is not None and clause.status != "not written":
            _print_failed(console, clause)
    for clause in result.mended:
        console.print(Text(f"{clause.clause} is known to fail and passes: take it off the list ({clause.known})"))
    if result.to_do:
        console.print("left to write, in this order:")
        for number, part in enumerate(result.to_do, start=1):
            waiting = f" ({how_many(len(part.waiting), 'clause')} waiting)" if part.waiting else ""
            print_wrapped(console, f"{number:3}. {part.method}{waiting}: {part.law}", 5)
        console.print(f'then: flexref generate --backend {result.backend} --model demo --prompt "It was"')


def _print_methods(console: Console, result: "ConformanceResult") -> None:
    rows = [_cells(method, console.width) for method in result.methods if method.status != "not called"]
    console.print(FilledTable("Methods of the protocol", HEADINGS, rows, left=("", "types", "edges")))
    console.print("worst share: the largest error as a share of its bound; seconds: of the host, in calls")


def _cells(method: "MethodResult", width: int) -> Sequence[str]:
    passed = len(method.clauses)
    return (
        method.method,
        method.status,
        str(passed) if passed else "",
        str(method.calls) if method.calls else "",
        "" if method.worst_share is None else f"{method.worst_share:.2g}",
        f"{method.seconds:.3f}" if method.seconds else "",
        ", ".join(method.dtypes),
        ", ".join(method.edges) if width >= EDGES_WIDTH else "",
    )


def _print_rates(console: Console, rates: "PortRates") -> None:
    """Every operator beside the least time that the port's own limits allow."""
    rows = [
        (
            rate.method,
            rate.shape,
            f"{1e6 * rate.seconds:.1f}",
            f"{1e6 * rate.least_s:.1f}",
            rate.limit,
            f"{100 * rate.share:.2g}",
        )
        for rate in rates.operators
    ]
    headings = ("operator", "on", "us", "least us", "limit", "% of limit")
    console.print(FilledTable("How fast operators are", headings, rows, left=("on", "limit")))
    memory, product = rates.memory_bytes_per_s / GIGA, rates.flops_per_s / GIGA
    console.print(f"limits, measured on this port: memory {memory:.4g} GB/s, products {product:.4g} GFLOP/s")


def _print_failed(console: Console, clause: "ClauseResult") -> None:
    known = "" if clause.known is None else f" (known: {clause.known})"
    where = "" if clause.method is None else f" in {clause.method}"
    console.print(Text(f"{clause.clause}: {clause.status}{where}{known}: {clause.error}"))
    console.print(Text(f"    the law: {clause.law}"))
    if clause.case_file is not None:
        console.print(Text(f"    its input: {clause.case_file}, which --replay repeats"))
