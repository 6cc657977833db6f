"""Fills one dataset after the other and says in one line what the file system refuses; it knows no tensor."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

from flexref.errors import StorageError
from flexref.storage.quant import Array
from flexref.storage.schema import CHECKSUM_ATTRIBUTE


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn what the file system and HDF5 say into one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        found = re.search(r"error message = '([^']*)'", str(error))
        reason = found.group(1) if found else getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise StorageError(f"cannot write {path}: {reason}") from error


def sync_folder(folder: Path) -> None:
    """Let a renamed file survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Sink:
    """One dataset being filled from its first row on, with its checksum."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset, self._row, self._digest = dataset, 0, xxhash.xxh3_64()

    def append(self, rows: Array) -> None:
        """Write the next rows."""
        stop = self._row + len(rows)
        if stop > len(self._dataset):
            raise ValueError(f"{self._dataset.name}: {stop} rows or more, needed {len(self._dataset)}")
        rows = np.ascontiguousarray(rows)
        self._dataset.write_direct(rows, dest_sel=np.s_[self._row : stop])
        self._digest.update(rows.data)
        self._row = stop

    def finish(self) -> None:
        """Fill in the checksum."""
        if self._row != len(self._dataset):
            raise ValueError(f"{self._dataset.name}: {self._row} rows, needed {len(self._dataset)}")
        attribute: Any = h5py.h5a.open(self._dataset.id, CHECKSUM_ATTRIBUTE.encode())
        attribute.write(np.array(self._digest.intdigest(), np.uint64))
