"""What is installed and found here: ports, libraries, processor, memory, folders; it times and keeps nothing."""

import os
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from threadpoolctl import threadpool_info

from flexref.backend.capabilities import Capabilities, Description
from flexref.backend.registry import create, home, installed, presence
from flexref.errors import BackendUnavailable
from flexref.machine.names import cache_folder, kept_names
from flexref.profile.environment import machine
from flexref.version import __version__

PACKAGE = "flexref"

NO_DEVICE = Description((), {})
"""Of no port: what the system itself sees of devices."""


@dataclass(frozen=True, slots=True)
class FoundPort:
    """One installed port: where it comes from, and what it is here; `problem` in place of that if it cannot be made.

    Of one that was not `tried`, which would load its library, only the versions of that are known.
    """

    name: str
    home: str
    caps: Capabilities | None = None
    description: Description | None = None
    problem: str | None = None
    tried: bool = True

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name, fit for `json.dumps`."""
        found = self.description
        return {
            "name": self.name,
            "home": self.home,
            "tried": self.tried,
            "available": self.problem is None,
            "problem": self.problem,
            "devices": [] if found is None else list(found.devices),
            "versions": {} if found is None else dict(found.versions),
            "capabilities": None if self.caps is None else asdict(self.caps),
        }


def found_ports() -> list[FoundPort]:
    """Every installed port, by name. Each is made and closed again; one that fails is listed with what it said."""
    return [_found(name) for name in installed()]


def seen_ports() -> list[FoundPort]:
    """Every installed port, by name; one that says by itself whether its library is installed is not made."""
    return [_seen(name) for name in installed()]


def _seen(name: str) -> FoundPort:
    seen = presence(name)
    if seen is None:
        return _found(name)
    return FoundPort(name, home(name), None, Description((), seen.versions), seen.problem, tried=False)


def _found(name: str) -> FoundPort:
    try:
        port = create(name)
    except BackendUnavailable as error:
        prefix = f"backend {name!r} is not available: "
        return FoundPort(name, home(name), problem=str(error).removeprefix(prefix))
    except Exception as error:  # a broken port hides no other, and is told from an absent one
        said = " ".join(str(error).split())
        return FoundPort(name, home(name), problem=f"the port is broken: {type(error).__name__}: {said}")
    try:
        return FoundPort(name, home(name), port.caps, port.describe())
    finally:
        port.close()


def installation() -> dict[str, Any]:
    """All that a report of a fault should say of the place where it happened, fit for `json.dumps`."""
    here = machine(NO_DEVICE)
    memory, spill = psutil.virtual_memory(), Path(tempfile.gettempdir())
    return {
        "version": __version__,
        "folder": str(Path(__file__).parents[1]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": dict(_libraries("")),
        "extras": {extra: dict(_libraries(extra)) for extra in _extras()},
        "blas": [
            {"name": library["internal_api"], "version": library["version"], "threads": library["num_threads"]}
            for library in threadpool_info()
            if library["user_api"] == "blas"
        ],
        "cpu": here["cpu"],
        "cpu_cores": here["cpu_cores"],
        "cpu_cores_of_machine": os.cpu_count(),
        "memory_bytes": here["memory_bytes"],
        "memory_free_bytes": int(memory.available),
        "devices": here["gpu"],
        "machines_folder": str(cache_folder()),
        "machines_kept": len(kept_names()),
        "spill_folder": str(spill),
        "spill_free_bytes": psutil.disk_usage(str(spill)).free,
    }


def _requirements() -> list[str]:
    try:
        return metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:  # a checkout that is on the path and not installed
        return []


def _libraries(extra: str) -> Iterator[tuple[str, str | None]]:
    """(name, version or None) of what the package requires, or of what its `extra` adds."""
    for requirement in _requirements():
        needed, _, marker = requirement.partition(";")
        if (f"extra == {extra!r}" in marker.replace('"', "'")) if extra else "extra" not in marker:
            name = _name_in(needed)
            if name != PACKAGE:
                yield name, _version(name)


def _extras() -> list[str]:
    try:
        return metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return []


def _name_in(requirement: str) -> str:
    """The name that a requirement (`h5py>=3.12`, `cupy-cuda12x[ctk]>=14`) begins with."""
    end = next((place for place, letter in enumerate(requirement) if not (letter.isalnum() or letter in "-_.")), None)
    return requirement[:end]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
