"""`flexref conformance`: the contract against any installed port, as a support table; it parses, calls and prints."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from flexref.cli.arguments import TEXT, Amount
from flexref.cli.completion import files, folders
from flexref.cli.options import option
from flexref.cli.porting import need_hypothesis, what_was_given
from flexref.errors import FlexrefError, WrongCall, how_many

if TYPE_CHECKING:
    from flexref.testing.conformance.contract_run import Conformance
    from flexref.testing.conformance.results import ClauseResult, ConformanceResult

ALONE = {"replay_file": "--replay", "operands_file": "--operands"}
"""Options that repeat what was saved and try no clause, by their parameters."""

WITH_THEM = ("backend", "limit_s", "as_json")
"""Parameters that mean something beside one of these."""


@click.command("conformance")
@option("--backend", default=None, show_default=None, metavar="NAME", help="The port to try.")
@click.option(
    "--clause",
    "words",
    multiple=True,
    type=TEXT,
    metavar="WORD",
    help="Clauses with such names alone; once or more.",
)
@click.option("--operator", "methods", multiple=True, metavar="METHOD", help="Clauses about it alone; once or more.")
@click.option(
    "--examples", default=100, show_default=True, type=click.IntRange(1, 1_000_000), help="Tries of every clause."
)
@click.option(
    "--time-limit-s",
    "limit_s",
    default=300.0,
    show_default=True,
    type=Amount(above=True),
    help="A clause that takes longer hangs, and is told as such.",
)
@click.option(
    "--cases",
    "cases_folder",
    type=TEXT,
    metavar="DIR",
    shell_complete=folders,
    help="Where failing inputs are saved, one .npz for each clause; default: NAME-cases.",
)
@click.option(
    "--replay",
    "replay_file",
    type=TEXT,
    metavar="FILE.npz",
    shell_complete=files,
    help="Repeat a failing input that was saved, and nothing else.",
)
@click.option(
    "--operands",
    "operands_file",
    type=TEXT,
    metavar="FILE.npz",
    shell_complete=files,
    help="Repeat the operators of a model's run, as `flexref check --record` keeps them, and nothing else.",
)
@click.option(
    "--known",
    "known_file",
    type=TEXT,
    metavar="FILE",
    shell_complete=files,
    help="Known failures, a JSON object of reasons by clause: they are told, and do not count.",
)
@click.option("--perf", "timed", is_flag=True, help="Time every operator, too, beside the port's memory and product.")
@click.option(
    "--report",
    "page_file",
    type=TEXT,
    metavar="FILE.html",
    shell_complete=files,
    help="Write a page of the result, too.",
)
@option("--force")
@option("--json")
def command(as_json: bool, page_file: str | None, force: bool, **given: Any) -> None:
    """Try the contract on an installed port, and say of each method whether it passes and how far off it is.

    Every clause runs in a process of its own: a crash, an exit or a hanging port is a finding like a wrong result. What
    fails is made as small as possible and saved. Errors are shares of the bound that follows from the arithmetic: up to
    1 they are rounding. The exit code is 1 if anything that is not known fails or is not written yet.
    """
    if given["backend"] is None:
        raise click.UsageError("give --backend, the port to try")
    need_hypothesis()
    for name, flag in ALONE.items():
        if given[name] is not None:
            _need_no_more(name, flag)
    if given["replay_file"] is not None:
        _replay(given, as_json)
        return
    if given["operands_file"] is not None:
        from flexref.testing.conformance.operands_run import replay_operands

        _show(replay_operands(given["backend"], given["operands_file"], given["limit_s"]), as_json)
        return
    asked = _asked(given)
    if page_file is not None:
        from flexref.cli.show.outputs import check_outputs

        check_outputs({"--report": page_file}, (given["known_file"],), force=force)
    result = _conform(asked)
    if page_file is not None:
        from flexref.files import write_text
        from flexref.testing.conformance.page import page

        write_text(page_file, page(result))
    _show(result, as_json)


def _show(result: "ConformanceResult", as_json: bool) -> None:
    """Print a result; `FlexrefError` that names its first fault, if there is one."""
    if as_json:
        click.echo(result.to_json())
    else:
        from flexref.cli.show.conformance_report import print_result
        from flexref.cli.show.console import table_console

        print_result(table_console(highlight=False), result)
    if result.operands:
        first = result.operands[0]
        raise FlexrefError(
            f"the port {result.backend} is wrong in {how_many(len(result.operands), 'call')}: call {first.call}, "
            f"{first.method} {first.status}: {first.error}"
        )
    _leave(result)


def _need_no_more(alone: str, flag: str) -> None:
    """`UsageError` for an option beside one that tries no clause."""
    more = what_was_given(click.get_current_context(), (alone, *WITH_THEM))
    if more is not None:
        raise click.UsageError(f"{flag} repeats what was saved: it does not go with {more.opts[0]}")


def _asked(given: dict[str, Any]) -> "Conformance":
    """What the options ask for."""
    from flexref.testing.conformance.contract_run import Conformance
    from flexref.testing.conformance.results import read_known
    from flexref.testing.conformance.watch import METHODS
    from flexref.testing.verdicts import CLAUSES, names_holding

    for method in given["methods"]:
        if method not in METHODS:
            raise WrongCall(f"no method of the protocol is called {method!r:.60}; there are {', '.join(METHODS)}")
    words, known = given["words"], given["known_file"]
    return Conformance(
        given["backend"],
        names_holding(words, CLAUSES) if words else tuple(CLAUSES),
        given["methods"],
        given["examples"],
        given["limit_s"],
        given["cases_folder"] or f"{given['backend']}-cases",
        given["timed"],
        {} if known is None else read_known(known, tuple(CLAUSES)),
    )


def _conform(asked: "Conformance") -> "ConformanceResult":
    from flexref.cli.show.progress import progress
    from flexref.testing.conformance.contract_run import conform

    with progress("trying the contract", len(asked.chosen()), "clauses") as shown:

        def told(clause: "ClauseResult") -> None:
            shown.note(clause.clause)
            shown.advance()

        return conform(asked, told)


def _replay(given: dict[str, Any], as_json: bool) -> None:
    from flexref.testing.conformance.cases import read_case
    from flexref.testing.conformance.contract_run import replay

    result = replay(given["backend"], read_case(given["replay_file"]), given["limit_s"])
    if as_json:
        click.echo(json.dumps(asdict(result)))
    elif result.error is None:
        click.echo(f"{result.clause}: passed")
    if result.error is not None:
        raise FlexrefError(f"{result.clause}: {result.status}, {result.error}; its law: {result.law}")


def _leave(result: "ConformanceResult") -> None:
    """`FlexrefError` that names the first fault, if there is one."""
    faults = list(result.faults)
    if not faults:
        return
    if result.to_do and all(clause.status == "not written" for clause in faults):
        left = how_many(len(result.to_do), "method")
        raise FlexrefError(f"the port {result.backend} lacks {left}; the next to write: {result.to_do[0].method}")
    first = next(clause for clause in faults if clause.status != "not written")
    where = "" if first.method is None else f" ({first.method})"
    raise FlexrefError(
        f"the port {result.backend} breaks {how_many(len(faults), 'clause')}: "
        f"{first.clause}{where} {first.status}: {first.error}; its law: {first.law}"
    )
