"""Files that a command will write when its work is done: refused before it, if they cannot be written."""

import os
from pathlib import Path

from flexref.errors import StorageError


def check_writable(path: str | Path) -> None:
    """`StorageError` before time is spent on what could not be written; the file itself is not touched."""
    target = Path(path)
    folder = target.absolute().parent
    if target.is_dir():
        raise StorageError(f"cannot write {path}: it is a folder")
    if not folder.is_dir():
        raise StorageError(f"cannot write {path}: there is no folder {folder}")
    if not os.access(target if target.exists() else folder, os.W_OK):
        raise StorageError(f"cannot write {path}: permission denied")
