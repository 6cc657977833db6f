"""`flexref machines`: lists, shows, measures anew and deletes machines; it parses, calls one function and prints."""

import json
import logging
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import click

from flexref.cli.completion import listed_machines as complete_names
from flexref.cli.options import computing_port, option

if TYPE_CHECKING:
    from flexref.profile.listed_machines import ListedMachine

LOG = logging.getLogger(__name__)

ACTIONS = ("list", "show", "measure", "delete")


@click.command("machines")
@click.argument("action", type=click.Choice(ACTIONS), default=ACTIONS[0], metavar=f"[{'|'.join(ACTIONS)}]")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_names)
@option("--backend", default=None, show_default=False, help="measure: the port to measure with; default: numpy.")
@option("--disk-dir", help="measure: the folder whose disk is measured; default: the temporary folder.")
@click.option("--full", is_flag=True, help="measure: up to two minutes in place of five seconds.")
@option("--json")
def command(
    action: str, names: tuple[str, ...], backend: str | None, disk_dir: str | None, full: bool, as_json: bool
) -> None:
    """List the machines that are known here, or show, measure anew or delete one.

    Machines that ship are described by the source of every figure; the others are this one, measured with a port when
    a job first asked for it and kept. One that is marked with * is what a job would use now.

    \b
    flexref machines                       list all
    flexref machines show NAME             its rates and capacities, and how it was measured
    flexref machines measure --full        measure this one again, and keep it
    flexref machines delete NAME...        delete what is kept
    """
    if action != "measure" and (backend is not None or disk_dir is not None or full):
        raise click.UsageError("--backend, --disk-dir and --full belong to measure")
    if action in ("list", "measure") and names:
        raise click.UsageError(f"{action} takes no name, found {names[0]!r}")
    if (action == "show" and len(names) != 1) or (action == "delete" and not names):
        raise click.UsageError(f"{action} takes {'one name' if action == 'show' else 'names'}: see flexref machines")
    if action in ("show", "delete"):
        from flexref.machine.names import check_listed

        check_listed(names)  # before anything large is imported
    if action == "measure":
        _measure(backend or "numpy", disk_dir or tempfile.gettempdir(), full, as_json)
    elif action == "show":
        _show(names[0], as_json)
    elif action == "delete":
        from flexref.profile.listed_machines import forget

        forget(names)
        click.echo(json.dumps({"deleted": names}) if as_json else f"deleted {', '.join(names)}")
    else:
        _list(as_json)


def _list(as_json: bool) -> None:
    from flexref.profile.listed_machines import listed_machines

    _print(listed_machines(), as_json)


def _show(name: str, as_json: bool) -> None:
    from flexref.errors import PolicyError
    from flexref.profile.listed_machines import listed_machine

    listed = listed_machine(name)
    if listed.machine is None:
        raise PolicyError(str(listed.problem))
    if as_json:
        click.echo(json.dumps(listed.machine.to_mapping()))
        return
    from flexref.cli.show.console import table_console
    from flexref.cli.show.profile_report import print_machine

    print_machine(table_console(), listed.machine)


def _measure(backend: str, disk_dir: str, full: bool, as_json: bool) -> None:
    from flexref.cli.show.progress import progress
    from flexref.profile.kept_machines import kept_path, measure_and_keep
    from flexref.profile.listed_machines import NOT_KEPT, ListedMachine, listed_machine

    with closing(computing_port(backend)) as port:
        path = kept_path(port, disk_dir)
        with progress("measuring") as shown:
            machine = measure_and_keep(port, disk_dir, LOG.warning, quick=not full, on_part=shown.note)
    # What could not be kept, which was said, is in no list.
    kept = listed_machine(path.stem) if path.exists() else ListedMachine(path.stem, NOT_KEPT, None, machine)
    _print([kept], as_json)


def _print(machines: "Sequence[ListedMachine]", as_json: bool) -> None:
    found = [machine.to_json(time.time()) for machine in machines]
    if as_json:
        click.echo(json.dumps({"machines": found}))
        return
    from flexref.cli.show.console import table_console
    from flexref.cli.show.machines_report import print_machines

    print_machines(table_console(), found)
