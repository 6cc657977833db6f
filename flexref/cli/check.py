"""`flexref check`: which operator of a port is wrong, by how much, on what input; it parses, calls and prints."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from flexref.cli.generate import PERCENT_HELP, policies, prompts_of
from flexref.errors import FlexrefError

if TYPE_CHECKING:
    from flexref.check.portcheck import PortCheck, PortReport
    from flexref.testing.verdicts import Verdict

CONTRACT_HELP = "Check every clause of the port contract as well; default: if hypothesis is installed."

MISSING = "the contract needs hypothesis, which is not installed: pip install 'flexref[testing]'"


@click.command("check")
@click.option("--backend", required=True, metavar="NAME", help="The port to check.")
@click.option("--model", required=True, metavar="FILE|demo", help="A weight file, or the built-in model.")
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="A prompt; default: rows of random tokens.")
@click.option("--input", "input_file", metavar="FILE", help="Prompts, one a line, or JSON lines with `prompt`.")
@click.option("--max-new-tokens", default=8, show_default=True, type=click.IntRange(min=1), help="Per prompt, greedy.")
@click.option("--layers-checked", metavar="N", type=click.IntRange(min=1), help="Check N layers only, evenly spread.")
@click.option("--layers", "every_layer", is_flag=True, help="Show every layer and not just the worst.")
@click.option("--contract/--no-contract", default=None, help=CONTRACT_HELP)
@click.option("--examples", default=50, show_default=True, type=click.IntRange(min=1), help="For every clause.")
@click.option("--device-mem-gib", type=float, help="Budget of the device; default: what is free.")
@click.option("--host-mem-gib", type=float, help="Budget of the host, checks not counted; default: what is free.")
@click.option("--disk-dir", metavar="DIR", help="Where cache and activations may spill; default: the temporary folder.")
@click.option("--policy", "policy_file", metavar="FILE", help="A policy as JSON; default: chosen from the budgets.")
@click.option("--percent", nargs=6, type=float, metavar="W_DEV W_HOST C_DEV C_HOST A_DEV A_HOST", help=PERCENT_HELP)
@click.option("--rows-per-group", type=click.IntRange(min=1), help="Rows that are computed together.")
@click.option("--groups", "groups_per_block", type=click.IntRange(min=1), help="Groups that share a fetched layer.")
@click.option("--attention-on", type=click.Choice(["device", "host"]), help="Where an offloaded cache is attended to.")
@click.option("--quantize-cache", is_flag=True, help="Keep the KV cache in 4-bit groups.")
@click.option("--overlap/--no-overlap", default=None, help="Move beside computing, or one thing after another.")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as one JSON object.")
def command(as_json: bool, every_layer: bool, contract: bool | None, examples: int, **options: Any) -> None:
    """Run a model on a port and hold every operator against float64 on the very operands that it was given.

    Errors are multiples of the bound that follows from the arithmetic: up to 1 they are rounding. If anything is beyond
    its bound, the exit code is 1 and one line on stderr names the worst operator.
    """
    found = find_spec("hypothesis") is not None
    if contract and not found:
        raise FlexrefError(MISSING)
    report = _check(options)
    verdicts = None if contract is False or not found else _verdicts(options["backend"], examples)
    fault = report.fault or _broken(verdicts)
    if as_json:
        clauses = None if verdicts is None else {"examples": examples, "clauses": [part.to_json() for part in verdicts]}
        click.echo(
            json.dumps({**report.to_json(), "contract": clauses, "fault": fault, "within_bounds": fault is None})
        )
    else:
        _print(report, verdicts, every_layer)
        if contract is None and not found:
            click.echo(f"contract: not checked, {MISSING}")
        if fault is None:
            click.echo("all is within bounds")
    if fault is not None:
        click.echo(f"flexref: {fault}", err=True)
        raise click.exceptions.Exit(1)


def _job(options: dict[str, Any]) -> "PortCheck":
    """What the options ask for."""
    from flexref.backend.registry import create
    from flexref.check.portcheck import PortCheck
    from flexref.storage.weightfile import read_layout, resolve

    policy, keep = policies(options)
    texts, path = options["prompts"], options["input_file"]
    vocabulary = read_layout(resolve(options["model"])).spec.vocabulary
    return PortCheck(
        options["model"],
        lambda: create(options["backend"]),
        prompts_of(texts, path, vocabulary) if texts or path is not None else (),
        options["max_new_tokens"],
        {
            "policy": policy,
            "keep": keep,
            **{name: options[name] for name in ("device_mem_gib", "host_mem_gib", "disk_dir")},
        },
        options["layers_checked"],
    )


def _check(options: dict[str, Any]) -> "PortReport":
    from flexref.check.portcheck import check_port

    job = _job(options)
    with _told("loading") as tell:
        return check_port(job, lambda stage, group, turn: tell(f"pass {turn}, {stage.name}, group {group}"))


def _verdicts(backend: str, examples: int) -> "list[Verdict]":
    from flexref.backend.registry import create
    from flexref.testing.verdicts import verdicts

    port = create(backend)
    found = []
    try:
        with _told("the contract") as tell:
            for verdict in verdicts(port, examples):
                found.append(verdict)
                tell(f"the contract: {verdict.clause}")
    finally:
        port.close()
    return found


@contextmanager
def _told(what: str) -> Iterator[Callable[[str], None]]:
    """Yields a function that says on stderr what is being done; silent where that is no terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda text: progress.update(task, description=text)


def _broken(verdicts: "list[Verdict] | None") -> str | None:
    """The first clause that failed, in one line."""
    failed = [verdict for verdict in verdicts or () if verdict.error is not None]
    return f"the port breaks the clause {failed[0].clause}: {failed[0].error}" if failed else None


def _print(report: "PortReport", verdicts: "list[Verdict] | None", every_layer: bool) -> None:
    from rich.console import Console

    from flexref.cli.show.check_report import PIPED_WIDTH, print_contract, print_report

    console = Console(highlight=False)
    console = console if console.is_terminal else Console(width=PIPED_WIDTH, highlight=False)
    print_report(console, report, every_layer)
    if verdicts is not None:
        print_contract(console, verdicts)
