"""Machines by name or path: those that ship, and those in files; it knows no port and measures nothing."""

from importlib.resources import as_file, files
from pathlib import Path

from flexref.errors import UnknownName
from flexref.machine.machine import Machine
from flexref.machine.nominal import read_machine


def known_machines() -> tuple[str, ...]:
    """Names of the machines that ship, sorted."""
    folder = files("flexref.data").joinpath("machines")
    if not folder.is_dir():
        return ()
    names = (entry.name for entry in folder.iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in names if name.endswith(".json")))


def machine_named(name_or_path: str) -> Machine:
    """The machine in the file of that path, or the one that ships by that name.

    `UnknownName` lists the known names if it is neither; `PolicyError` says what is wrong in a file.
    """
    known = known_machines()
    if Path(name_or_path).is_file() or name_or_path not in known:
        if not Path(name_or_path).exists():
            raise UnknownName(
                f"{name_or_path!r} is neither a machine's file nor a known machine; known: {', '.join(known) or 'none'}"
            )
        return read_machine(name_or_path)
    with as_file(files("flexref.data").joinpath("machines", f"{name_or_path}.json")) as path:
        return read_machine(path)
