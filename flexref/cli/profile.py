"""`flexref profile`: measures this machine for the planner; it parses, calls one function, writes and prints."""

import json
import logging
import tempfile
from contextlib import closing

import click

from flexref.cli.options import computing_port, option
from flexref.cli.show.outputs import check_outputs
from flexref.cli.show.progress import progress

LOG = logging.getLogger(__name__)


@click.command("profile")
@option("--backend", help="The port to measure with.")
@option("--disk-dir", help="The folder whose disk is measured; default: the temporary folder.")
@click.option("--quick", is_flag=True, help="Five seconds in place of a minute or two: fewer sizes, fewer repeats.")
@option("--output", help="Write the machine as JSON, for `flexref plan --machine FILE`.")
@option("--force")
@option("--json", help="Print the machine as one JSON object.")
def command(
    backend: str, disk_dir: str | None, quick: bool, output_file: str | None, force: bool, as_json: bool
) -> None:
    """Measure this machine with a port, for the planner: links, products, attention, the host's own work.

    Figures are medians of repeats, on random data; those whose repeats spread widely are named on stderr. It takes a
    quarter of the free memory at most, and moves about 1 GiB to the disk and from it. What else runs on the machine
    meanwhile is measured too.
    """
    check_outputs({"-o": output_file}, (), force=force)

    from flexref.profile.measure import measure_machine

    with closing(computing_port(backend)) as port, progress("measuring") as shown:
        machine = measure_machine(port, disk_dir or tempfile.gettempdir(), quick=quick, tell=shown.note)
    if output_file is not None:
        machine.write(output_file)
    for warning in machine.warnings:
        LOG.warning("not certain: %s", warning)
    if as_json:
        click.echo(json.dumps(machine.to_mapping()))
        return
    from flexref.cli.show.console import table_console
    from flexref.cli.show.profile_report import print_machine

    print_machine(table_console(), machine)
