"""`flexref new-backend`: the package of a new port, with nothing written yet; it parses, calls one function, prints."""

import json

import click

from flexref.cli.arguments import TEXT
from flexref.cli.completion import folders
from flexref.cli.options import option


@click.command("new-backend")
@click.argument("name", type=TEXT, metavar="NAME")
@click.argument("folder", type=TEXT, metavar="DIR", shell_complete=folders)
@option("--json", help="Print the paths of the files as one JSON object.")
def command(name: str, folder: str, as_json: bool) -> None:
    """Write the package of a new port NAME into the folder DIR: entry point, class, test file, README.

    Every method of the protocol is there with its law, and raises NotImplementedError. After `pip install -e DIR`,
    `flexref conformance --backend NAME` lists what is left to write in the order in which to write it, and what is
    wrong with what is there. Nothing that is there already is replaced.
    """
    from flexref.testing.scaffold import new_backend

    paths = new_backend(name, folder)
    if as_json:
        click.echo(json.dumps({"backend": name, "files": paths}))
        return
    for path in paths:
        click.echo(path)
    click.echo(f"next: pip install -e {folder}, then flexref conformance --backend {name}")
