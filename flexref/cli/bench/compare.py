"""`flexref bench compare`: two sets of benchmarks in, a verdict for each benchmark in both out; parses and prints."""

import json
from typing import TYPE_CHECKING

import click

from flexref.cli.arguments import TEXT
from flexref.cli.completion import files
from flexref.cli.options import option

if TYPE_CHECKING:
    from rich.table import Table

    from flexref.bench.comparison import Joined

SLOWER = 3
"""The exit code where something is slower, if one was asked for: that of no error."""


@click.command("compare")
@click.argument("before", metavar="BEFORE", type=TEXT, shell_complete=files)
@click.argument("now", metavar="NOW", type=TEXT, shell_complete=files)
@click.option(
    "--history",
    "history_file",
    type=TEXT,
    metavar="FILE",
    shell_complete=files,
    help="Take both from this file, as `bench --history` writes it: each is a label, or the beginning of a UTC time.",
)
@click.option("--fail-if-slower", is_flag=True, help="Leave with exit code 3 if tokens/s of any benchmark are slower.")
@option("--json")
def command(before: str, now: str, history_file: str | None, fail_if_slower: bool, as_json: bool) -> None:
    """Compare two files of benchmarks, as `flexref bench --json` prints them, or two labels or days of a history.

    Benchmarks of the same arguments, weights and hardware are joined; of those that are alike in one file the last
    counts. For every figure the verdict is faster, slower, or not told apart: where Welch's t-test of the single runs
    finds a difference that chance would make in one comparison of twenty or more, or where there is but one run.
    """
    from flexref.bench.baseline import read_baselines
    from flexref.bench.comparison import compare
    from flexref.bench.history import read_history

    if history_file is None:
        found = compare(read_baselines(before), read_baselines(now))
    else:
        found = compare(read_history(history_file, before), read_history(history_file, now))
    if as_json:
        click.echo(json.dumps(found.to_json()))
    else:
        from flexref.cli.show.console import table_console

        console = table_console()
        for one in found.joined:
            console.print(_table(one))
            for name, (was, is_now) in one.differs.items():
                console.print(f"{name} was {was}, is {is_now}", highlight=False)
        for where in (*found.only_before, *found.only_now):
            console.print(f"in one alone: {where}", highlight=False)
    if fail_if_slower and any(one.verdict == "slower" for one in found.joined):
        click.get_current_context().exit(SLOWER)


def _table(one: "Joined") -> "Table":
    """Every figure of one benchmark, before and now."""
    from rich.table import Table

    about = one.now.arguments
    lengths = about.lengths or f"{about.rows} rows of {about.prompt_len} + {about.gen_len} tokens"
    title = f"{about.model} on {about.backend}, {lengths}: {one.verdict} ({one.now.where} after {one.before.where})"
    table = Table(title=title, title_justify="left")
    for heading in ("", "mean before", "mean now", "ratio", "runs", "p", ""):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for change in one.changes:
        chance = "one run" if change.p_value is None else f"{change.p_value:.3g}"
        runs = f"{change.runs_before}, {change.runs_now}"
        figures = (f"{change.before:.4f}", f"{change.now:.4f}", f"{change.ratio:.3f}", runs, chance)
        table.add_row(change.figure, *figures, change.verdict)
    return table
