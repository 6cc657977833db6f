"""`flexref backends`: the installed ports; it parses, calls one function and prints."""

import json

import click

from flexref.cli.options import option


@click.command("backends")
@option("--json")
def command(as_json: bool) -> None:
    """List the installed ports: on what each computes and what it can do, or why it cannot be used here.

    Every port is made once, so that what is said is what `--backend NAME` would find. Ports are found by the entry
    points of installed packages (group flexref.backends).
    """
    from flexref.profile.installation import found_ports

    ports = [port.to_json() for port in found_ports()]
    if as_json:
        click.echo(json.dumps({"backends": ports}))
        return
    from flexref.cli.show.console import table_console
    from flexref.cli.show.installation_report import print_ports

    print_ports(table_console(), ports)
