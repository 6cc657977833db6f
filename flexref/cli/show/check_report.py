"""What a check of a port found as tables for people: operators, tokens, clauses; it computes nothing."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flexref.check.findings import MOVED
from flexref.cli.streams import printable
from flexref.errors import how_many

if TYPE_CHECKING:
    from flexref.check.findings import OperatorFindings
    from flexref.check.portcheck import PortReport
    from flexref.testing.verdicts import Verdict

DECIDED = (
    "rounding decided: every operator was right on its own operands, and these were what the weight file holds and "
    "what was written before"
)
UNDECIDED = "whether rounding decided cannot be said, since some layers were not checked"
"""Of tokens that differ where no bound of the model is known."""

COLUMNS = ("operator", "times its bound", "error", "calls", "where", "operands")

RIGHT = ("times its bound", "error", "calls")

WHOLE = ("operator", "error", "calls")
"""Columns whose cells are never broken, however little room there is."""

WIDE = 100
"""Letters of a line from which on there is room for the shapes of the operands."""

RATIO_WIDTH = 9
"""Letters of a number of three digits, and of half of its heading."""


def print_report(console: Console, report: "PortReport", every_layer: bool) -> None:
    """Print the operators, each with its worst stage or, with `every_layer`, with all of them, then the tokens."""
    findings, layers = report.findings, report.checked_layers
    which = "all layers" if len(layers) == report.spec.layers else f"layers {', '.join(map(str, layers))}"
    lengths = ", ".join(map(str, report.prompt_tokens))
    console.print(
        f"{printable(report.spec.name)} on backend {report.backend} ({report.compute_dtype}), "
        f"rows of {lengths} tokens: {findings.calls} calls of operators checked, {which}"
    )
    table = Table(title="How far each operator is from float64 on its own operands, at worst", title_justify="left")
    wide = console.width >= WIDE
    for column in COLUMNS if wide else COLUMNS[:-1]:
        justify: Literal["left", "right"] = "right" if column in RIGHT else "left"
        width = RATIO_WIDTH if column == "times its bound" else None
        table.add_column(column, justify=justify, no_wrap=column in WHOLE, width=width)
    operators = sorted(findings.by_operator().values(), key=lambda entries: entries[0].worst.operator == MOVED)
    for entries in operators:
        worst = max(entries, key=lambda entry: (entry.worst.ratio, entry.worst.fault is not None, entry.worst.error))
        for entry in entries if every_layer else [worst]:
            calls = entry.calls if every_layer else sum(other.calls for other in entries)
            cells = _cells(entry, calls, every_layer)
            table.add_row(*(cells if wide else cells[:-1]), style=None if entry.worst.within else "bold red")
    console.print(table)
    unjudged = sum(entry.unjudged for entry in findings.entries.values())
    if unjudged:
        console.print(f"{unjudged} elements were not judged: their operands or bounds are not finite, or they overflow")
    _print_tokens(console, report)


def _cells(entry: "OperatorFindings", calls: int, every_layer: bool) -> list[Text]:
    worst = entry.worst
    if worst.ratio == 0 and not every_layer:  # exact everywhere: no stage is worse than another
        cells = [worst.label, "0", "0", str(calls), "", ""]
    else:
        element = worst.place if worst.fault is None else worst.fault
        where = f"{worst.stage}, pass {worst.turn}, group {worst.group}: {element}"
        cells = [worst.label, f"{worst.ratio:.3g}", f"{worst.error:.3g}", str(calls), where, worst.inputs]
    return [Text(cell) for cell in cells]


def _print_tokens(console: Console, report: "PortReport") -> None:
    """Each row's first token that is not the reference's; what a run without checks gave."""
    if report.ended is not None:
        console.print(Text(f"the run ended there: {report.ended}"))
    tokens = report.tokens
    if tokens is None:
        return
    count = len(tokens.token_ids)
    same = count - len(tokens.differences)
    rows = f"{same} of {how_many(count, 'row')} {'has' if count == 1 else 'have'} the tokens of the reference"
    console.print(f"{rows}, {tokens.reference}; until then logits differ by up to {tokens.largest_error:.3g}")
    for difference in tokens.differences:
        console.print(Text(str(difference)))
    if any(difference.tie is None for difference in tokens.differences) and report.fault is None:
        whole = len(report.checked_layers) == report.spec.layers
        console.print(DECIDED if whole else UNDECIDED)
    if report.recorded_calls is not None:
        console.print(f"the operands of {how_many(report.recorded_calls, 'call')} were kept")
    unsteady = "the same logits to the bit" if report.unsteady is None else f"other logits: {report.unsteady}"
    console.print(f"a run without checks gives {unsteady}")


def print_contract(console: Console, verdicts: Sequence["Verdict"]) -> None:
    """Print how many clauses hold, and each that does not."""
    applied = [verdict for verdict in verdicts if verdict.applies]
    failed = [verdict for verdict in applied if verdict.error is not None]
    console.print(
        f"contract: {len(applied) - len(failed)} of {len(applied)} clauses passed, "
        f"{len(verdicts) - len(applied)} do not apply to this port"
    )
    for verdict in applied:
        outcome = "passed" if verdict.error is None else f"FAILED: {verdict.error}"
        console.print(Text(f"  {verdict.clause}: {outcome}"))
        if verdict.error is not None:
            console.print(Text(f"    the law: {verdict.law}"))
    if failed:
        console.print(f"flexref check --explain {failed[0].clause} shows a clause's law and source")
