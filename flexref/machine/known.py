"""Machines by name or path: those that ship, those that are kept, and those in files; it measures nothing.

A machine's nominal figures become a machine by what a port reaches of them: the port says how (`NOMINAL_GROUP`).
"""

from collections.abc import Callable
from importlib.metadata import entry_points
from importlib.resources import as_file, files
from pathlib import Path

from flexref.errors import PolicyError
from flexref.machine.machine import FORMAT, Machine, read_machine_object
from flexref.machine.names import check_machine, kept_file, known_machines, machine_names
from flexref.machine.nominal_facts import NOMINAL_FORMAT, NominalFacts

NOMINAL_GROUP = "flexref.nominal"
"""The entry points under which a port ships `machine_of(facts: NominalFacts) -> Machine`, by its own name."""


def machine_named(name_or_path: str) -> Machine:
    """The machine in the file of that path, or the one of that name that ships or was measured here and kept.

    `UnknownName` lists the known names if it is none of them; `PolicyError` says what is wrong in a file.
    """
    check_machine(name_or_path)
    if Path(name_or_path).is_file() or name_or_path not in machine_names():
        return read_machine(name_or_path)
    if name_or_path not in known_machines():
        return read_machine(kept_file(name_or_path))
    with as_file(files("flexref.data").joinpath("machines", f"{name_or_path}.json")) as path:
        return read_machine(path)


def read_machine(path: str | Path) -> Machine:
    """The machine in a JSON file, measured or nominal.

    Raises `StorageError` if it cannot be read, `PolicyError` if it is neither, or nominal and no port here makes a
    machine of such figures.
    """
    values = read_machine_object(path)
    if values.get("format") == NOMINAL_FORMAT:
        return _machine_of(path)(NominalFacts.from_mapping(values, str(path)))
    if values.get("format") == FORMAT:
        return Machine.from_mapping(values, str(path))
    raise PolicyError(f"{path} is no machine: format must be {FORMAT!r} or {NOMINAL_FORMAT!r}")


def _machine_of(path: str | Path) -> Callable[[NominalFacts], Machine]:
    """What makes a machine of nominal figures: the first port's, by name, that says how."""
    found = sorted(entry_points(group=NOMINAL_GROUP), key=lambda entry: entry.name)
    if not found:
        raise PolicyError(f"{path} holds nominal figures, and no installed port says what it reaches of them")
    made: Callable[[NominalFacts], Machine] = found[0].load()
    return made
