"""`flexref conformance diff`: what has changed between two conformance results; it parses, calls and prints."""

import json

import click

from flexref.cli.arguments import TEXT
from flexref.cli.completion import files
from flexref.cli.options import option
from flexref.errors import FlexrefError, how_many


@click.command("diff")
@click.argument("before", metavar="BEFORE", type=TEXT, shell_complete=files)
@click.argument("now", metavar="NOW", type=TEXT, shell_complete=files)
@option("--json")
def command(before: str, now: str, as_json: bool) -> None:
    """Compare two results, as `flexref conformance --json` prints them: of two versions of a port, or of two ports.

    Told are clauses whose status differs, worst errors that differ by a factor of two or more as shares of their
    bounds, and versions. The exit code is 1 if a clause fails now that passed before, or was not tried.
    """
    from flexref.testing.conformance.difference import difference
    from flexref.testing.conformance.results import read_result

    found = difference(read_result(before), read_result(now))
    if as_json:
        click.echo(json.dumps(found.to_json()))
    else:
        for change in found.statuses:
            where = "" if change.method is None else f" ({change.method})"
            said = "" if change.error is None or change.now == "passed" else f": {change.error}"
            click.echo(f"{change.clause}: {change.before}, now {change.now}{where}{said}")
        for share in found.shares:
            click.echo(f"{share.method}: worst share of its bound {share.before:.3g}, now {share.now:.3g}")
        for name, (was, is_now) in found.versions.items():
            click.echo(f"{name} was {was}, is {is_now}")
        if not (found.statuses or found.shares or found.versions):
            click.echo("nothing has changed")
    if found.worse:
        raise FlexrefError(f"{how_many(len(found.worse), 'clause')} got worse, first {found.worse[0].clause}")
