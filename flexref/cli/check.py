"""`flexref check`: which operator of a port is wrong, by how much, on what input; it parses, calls and prints."""

import json
from typing import TYPE_CHECKING, Any

import click

from flexref.cli.arguments import BACKEND, TEXT
from flexref.cli.completion import files
from flexref.cli.completion import ports as installed_ports
from flexref.cli.options import asked_of, computing_port, option, options, prompts_of
from flexref.cli.porting import MISSING, has_hypothesis, need_hypothesis, what_was_given
from flexref.cli.show.progress import progress
from flexref.errors import FlexrefError

if TYPE_CHECKING:
    from flexref.check.portcheck import PortCheck, PortReport
    from flexref.testing.verdicts import Verdict

CONTRACT_HELP = "Check every clause of the port contract as well; default: if hypothesis is installed."

MATCHING_HELP = "Check only the clauses whose names hold this, and no model; give it once or more."

EXPLAIN_HELP = "Print a clause's law, who must pass it, and its source; all: the law of each."

WITH_CLAUSES = ("backend", "contract", "examples", "words", "as_json")
"""Parameters that mean something where clauses alone are checked."""


def _explain(context: click.Context, _: click.Parameter, clause: str | None) -> None:
    """Prints a clause and leaves."""
    if clause is None or context.resilient_parsing:
        return
    need_hypothesis()
    from flexref.testing.verdicts import explanation

    click.echo(explanation(clause).rstrip())
    context.exit()


def _need_no_more(context: click.Context) -> None:
    """`UsageError` for an option beside -k that is for a model, or takes the contract away."""
    more = what_was_given(context, WITH_CLAUSES)
    if more is not None:
        given = more.secondary_opts if context.params[str(more.name)] is False else more.opts
        raise click.UsageError(f"-k checks clauses alone: it does not go with {(given or more.opts)[0]}")
    if context.params["contract"] is False:
        raise click.UsageError("-k checks clauses alone: it does not go with --no-contract")


@click.command("check")
@click.argument("ports", nargs=-1, type=BACKEND, metavar="[A B]", shell_complete=installed_ports)
@option("--backend", default=None, show_default=None, metavar="NAME", help="The port to check.")
@option("--model", required=False)
@option("--prompt", help="A prompt; default: rows of random tokens.")
@option("--input")
@option("--max-new-tokens", default=8, help="New tokens of every prompt, chosen greedily.")
@click.option("--layers-checked", metavar="N", type=click.IntRange(1, 9999), help="Check N layers only, spread evenly.")
@click.option("--layers", "every_layer", is_flag=True, help="Show every layer and not just the worst.")
@click.option("--contract/--no-contract", default=None, help=CONTRACT_HELP)
@click.option(
    "--examples", default=50, show_default=True, type=click.IntRange(1, 1_000_000), help="Tries of every clause."
)
@click.option("-k", "words", multiple=True, type=TEXT, metavar="WORD", help=MATCHING_HELP)
@click.option("--explain", metavar="CLAUSE", is_eager=True, expose_value=False, callback=_explain, help=EXPLAIN_HELP)
@option("--device-mem-gib")
@option("--host-mem-gib", help="Budget of the host, checks not counted; default: what is free.")
@options("--disk-dir", "--policy", "--percent", "--rows-per-group", "--groups")
@options("--attention-on", "--host-attention-percent", "--quantize-cache", "--overlap", "--row-invariant")
@click.option(
    "--record",
    "record_file",
    type=TEXT,
    metavar="FILE.npz",
    shell_complete=files,
    help="Keep the operands of operators, for `flexref conformance --operands`.",
)
@option("--force")
@option("--json", help="Print all of it as one JSON object.")
def command(
    as_json: bool, every_layer: bool, contract: bool | None, examples: int, words: tuple[str, ...], **given: Any
) -> None:
    """Run a model on a port and hold every operator against float64 on the very operands that it was given.

    Of two ports A and B the first runs the model, and the second is given each of its calls, with the same operands:
    told is where they are further apart than rounding permits, first of all, and which of them is right.

    Errors are multiples of the bound that follows from the arithmetic: up to 1 they are rounding. If anything is beyond
    its bound, the exit code is 1 and one line on stderr names the worst operator.
    """
    if given["ports"]:
        from flexref.cli.porting.check_pair import check_pair, need_two

        need_two(click.get_current_context(), given)
        check_pair(given["ports"], _job({**given, "backend": given["ports"][0]}), every_layer, as_json)
        return
    if given["backend"] is None:
        raise click.UsageError("give --backend, the port to check")
    if given["model"] is None and not words:
        raise click.UsageError("give --model, or -k to check clauses of the contract alone")
    if words:
        _need_no_more(click.get_current_context())
    found = has_hypothesis()
    if contract or words:
        need_hypothesis()
    report = None if words else _check(given)
    verdicts = None if contract is False or not found else _verdicts(given["backend"], examples, words)
    fault = (None if report is None else report.fault) or _broken(verdicts)
    is_judged = report is not None or any(part.applies for part in verdicts or ())
    if as_json:
        within = fault is None if is_judged else None  # clauses that do not apply say nothing
        clauses = None if verdicts is None else {"examples": examples, "clauses": [part.to_json() for part in verdicts]}
        about = {"backend": given["backend"]} if report is None else report.to_json()
        click.echo(json.dumps({**about, "contract": clauses, "fault": fault, "within_bounds": within}))
    else:
        _print(report, verdicts, every_layer)
        if contract is None and not found:
            click.echo(f"contract: not checked, {MISSING}")
        if fault is None and is_judged:
            click.echo("all is within bounds")
    if fault is not None:
        raise FlexrefError(fault)


def _job(given: dict[str, Any]) -> "PortCheck":
    """What the options ask for."""
    from flexref.check.portcheck import PortCheck
    from flexref.storage.names import resolve
    from flexref.storage.weightfile import read_layout

    asked = asked_of(given)
    texts, path = given["prompts"], given["input_file"]
    vocabulary = read_layout(resolve(given["model"])).spec.vocabulary
    return PortCheck(
        given["model"],
        lambda: computing_port(given["backend"]),
        prompts_of(texts, path, vocabulary) if texts or path is not None else (),
        given["max_new_tokens"],
        {"policy": asked.policy, "keep": asked.keep, **asked.budgets},
        given["layers_checked"],
        given["record_file"],
    )


def _check(given: dict[str, Any]) -> "PortReport":
    from flexref.check.portcheck import check_port
    from flexref.cli.show.outputs import check_outputs

    if given["record_file"] is not None:
        check_outputs({"--record": given["record_file"]}, (given["model"], given["input_file"]), force=given["force"])
    job = _job(given)
    with progress("checking the port") as shown:
        return check_port(job, shown.visit)


def _verdicts(backend: str, examples: int, words: tuple[str, ...]) -> "list[Verdict]":
    """Of all clauses, or of those whose names hold one of the words."""
    from flexref.backend.registry import create
    from flexref.testing.contract import CONTRACT
    from flexref.testing.verdicts import matching, verdicts

    clauses = matching(words) if words else CONTRACT
    port = create(backend)
    found = []
    try:
        with progress("checking the contract", len(clauses), "clauses") as shown:
            for verdict in verdicts(port, examples, clauses):
                found.append(verdict)
                shown.advance()
    finally:
        port.close()
    return found


def _broken(verdicts: "list[Verdict] | None") -> str | None:
    """The first clause that failed, in one line."""
    failed = [verdict for verdict in verdicts or () if verdict.error is not None]
    if not failed:
        return None
    first = failed[0]
    return f"the port breaks the clause {first.clause}: {first.error}; its law: {first.law}"


def _print(report: "PortReport | None", verdicts: "list[Verdict] | None", every_layer: bool) -> None:
    from flexref.cli.show.check_report import print_contract, print_report
    from flexref.cli.show.console import table_console

    console = table_console(highlight=False)
    if report is not None:
        print_report(console, report, every_layer)
    if verdicts is not None:
        print_contract(console, verdicts)
