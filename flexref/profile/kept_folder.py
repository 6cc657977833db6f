"""The folder in which measured machines are kept, and their names; it opens none of them."""

import os
from pathlib import Path

import platformdirs

from flexref.errors import UnknownName
from flexref.machine.names import known_machines

CACHE_VARIABLE = "FLEXREF_CACHE_DIR"
"""Names the folder in which measured machines are kept, in place of the user's own for caches."""


def cache_folder() -> Path:
    """Where measured machines are kept."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given or platformdirs.user_cache_path("flexref")) / "machines"


def kept_names() -> list[str]:
    """Names of the machines that are kept, sorted."""
    return sorted(path.stem for path in cache_folder().glob("*.json"))


def check_listed(names: tuple[str, ...]) -> None:
    """`UnknownName`, with the names that there are, for a machine that neither ships nor is kept."""
    there = (*known_machines(), *kept_names())
    for name in names:
        if name not in there:
            raise UnknownName(f"no machine is called {name!r}; there are: {', '.join(there)}")
