"""`flexref verify`: which datasets of a weight file are damaged; it parses, calls one function and prints."""

import json
import time

import click

from flexref.cli.arguments import WEIGHT_FILE
from flexref.cli.completion import weight_files
from flexref.cli.options import option
from flexref.cli.show.progress import progress
from flexref.cli.show.stage import BYTES
from flexref.errors import FlexrefError, WeightFileError, in_gib


@click.command("verify")
@click.argument("file", type=WEIGHT_FILE, metavar="FILE", shell_complete=weight_files)
@option("--json")
def command(file: str, as_json: bool) -> None:
    """Check every dataset of the weight file FILE (or `demo`, the built-in model) against its checksum.

    Prints the name of each damaged dataset, and why the tokenizer cannot be used if it cannot; the exit code is then 1,
    with one line on stderr.
    """
    from flexref.storage.names import resolve
    from flexref.storage.schema import TOKENIZER
    from flexref.storage.weightfile import read_layout, verify

    path = resolve(file)
    started = time.perf_counter()
    parts = list(read_layout(path).parts)
    checked_bytes = sum(part.extent.nbytes for part in parts)
    with progress("checking", checked_bytes, BYTES) as shown:
        damaged = verify(path, shown.reach)
    refused = None if TOKENIZER in damaged else _refused_tokenizer(path)
    elapsed = time.perf_counter() - started
    if as_json:
        report = {
            "file": path,
            "damaged": damaged,
            "tokenizer_error": refused,
            "checked_datasets": len(parts),
            "checked_bytes": checked_bytes,
            "elapsed_s": elapsed,
        }
        click.echo(json.dumps(report))
    elif damaged or refused is not None:
        for name in damaged:
            click.echo(f"damaged: {name}")
        if refused is not None:
            click.echo(f"refused: {refused}")
    else:
        click.echo(f"{path}: all {len(parts)} datasets match, {in_gib(checked_bytes)} in {elapsed:.1f} s")
    if damaged:
        raise WeightFileError(f"{path}: {len(damaged)} of {len(parts)} datasets do not match their checksums")
    if refused is not None:
        raise WeightFileError(f"{path}: its tokenizer cannot be used")


def _refused_tokenizer(path: str) -> str | None:
    """Why a job on the file would refuse its tokenizer; None if it would not."""
    from flexref.storage.weightfile import open_weight_file
    from flexref.text.tokenizer import Tokenizer

    document = open_weight_file(path).tokenizer_json
    try:
        if document is not None:
            _ = Tokenizer.from_json(document, path).chat_template
    except FlexrefError as error:
        return str(error)
    return None
