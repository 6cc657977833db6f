"""What is installed and found here, as text for people; it looks for nothing."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from flexref.cli.show.console import print_wrapped
from flexref.errors import how_many, in_gib


def print_installation(console: Console, report: Mapping[str, Any]) -> None:
    """Print all of `flexref info`, a line for each thing."""
    for line in _lines(report):
        print_wrapped(console, line, indent=11)


def print_ports(console: Console, ports: Sequence[Mapping[str, Any]]) -> None:
    """Print a line per port: what it is and can do, or why it cannot be used."""
    table = Table()
    for heading in ("port", "from", "here", "computes in", "overlaps copies", "attends on host", "scratch"):
        table.add_column(heading, overflow="fold")
    for port in ports:
        can = port["capabilities"]
        if can is None:
            table.add_row(port["name"], port["home"], "no")
            continue
        figures = (can["compute_dtype"] if can["computes"] else "nothing", _yes(can["overlaps_copies"]))
        scratch = in_gib(can["scratch_bytes"])
        table.add_row(port["name"], port["home"], "yes", *figures, _yes(can["attends_on_host"]), scratch)
    console.print(table)
    for port in ports:
        for line in _about(port):
            print_wrapped(console, f"{port['name']}: {line}", indent=2)


def _about(port: Mapping[str, Any]) -> Iterator[str]:
    """What a table has no room for: the problem, or devices and libraries."""
    if port["problem"] is not None:
        yield f"cannot be used: {port['problem']}"
        return
    yield from port["devices"]
    if port["versions"]:
        yield _versions(port["versions"])


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"flexref    {report['version']} in {report['folder']}"
    yield f"python     {report['python']} on {report['platform']}"
    yield f"libraries  {_versions(report['libraries'])}"
    for extra, libraries in report["extras"].items():
        yield f"  {extra}: {_versions(libraries) or 'nothing of its own'}"
    for blas in report["blas"]:
        yield f"BLAS       {blas['name']} {blas['version']}, {how_many(blas['threads'], 'thread')}"
    cores = f"{report['cpu_cores']} of {how_many(report['cpu_cores_of_machine'], 'core')} to be used"
    yield f"processor  {report['cpu']}, {cores}"
    yield f"memory     {in_gib(report['memory_bytes'])}, {in_gib(report['memory_free_bytes'])} free"
    yield f"devices    {', '.join(report['devices']) or 'none that the system tells of'}"
    if not report["backends"]:
        yield "backends   none is installed"
    for number, port in enumerate(report["backends"]):
        about = "; ".join(_about(port))
        is_here = "can be used" if port["tried"] else "is installed (flexref backends tries it)"
        said = about if port["problem"] is not None else f"{is_here}{about and f': {about}'}"
        yield f"{'' if number else 'backends':9}  {port['name']}: {said}"
    kept = how_many(report["machines_kept"], "measured machine")
    yield f"folders    {report['machines_folder']}: {kept} (FLEXREF_CACHE_DIR names another)"
    yield f"           {report['spill_folder']}: {in_gib(report['spill_free_bytes'])} free to spill to (--disk-dir)"


def _versions(versions: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())


def _yes(value: bool) -> str:
    return "yes" if value else "no"
