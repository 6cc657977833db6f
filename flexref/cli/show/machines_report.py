"""Machines that are known here, as a table for people; it reads and measures nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from flexref.cli.streams import printable
from flexref.machine.quality import age_in_words


def print_machines(console: Console, machines: Sequence[Mapping[str, Any]]) -> None:
    """Print one line per machine, then where those that are kept lie."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("", "machine", "port", "age", "repeats spread", "what it is"):
        table.add_column(heading, no_wrap=heading != "what it is")
    for machine in machines:
        table.add_row(
            "*" if machine["used"] else "",
            machine["name"],
            machine["port"] or "",
            "" if machine["age_s"] is None else age_in_words(machine["age_s"]),
            _steadiness(machine),
            printable(machine["problem"] or machine["machine"]),
        )
    console.print(table)
    paths = [machine["path"] for machine in machines if machine["path"] is not None]
    for path in paths:
        console.print(f"kept in {path}", highlight=False, soft_wrap=True)
    if not paths:
        console.print("nothing is kept yet: a job that does not fit on the device has this machine measured once")


def _steadiness(machine: Mapping[str, Any]) -> str:
    if machine["origin"] == "shipped":
        return "shipped"
    if machine["spread"] is None:
        return "not known"
    return f"{machine['spread']:.0%}" + (", busy" if machine["busy"] else "")
