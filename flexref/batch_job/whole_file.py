"""A file that answers of a stream go to: it appears when all of them are there, or not at all; it knows no answer.

What is no regular file, a pipe or a device, is written to as answers come, and stays what it is.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase, FileIO
from pathlib import Path
from typing import Any

from flexref.errors import StorageError
from flexref.files import NewFile, successor


class WholeFile(BufferedIOBase):
    """`path`, written from its beginning to its end; `publish` gives it its name. Raises `StorageError`.

    A link is followed, an older file's rights stay.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._length = path, 0
        self._new: NewFile | None = None
        self._in_place: FileIO | None = None
        with self._told():
            self._new = successor(path)
            if self._new is None:
                self._in_place = FileIO(path, "w")

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """Append all of `data`."""
        view = memoryview(data)
        with self._told():
            if self._new is not None:
                self._new.write(view, self._length)
            elif self._in_place is not None:
                left = view
                while left:
                    left = left[self._in_place.write(left) :]
        self._length += len(view)
        return len(view)

    def sync(self) -> None:
        """Return when all that was written has reached the disk: of two files none is published before both have."""
        if self._new is not None:
            with self._told():
                os.fsync(self._new.descriptor)

    def publish(self) -> None:
        """All is written."""
        if self._new is not None:
            with self._told():
                self._new.publish()

    def close(self) -> None:
        """Without `publish` nothing is left of it."""
        if self._new is not None:
            self._new.close()
        if self._in_place is not None:
            self._in_place.close()
        super().close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the system refuses, as a `StorageError` that names the file."""
        try:
            yield
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror or error}") from error
