"""Files that a command will write when its work is done: refused before it, if they cannot or should not be written."""

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from flexref.errors import StorageError

if TYPE_CHECKING:
    from flexref.block.tracing.trace import Trace

Identity = tuple[int, int]
"""Of a file, by which all its names are one: device and inode."""

STANDARD = "-"
"""Standard output, to commands that write to it; a job's answers and its log have that name too."""


def check_outputs(outputs: Mapping[str, str | None], inputs: Iterable[str | None], *, force: bool) -> None:
    """`check_writable` of every output that is asked for, and `check_replaced`."""
    for path in outputs.values():
        if path is not None:
            check_writable(path)
    check_replaced(outputs, inputs, force=force)


def tracing(path: str | None) -> "AbstractContextManager[Trace | None]":
    """A trace that is written to `path` while the context lasts; none without a path."""
    if path is None:
        return nullcontext()
    from flexref.block.tracing.trace import Trace

    return Trace(path)


def check_replaced(outputs: Mapping[str, str | None], inputs: Iterable[str | None], *, force: bool) -> None:
    """`StorageError` for an output that is an input or another output, or is there already, unless `force`.

    `outputs` are paths by what they are called, None where none is asked for; `inputs` what the command reads: files,
    folders with all files in them, and names that may be no files. Links and hard links are followed. What is no
    regular file, a pipe or `/dev/null`, is written to and not replaced.
    """
    read = _identities(inputs)
    names: dict[str | Identity, str] = {}
    for name, path in outputs.items():
        if path is None:
            continue
        found = _status(path)
        if found is not None and not stat.S_ISREG(found.st_mode):
            continue
        itself = os.path.realpath(path) if found is None else (found.st_dev, found.st_ino)
        if itself in names:
            raise StorageError(f"cannot write {path}: it is asked for twice, as {names[itself]} and as {name}")
        names[itself] = name
        if itself in read:
            raise StorageError(f"cannot write {path}: this command reads it, as {read[itself]}")
        if found is not None and not force:
            raise StorageError(f"cannot write {path}: it is there already; --force replaces it")


def check_writable(path: str | Path) -> None:
    """`StorageError` before time is spent on what could not be written; the file itself is not touched.

    Nor is a file that would be called as standard output is: whoever asks for that name means no file.
    """
    if os.fspath(path) == STANDARD:
        raise StorageError("cannot write -: this goes to a file, not to standard output; ./- is a file of that name")
    target = Path(os.path.realpath(path) if os.path.islink(path) else path)
    folder = target.absolute().parent
    if not os.fspath(path):
        raise StorageError("cannot write '': a file needs a name")
    if target.is_dir():
        raise StorageError(f"cannot write {path}: it is a folder")
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe or a device is written to as it is
        folder = target
    elif not folder.is_dir():
        raise StorageError(f"cannot write {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK) or (target.exists() and not os.access(target, os.W_OK)):
        raise StorageError(f"cannot write {path}: permission denied")


def _identities(inputs: Iterable[str | None]) -> dict[str | Identity, str]:
    """What each file that is read is called; names that are no files are left out."""
    found: dict[str | Identity, str] = {}
    for path in (file for given in inputs if given for file in _files(given)):
        status = _status(path)
        if status is not None:
            found[status.st_dev, status.st_ino] = path
    return found


def _files(path: str) -> Iterator[str]:
    """The file itself, or what lies in a folder; of the built-in model's name also its file."""
    from flexref.storage.names import DEMO, demo_file

    if path == DEMO:
        yield str(demo_file())
    if os.path.isdir(path):
        with suppress(OSError):  # whoever reads it says what is wrong
            yield from (entry.path for entry in os.scandir(path))
    else:
        yield path


def _status(path: str) -> os.stat_result | None:
    """What lies at a path; None if nothing does."""
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None
