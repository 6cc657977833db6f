"""The names of the machines that ship; it opens no file."""

from importlib.resources import files
from pathlib import Path

from flexref.errors import UnknownName


def known_machines() -> tuple[str, ...]:
    """Names of the machines that ship, sorted."""
    folder = files("flexref.data").joinpath("machines")
    if not folder.is_dir():
        return ()
    names = (entry.name for entry in folder.iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in names if name.endswith(".json")))


def check_machine(name_or_path: str) -> None:
    """`UnknownName`, with the known names, if there is no such file and none that ships by that name."""
    known = known_machines()
    if name_or_path not in known and not Path(name_or_path).exists():
        raise UnknownName(
            f"{name_or_path!r} is neither a machine's file nor a known machine; known: {', '.join(known) or 'none'}"
        )
