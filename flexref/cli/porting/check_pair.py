"""`flexref check A B`: two ports on one model, operator by operator on the same operands; it calls and prints."""

import json
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text

from flexref.cli.options import computing_port, was_given
from flexref.cli.show.console import FilledTable, table_console
from flexref.cli.show.progress import progress
from flexref.cli.streams import printable
from flexref.errors import FlexrefError, how_many

if TYPE_CHECKING:
    from flexref.check.portcheck import PortCheck
    from flexref.check.side_by_side.run import PairReport

ALONE = ("backend", "contract", "examples", "words", "layers_checked", "record_file", "force")
"""Parameters of a check of one port."""

HEADINGS = ("stage", "times what rounding permits", "apart", "operator", "where", "operands")


def check_pair(ports: tuple[str, ...], job: "PortCheck", every_layer: bool, as_json: bool) -> None:
    """Compare two ports and print what was found; `FlexrefError` for the first divergence."""
    from flexref.check.side_by_side.run import compare_ports

    with progress("comparing two ports") as shown:
        report = compare_ports(job, lambda: computing_port(ports[1]), (ports[0], ports[1]), shown.visit)
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        _print(table_console(highlight=False), report, every_layer)
    if report.fault is not None:
        raise FlexrefError(f"the first divergence: {report.fault}")


def need_two(context: click.Context, given: dict[str, Any]) -> None:
    """`UsageError` unless there are two ports, a model, and nothing that is for a check of one port."""
    if len(given["ports"]) != 2:
        raise click.UsageError(f"give two ports, or one by --backend, found {how_many(len(given['ports']), 'port')}")
    if given["model"] is None:
        raise click.UsageError("give --model, on which to compare them")
    for parameter in context.command.params:
        name = str(parameter.name)
        if name in ALONE and was_given(context, name):
            raise click.UsageError(f"two ports are compared: that does not go with {parameter.opts[0]}")


def _print(console: Console, report: "PairReport", every_layer: bool) -> None:
    names = report.findings.names
    lengths = ", ".join(map(str, report.prompt_tokens))
    console.print(
        f"{printable(report.model)} on {names[0]} beside {names[1]}, rows of {lengths} tokens: "
        f"{how_many(report.findings.calls, 'call')} compared on the same operands"
    )
    shown = list(report.findings.worst.values() if every_layer else report.findings.by_stage().values())
    rows = [
        (
            finding.stage,
            f"{finding.ratio:.3g}",
            "" if finding.fault else f"{finding.apart:.3g}",
            finding.operator,
            finding.fault or (f"pass {finding.turn}, {finding.place}" if finding.ratio else ""),
            finding.operands,
        )
        for finding in shown
    ]
    title = "How far two ports are from each other, at worst"
    console.print(FilledTable(title, HEADINGS, rows, left=("operator", "where", "operands")))
    if report.ended is not None:
        console.print(Text(f"the run ended there: {report.ended}"))
        return
    for parting in report.partings:
        console.print(parting.told(names))
    same = len(report.prompt_tokens) - len(report.partings)
    most = max(report.logits_apart, default=0.0)
    console.print(
        f"each alone: {same} of {how_many(len(report.prompt_tokens), 'row')} with the same tokens; until then logits "
        f"are apart by up to {most:.3g}"
    )
    if report.fault is None:
        console.print("all that differs is within what rounding permits")
