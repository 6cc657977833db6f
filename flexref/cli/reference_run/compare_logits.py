"""`flexref compare-logits`: another engine's logits beside a reference run's; it parses, calls and prints."""

import json

import click

from flexref.cli.arguments import TEXT
from flexref.cli.options import option
from flexref.cli.reference_run import DTYPES
from flexref.cli.show.progress import progress
from flexref.errors import FlexrefError

DTYPE_HELP = "What the other engine stores results as, summing in float32: the type whose bounds are asked."


@click.command("compare-logits")
@click.argument("reference", type=TEXT, metavar="REFERENCE")
@click.argument("theirs", type=TEXT, metavar="THEIRS")
@option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help=DTYPE_HELP)
@option("--json")
def command(reference: str, theirs: str, dtype: str, as_json: bool) -> None:
    """Compare the logits of another engine, THEIRS, with a REFERENCE of `flexref logits`: does rounding explain them?

    THEIRS is an .npz file with `logits_0`, `logits_1` and so on for the rows of the reference, each (positions,
    vocabulary) in float16, float32 or float64, as numpy.savez writes them; `ids_0` and so on are compared if they are
    there. If a logit is beyond its bound, the exit code is 1 and one line on stderr names the worst.
    """
    from flexref.check.logits_compare import compare_logits
    from flexref.check.logits_file import ArraysFile

    with ArraysFile(reference) as first, ArraysFile(theirs) as second, progress("comparing", unit="rows") as shown:
        found = compare_logits(first, second, dtype, shown.reach)
    if as_json:
        click.echo(json.dumps({"reference": reference, "theirs": theirs, **found.to_json()}))
    else:
        from flexref.cli.show.compare_logits_report import print_difference
        from flexref.cli.show.console import table_console

        print_difference(table_console(highlight=False), found)
    if found.fault is not None:
        raise FlexrefError(found.fault)
