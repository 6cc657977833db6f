"""Fills one dataset after the other and says in one line what the file system refuses; it knows no tensor."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import xxhash

from flexref.errors import StorageError
from flexref.files import NewFile
from flexref.storage.quant import Array
from flexref.storage.schema import PartSpec


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn what the file system says into one line."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


class Sink:
    """One dataset being filled from its first row on, at its place in the file, with its checksum."""

    def __init__(self, file: NewFile, part: PartSpec, offset: int) -> None:
        self._file, self.part, self._offset = file, part, offset
        self._row, self._digest = 0, xxhash.xxh3_64()

    def append(self, rows: Array) -> None:
        """Write the next rows."""
        stop, needed = self._row + len(rows), self.part.shape[0]
        if stop > needed:
            raise ValueError(f"{self.part.dataset}: {stop} rows or more, needed {needed}")
        data = np.ascontiguousarray(rows, self.part.dtype).reshape(-1).view(np.uint8).data
        self._file.write(data, self._offset)
        self._digest.update(data)
        self._offset, self._row = self._offset + data.nbytes, stop

    def finish(self) -> int:
        """The checksum of the whole dataset."""
        if self._row != self.part.shape[0]:
            raise ValueError(f"{self.part.dataset}: {self._row} rows, needed {self.part.shape[0]}")
        return self._digest.intdigest()
