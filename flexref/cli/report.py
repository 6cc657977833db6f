"""`flexref report`: a page of a batch job, from its journal and its answers; it parses, calls and writes."""

import click

from flexref.cli.arguments import TEXT, Amount
from flexref.cli.completion import files
from flexref.cli.options import option


@click.command("report")
@click.argument("output", type=TEXT, metavar="OUT.jsonl", shell_complete=files)
@option("--output", names=("-o", "page_file"), metavar="FILE.html", help="Write one self-contained HTML page.")
@click.option(
    "--errors",
    "errors_file",
    type=TEXT,
    metavar="ERR.jsonl",
    shell_complete=files,
    help="Where the job's failed lines went; default: where its journal says.",
)
@click.option(
    "--price-per-hour",
    "usd_per_hour",
    type=Amount(),
    help="What the machine costs in an hour; default: what the job was told.",
)
@option("--force")
@option("--json", help="Print all figures as one JSON object.")
def command(
    output: str,
    page_file: str | None,
    errors_file: str | None,
    usd_per_hour: float | None,
    force: bool,
    as_json: bool,
) -> None:
    """Report on a batch job that runs or has ended, whose answers go to OUT.jsonl.

    The page shows what the job is and where it stands, throughput, occupancy, lanes and links over time, memory,
    lengths, faults and restarts, failed lines, what was predicted beside what was measured, and the cost. It is made
    from the journal that `flexref batch` keeps beside its output, needs no network, and does not change by itself.
    """
    if page_file is None and not as_json:
        raise click.UsageError("give -o FILE.html, --json or both")

    from datetime import datetime, timezone

    import msgspec

    from flexref.batch_job.journal.reading import journal_path
    from flexref.batch_job.report.page import in_short, page
    from flexref.batch_job.report.read import read_job
    from flexref.cli.show.outputs import check_outputs
    from flexref.files import write_text

    check_outputs({"--output": page_file}, (output, errors_file, str(journal_path(output))), force=force)
    figures = read_job(output, errors_file, datetime.now(timezone.utc), usd_per_hour)
    if page_file is not None:
        check_outputs({"--output": page_file}, (figures.errors,), force=force)
        write_text(page_file, page(figures))
        if not as_json:
            click.echo(f"{page_file}: {in_short(figures)}")
    if as_json:
        click.echo(msgspec.json.encode(figures).decode())
