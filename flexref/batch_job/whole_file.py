"""A file that answers of a stream go to: it appears when all of them are there, or not at all; it knows no answer."""

import os
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from flexref.errors import StorageError
from flexref.files import NewFile


class WholeFile(BufferedIOBase):
    """`path`, written from its beginning to its end; `publish` gives it its name. Raises `StorageError`."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._length = path, 0
        try:
            self._new = NewFile(path)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """Append all of `data`."""
        view = memoryview(data)
        try:
            self._new.write(view, self._length)
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror or error}") from error
        self._length += len(view)
        return len(view)

    def sync(self) -> None:
        """Return when all that was written has reached the disk: of two files none is published before both have."""
        try:
            os.fsync(self._new.descriptor)
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror or error}") from error

    def publish(self) -> None:
        """All is written."""
        try:
            self._new.publish()
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror}") from error

    def close(self) -> None:
        """Without `publish` nothing is left of it."""
        self._new.close()
        super().close()
