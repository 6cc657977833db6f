"""The names of machines: those that ship, and those that were measured here and kept; it opens none of their files."""

import os
from importlib.resources import files
from pathlib import Path

import platformdirs

from flexref.errors import UnknownName

CACHE_VARIABLE = "FLEXREF_CACHE_DIR"
"""Names the folder in which all that may be made anew is kept, in place of the user's own for caches."""

NOWHERE = Path(os.devnull) / "flexref"
"""Where a user without a home keeps things: no folder can be made there, and whoever writes is told so."""


def known_machines() -> tuple[str, ...]:
    """Names of the machines that ship, sorted."""
    folder = files("flexref.data").joinpath("machines")
    if not folder.is_dir():
        return ()
    names = (entry.name for entry in folder.iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in names if name.endswith(".json")))


def kept_folder(what: str) -> Path:
    """Where `what` is kept, whether the folder is there or not."""
    given = os.environ.get(CACHE_VARIABLE)
    return (Path(given) if given else _own_folder()) / what


def _own_folder() -> Path:
    """The user's own; `NOWHERE` for a user that the system does not know, without HOME, as containers have them."""
    try:
        return platformdirs.user_cache_path("flexref")
    except RuntimeError:
        return NOWHERE


def cache_folder() -> Path:
    """Where measured machines are kept."""
    return kept_folder("machines")


def kept_names() -> list[str]:
    """Names of the machines that are kept, sorted."""
    return sorted(path.stem for path in cache_folder().glob("*.json"))


def kept_file(name: str) -> Path:
    """Where a machine of that name is kept, whether it is there or not."""
    return cache_folder() / f"{name}.json"


def machine_names() -> tuple[str, ...]:
    """Names of all machines that there are, those that ship first."""
    return (*known_machines(), *kept_names())


def check_machine(name_or_path: str) -> None:
    """`UnknownName`, with the names that there are, if there is no such file and no machine of that name."""
    there = machine_names()
    if name_or_path not in there and not Path(name_or_path).exists():
        known = ", ".join(there) or "none"
        raise UnknownName(f"{name_or_path!r} is neither a machine's file nor a known machine; known: {known}")


def check_listed(names: tuple[str, ...]) -> None:
    """`UnknownName`, with the names that there are, for a machine that neither ships nor is kept."""
    there = machine_names()
    for name in names:
        if name not in there:
            raise UnknownName(f"no machine is called {name!r}; there are: {', '.join(there)}")
