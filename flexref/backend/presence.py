"""Whether a library that a port needs is installed, told by what the installer noted; nothing of it is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from flexref.errors import install_hint


@dataclass(frozen=True, slots=True)
class Presence:
    """What a port says without loading its library: the versions that are installed, or why it cannot be used."""

    versions: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None

    @classmethod
    def of(cls, library: str, called: str, extra: str) -> "Presence":
        """Of a library by the name that it is imported and distributed by; `extra` installs it."""
        try:
            there = find_spec(library) is not None
        except ValueError:  # a module of that name was put there that nobody can load
            there = False
        if not there:
            return cls(problem=f"{called} is not installed; {install_hint(extra)}")
        try:
            return cls({library: version(library)})
        except PackageNotFoundError:
            return cls({library: "of unknown version"})
