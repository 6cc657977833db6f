"""`flexref batch merge`: the outputs of a job's shards in, one output out; parses, calls one function, prints."""

import json
from pathlib import Path

import click

from flexref.cli.arguments import TEXT
from flexref.cli.completion import files
from flexref.cli.logs import shows_progress
from flexref.cli.options import option
from flexref.cli.streams import tell
from flexref.errors import how_many

ACCEPT_HELP = "Join shards of other devices or libraries, too: one process might have written other bytes."


@click.command("merge")
@click.argument("outputs", nargs=-1, required=True, metavar="OUT.jsonl...", type=TEXT, shell_complete=files)
@option("--output", required=True, help="Where the answers of all shards go, in the order of the input.")
@click.option(
    "--errors",
    "errors_file",
    type=TEXT,
    metavar="FILE",
    shell_complete=files,
    help="Where those of failed lines go, if the shards have them in files of their own.",
)
@click.option("--accept-changed-machine", "accept_arithmetic", is_flag=True, help=ACCEPT_HELP)
@option("--force")
@option("--json", help="Print one JSON object in the end.")
def command(
    outputs: tuple[str, ...],
    output_file: str,
    errors_file: str | None,
    accept_arithmetic: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Join the outputs of a job's shards in the order of the input: what one process would have written.

    Every output is read with its journal beside it. Shards that are missing, not finished, there twice, of another job
    or changed since are refused, and nothing is written then.
    """
    from flexref.batch_job.merge import merge, read_shards
    from flexref.cli.show.outputs import check_outputs

    shards = read_shards([Path(path) for path in outputs], accept_arithmetic=accept_arithmetic)
    read = [str(path) for shard in shards for path in shard.files if path.exists()]
    check_outputs({"-o": output_file, "--errors": errors_file}, read, force=force)
    lines, failed = merge(shards, Path(output_file), None if errors_file is None else Path(errors_file))
    if as_json:
        click.echo(json.dumps({"shards": len(shards), "lines": lines, "lines_failed": failed, "output": output_file}))
    elif shows_progress():
        tell(f"{output_file}: {how_many(lines, 'line')} of {how_many(len(shards), 'shard')}, {failed} of them failed")
