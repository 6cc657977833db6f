"""Machines that are known here: those that ship, and those that were measured and kept; it measures nothing."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flexref.backend.protocol import Backend
from flexref.backend.registry import create, installed
from flexref.errors import BackendUnavailable, FlexrefError, WrongCall
from flexref.machine.known import machine_named
from flexref.machine.machine import Machine
from flexref.machine.names import check_listed, kept_file, kept_names, known_machines
from flexref.profile.kept_machines import cache_name

SHIPPED, KEPT, NOT_KEPT = "shipped", "kept", "not kept"


@dataclass(frozen=True, slots=True)
class ListedMachine:
    """A machine by its name, and where it comes from; `problem` in place of it where it cannot be read.

    `used`: whether a job here would use what is kept, with the temporary folder as its disk.
    """

    name: str
    origin: str
    path: Path | None
    machine: Machine | None = None
    problem: str | None = None
    used: bool = False

    def to_json(self, now_s: float) -> dict[str, Any]:
        """Every figure by its name, fit for `json.dumps`, but for the curves and each point's spread."""
        machine = self.machine
        quality = None if machine is None else machine.quality
        figures = {} if quality is None else asdict(quality)
        figures.pop("spreads", None)
        return {
            "name": self.name,
            "origin": self.origin,
            "path": None if self.path is None else str(self.path),
            "used": self.used,
            "problem": self.problem,
            "machine": None if machine is None else machine.name,
            "port": None if machine is None else machine.port.name,
            "compute_dtype": None if machine is None else machine.port.compute_dtype,
            "age_s": None if quality is None else quality.age_s(now_s),
            "spread": None if quality is None else quality.spread,
            "busy": None if quality is None else list(quality.busy),
            "quality": figures or None,
        }


def listed_machines() -> list[ListedMachine]:
    """All of them, by name, those that ship first."""
    used = set(_used_names())
    return [*map(_shipped, known_machines()), *(_kept(name, name in used) for name in kept_names())]


def listed_machine(name: str) -> ListedMachine:
    """The one of that name; `UnknownName` lists the names that there are."""
    check_listed((name,))
    return _shipped(name) if name in known_machines() else _kept(name, name in _used_names())


def forget(names: tuple[str, ...]) -> None:
    """Delete machines that are kept; nothing is deleted unless all of them are.

    Raises `UnknownName` for one that is not there, `WrongCall` for one that ships.
    """
    check_listed(names)
    shipped = known_machines()
    for name in names:
        if name in shipped:
            raise WrongCall(f"{name} ships with flexref: only what is kept can be deleted")
    for name in names:
        kept_file(name).unlink(missing_ok=True)


def _shipped(name: str) -> ListedMachine:
    return _read(name, SHIPPED, None, partial(machine_named, name))


def _kept(name: str, used: bool) -> ListedMachine:
    path = kept_file(name)
    return _read(name, KEPT, path, partial(Machine.read, path), used)


def _read(name: str, origin: str, path: Path | None, read: Callable[[], Machine], used: bool = False) -> ListedMachine:
    try:
        return ListedMachine(name, origin, path, read(), None, used)
    except FlexrefError as error:
        return ListedMachine(name, origin, path, None, str(error), used)


def _used_names() -> Iterator[str]:
    """Under which names the ports of which anything is kept would look for this machine."""
    kept = kept_names()
    for name in installed():
        if any(other.startswith(f"{name}-") for other in kept):
            try:
                port: Backend = create(name)
            except BackendUnavailable:
                continue
            with closing(port):
                found = cache_name(port, tempfile.gettempdir())
            yield found
