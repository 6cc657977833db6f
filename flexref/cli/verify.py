"""`flexref verify`: which datasets of a weight file are damaged; it parses, calls one function and prints."""

import json
import time

import click

from flexref.cli.options import option
from flexref.cli.show.progress import byte_bar
from flexref.errors import in_gib


@click.command("verify")
@click.argument("file", metavar="FILE")
@option("--json")
def command(file: str, as_json: bool) -> None:
    """Check every dataset of the weight file FILE (or `demo`, the built-in model) against its checksum.

    Prints the name of each damaged dataset and leaves with exit code 1 if there is any.
    """
    from flexref.storage.weightfile import read_layout, resolve, verify

    path = resolve(file)
    started = time.perf_counter()
    parts = list(read_layout(path).parts)
    with byte_bar("checking") as on_progress:
        damaged = verify(path, on_progress)
    elapsed = time.perf_counter() - started
    checked_bytes = sum(part.extent.nbytes for part in parts)
    if as_json:
        report = {
            "file": path,
            "damaged": damaged,
            "checked_datasets": len(parts),
            "checked_bytes": checked_bytes,
            "elapsed_s": elapsed,
        }
        click.echo(json.dumps(report))
    elif damaged:
        for name in damaged:
            click.echo(f"damaged: {name}")
    else:
        click.echo(f"{path}: all {len(parts)} datasets match, {in_gib(checked_bytes)} in {elapsed:.1f} s")
    if damaged:
        raise click.exceptions.Exit(1)
