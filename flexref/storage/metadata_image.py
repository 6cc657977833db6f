"""The HDF5 metadata of a weight file, made in memory: where each dataset lies, and the bytes before the first one.

HDF5 keeps what it writes dirty until it closes a file, and a disk that fails then takes the process with it. So HDF5
sees no disk: it writes to an image of the file that keeps the metadata and forgets the data, and the data is written by
plain writes at the offsets that HDF5 chose. HDF5 calls Python for that, and Ctrl-C is held back meanwhile. It knows no
tensor's values.

HDF5 allocates a contiguous dataset when it is first written. So all objects and attributes are made first and lie in
one run at the start of the file; the image is then opened again with alignment, and each dataset's first write places
it after the one before.
"""

from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np

from flexref.storage.held_back import held_back
from flexref.storage.schema import CHECKSUM_ATTRIBUTE, FORMAT_NAME, FORMAT_VERSION, FileHeader, PartSpec, spec_to_json
from flexref.units import ALIGNMENT_BYTES, aligned


class _Memory:
    """A file for HDF5 (h5py's file-like protocol) of which the first `limit` bytes are kept; None: all."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.nbytes = 0
        self.limit: int | None = None
        self._at = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = (0, self._at, self.nbytes)[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def truncate(self, size: int) -> int:
        self.nbytes = size
        return size

    def flush(self) -> None:
        """There is nothing to be flushed to."""

    def write(self, data: Any) -> int:
        taken = memoryview(data).cast("B")
        stop = self._at + len(taken)
        self.nbytes = max(self.nbytes, stop)
        kept = stop if self.limit is None else min(stop, self.limit)
        if kept > self._at:
            self.content.extend(bytes(max(0, kept - len(self.content))))
            self.content[self._at : kept] = taken[: kept - self._at]
        self._at = stop
        return len(taken)

    def readinto(self, into: Any) -> int:
        """What was kept; zeros where nothing was."""
        target = memoryview(into).cast("B")
        found = self.content[self._at : self._at + len(target)]
        target[: len(found)] = found
        target[len(found) :] = bytes(len(target) - len(found))
        self._at += len(target)
        return len(target)

    def read(self, size: int) -> bytes:
        data = bytearray(size)
        self.readinto(data)
        return bytes(data)


class MetadataImage:
    """The metadata of a file with `header` and the datasets `parts`, in file order."""

    def __init__(self, header: FileHeader, parts: Sequence[PartSpec]) -> None:
        self._memory = _Memory()
        self._file: Any = None
        self.offsets: dict[str, int] = {}
        """Of every dataset its first byte in the file."""
        try:
            with held_back():
                self._fill(header, parts)
        except BaseException:
            self.close()  # else HDF5 would write when this is collected, whoever is at work then
            raise

    def _fill(self, header: FileHeader, parts: Sequence[PartSpec]) -> None:
        with h5py.File(self._memory, "w", libver=("earliest", "v108")) as file:
            _create(file, header, parts)
        self._memory.limit = aligned(self._memory.nbytes)
        self._file = h5py.File(self._memory, "r+", alignment_threshold=1, alignment_interval=ALIGNMENT_BYTES)
        for part in parts:
            dataset = self._file[part.dataset]
            dataset[(0,) * len(part.shape)] = 0  # places it; the value itself is forgotten
            self.offsets[part.dataset] = int(dataset.id.get_offset())

    @property
    def metadata_bytes(self) -> int:
        """Where the first dataset lies: all metadata is before."""
        return min(self.offsets.values())

    def set_checksum(self, dataset: str, checksum: int) -> None:
        """Fill in the checksum of a dataset."""
        with held_back():
            attribute: Any = h5py.h5a.open(self._file[dataset].id, CHECKSUM_ATTRIBUTE.encode())
            attribute.write(np.array(checksum, np.uint64))

    def finish(self) -> tuple[bytes, int]:
        """(all metadata, `metadata_bytes` long; bytes of the whole file as HDF5 knows it)."""
        metadata_bytes = self.metadata_bytes
        self.close()
        content = bytes(self._memory.content)
        return content + bytes(metadata_bytes - len(content)), self._memory.nbytes

    def close(self) -> None:
        """End HDF5's hold on the image; once is enough."""
        if self._file is not None:
            with held_back():
                self._file.close()


def _create(file: h5py.File, header: FileHeader, parts: Sequence[PartSpec]) -> None:
    """Make every object and attribute, with checksums of 0 that are filled in place."""
    for name, text in (
        ("format", FORMAT_NAME),
        ("scheme", header.scheme),
        ("dtype", header.dtype),
        ("model", spec_to_json(header.spec)),
    ):
        file.attrs.create(name, np.bytes_(text.encode("ascii")))
    for name, number in (
        ("format_version", FORMAT_VERSION),
        ("group_size", header.group_size or 0),
        ("tile_rows", header.tile_rows),
    ):
        file.attrs.create(name, np.uint32(number))
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)  # so that the same weights always make the same file
    for part in parts:
        folder, _, name = part.dataset.rpartition("/")
        group = file.require_group(folder) if folder else file
        kind = h5py.h5t.py_create(part.dtype)
        dataset = h5py.h5d.create(group.id, name.encode(), kind, h5py.h5s.create_simple(part.shape), creation)
        h5py.Dataset(dataset).attrs.create(CHECKSUM_ATTRIBUTE, np.uint64(0))
