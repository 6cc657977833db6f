"""`flexref info`: what is installed and found here; it parses, calls one function and prints."""

import json

import click

from flexref.cli.options import option


@click.command("info")
@option("--json")
def command(as_json: bool) -> None:
    """Show versions, processor, memory, devices, ports and folders: what a report of a fault should say.

    Of a port whose library takes long to load it is only told whether that is installed; `flexref backends` tries it.
    """
    from flexref.profile.installation import installation, seen_ports

    report = {**installation(), "backends": [port.to_json() for port in seen_ports()]}
    if as_json:
        click.echo(json.dumps(report))
        return
    from flexref.cli.show.console import table_console
    from flexref.cli.show.installation_report import print_installation

    print_installation(table_console(highlight=False), report)
