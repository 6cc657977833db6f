"""Finds ports by their entry points and makes backends by name; it knows no port.

A name may name one of a port's devices, too, after a colon, in the port's own words: `torch:cpu`, `cupy:1`.
"""

import inspect
import threading
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from flexref.backend.presence import Presence
from flexref.errors import BackendUnavailable, UnknownBackend, install_hint

if TYPE_CHECKING:
    from flexref.backend.protocol import Backend

GROUP = "flexref.backends"
"""The entry-point group in which a port's package registers the class, or function, that makes its backend."""

PRELOADS = "flexref.preloads"
"""The group in which it may register, under the port's name, a module that takes long to load and opens no device."""


def installed() -> tuple[str, ...]:
    """Names of the installed ports, sorted; whether their devices are here too, only `create` finds out."""
    return tuple(_registered())


def create(name: str, **options: Any) -> "Backend":
    """The backend that the port `name` makes from `options`; a device in the name is the option `device`.

    Raises `UnknownBackend` (listing the installed ones) if no package registers `name`, or if it names a device of a
    port that takes none, and `BackendUnavailable` if the port's library cannot be imported or its constructor finds no
    device. Every other error is a bug of the port and is passed on as it is, so that nobody mistakes a broken port for
    an absent one.
    """
    entry = _entry(name)
    port, device = _parted(name)
    try:
        make = entry.load()
        if device:
            if not _takes_device(make):
                raise UnknownBackend(f"backend {port!r} takes no device, found {name!r}; use {port!r}")
            options["device"] = int(device) if device.isdecimal() else device
        backend: Backend = make(**options)
    except ImportError as error:
        if _is_own_fault(entry, error):
            raise
        raise BackendUnavailable(f"backend {name!r} is not available: {_one_line(error)}") from error
    except BackendUnavailable as error:
        raise BackendUnavailable(f"backend {name!r} is not available: {_one_line(error)}") from error
    return backend


def presence(name: str) -> Presence | None:
    """What the port `name` says of itself without loading its library; None if it has no way to say so.

    That is `presence()` in the module `presence` of the port's package. Raises `UnknownBackend`.
    """
    asked = f"{_entry(name).module.partition('.')[0]}.presence"
    try:
        if find_spec(asked) is None:
            return None
    except ImportError:
        return None  # `create` says so
    found: Presence = import_module(asked).presence()
    return found


def start_device(name: str) -> None:
    """Let the port `name` start its device on a thread, beside what the caller does until it makes the port.

    That is `begin()` in the module `starting` of the port's package; a port without one, or that is not there, has
    nothing to start, nor has it if the name says which device. Raises `UnknownBackend`.
    """
    if _parted(name)[1]:
        return check_registered(name)
    starting = f"{_entry(name).module.partition('.')[0]}.starting"
    try:
        found = find_spec(starting)
    except ImportError:
        return  # `create` says so
    if found is not None:
        threading.Thread(target=import_module(starting).begin, name=f"flexref starts {name}", daemon=True).start()


def preloaded(name: str) -> tuple[str, ...]:
    """Modules that whoever makes the port `name` in many processes may load before it forks them."""
    return tuple(entry.value for entry in entry_points(group=PRELOADS) if entry.name == _parted(name)[0])


def check_registered(name: str) -> None:
    """`UnknownBackend` unless some package registers the port `name`; none is imported."""
    _entry(name)


def home(name: str) -> str:
    """Where the port `name` comes from, as its package registered it: `module:class`; `UnknownBackend` if none did."""
    return _entry(name).value


def maker(name: str) -> Any:
    """The class, or function, that makes the backends of the port `name`; no device is looked for.

    Raises `UnknownBackend`, and what importing the port raises: a port's package needs no library of its device.
    """
    return _entry(name).load()


def loaded_when_asked(asked: str, maker: str, library: str, title: str) -> Any:
    """`__getattr__` of a port's package that loads `maker`, `module.Class`, when it is asked for its class.

    `library`: the module that it needs, and the extra that installs it, called `title`; without it raises
    `BackendUnavailable`.
    """
    module, _, name = maker.rpartition(".")
    if asked != name:
        raise AttributeError(f"module {module.partition('.')[0]!r} has no attribute {asked!r}")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise BackendUnavailable(f"{title} is not installed; {install_hint(library)}") from error


def _entry(name: str) -> EntryPoint:
    registered, port = _registered(), _parted(name)[0]
    if port not in registered:
        raise UnknownBackend(f"unknown backend {name!r}; installed: {', '.join(registered) or 'none'}")
    return registered[port]


def _parted(name: str) -> tuple[str, str]:
    """(port, device or nothing)."""
    port, _, device = name.partition(":")
    return (port, device) if device else (name, "")


def _takes_device(make: Any) -> bool:
    """Whether a port's maker has an argument of that name."""
    try:
        return "device" in inspect.signature(make).parameters
    except ValueError:  # it is written in C and says nothing of its arguments
        return False


def _registered() -> Mapping[str, EntryPoint]:
    """Every registered port by name, sorted by name.

    An editable install seen from its own folder is found twice, with one and the same value; two packages that claim
    one name for different things are an error.
    """
    found: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        first = found.setdefault(entry.name, entry)
        if first.value != entry.value:
            raise UnknownBackend(
                f"two packages register the backend {entry.name!r}: {first.value} and {entry.value}; remove one"
            )
    return found


def _is_own_fault(entry: EntryPoint, error: ImportError) -> bool:
    """Whether an import failed inside flexref or the port itself, rather than for want of a library or of the port."""
    missing = error.name or ""
    package = entry.module.partition(".")[0]
    port_is_gone = isinstance(error, ModuleNotFoundError) and missing == package
    return missing.partition(".")[0] in {"flexref", package} and not port_is_gone


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
