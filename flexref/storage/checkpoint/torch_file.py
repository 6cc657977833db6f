"""Lists the tensors of a PyTorch checkpoint (`pytorch_model.bin`); it needs no PyTorch, runs no pickle, knows no model.

Since version 1.6 such a file is a zip archive of uncompressed entries: `NAME/data.pkl` describes the tensors, each
`NAME/data/KEY` holds the bytes of one storage. Tensors are later read in place, at their entry's offset.
"""

import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

from flexref.errors import CheckpointError, StorageError
from flexref.storage.checkpoint.pickle_machine import LARGEST_PICKLE_BYTES, tensors_of
from flexref.storage.checkpoint.pickle_values import PickledTensor
from flexref.storage.checkpoint.source import SourceTensor

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_LOCAL_SIGNATURE = b"PK\x03\x04"
_PICKLE_PREFIX = b"\x80\x02"


def list_torch(path: Path) -> Iterator[SourceTensor]:
    """Every tensor of the file; `CheckpointError` says what is wrong with it, or refuses a hostile pickle by name."""
    try:
        with path.open("rb") as file:
            if file.read(2) == _PICKLE_PREFIX:
                raise CheckpointError(
                    f"{path} is in PyTorch's format from before version 1.6; load it with torch and save it again"
                )
            with zipfile.ZipFile(file) as archive:
                yield from _Archive(path, file.fileno(), archive).tensors()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zipfile.LargeZipFile, struct.error, ValueError, NotImplementedError, EOFError) as error:
        # What Python's zip reader raises for damaged archives.
        raise CheckpointError(f"{path} is no valid PyTorch checkpoint: {' '.join(str(error).split())[:200]}") from error


class _Archive:
    """The entries of an open archive, with distrust: every length is checked against the file's own."""

    def __init__(self, path: Path, file: int, archive: zipfile.ZipFile) -> None:
        self._path, self._file, self._archive = path, file, archive
        self._file_bytes = os.fstat(file).st_size
        self._entries: dict[str, zipfile.ZipInfo] = {}
        for entry in archive.infolist():
            if entry.filename in self._entries:
                raise CheckpointError(f"{path}: has two entries of the name {entry.filename[:128]!r}")
            self._entries[entry.filename] = entry

    def tensors(self) -> Iterator[SourceTensor]:
        """Every tensor that the pickle describes."""
        roots = [name.removesuffix("data.pkl") for name in self._entries if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise CheckpointError(
                f"{self._path} is no PyTorch checkpoint: it has {len(roots)} entries data.pkl, needed 1"
            )
        order = self._entries.get(f"{roots[0]}byteorder")
        if order is not None and self._contents(order) != b"little":
            raise CheckpointError(f"{self._path} was saved on a big-endian machine; only little-endian files are read")
        pickle = self._contents(self._entries[f"{roots[0]}data.pkl"])
        for name, tensor in tensors_of(pickle, str(self._path)).items():
            yield self._locate(name, tensor, roots[0])

    def _checked(self, name: str) -> zipfile.ZipInfo:
        entry = self._entries.get(name)
        if entry is None:
            raise CheckpointError(f"{self._path}: lacks the entry {name[:128]!r} that its pickle asks for")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.flag_bits & 1:
            raise CheckpointError(
                f"{self._path}: entry {name[:128]!r} is compressed or encrypted, which torch never writes"
            )
        return entry

    def _contents(self, entry: zipfile.ZipInfo) -> bytes:
        entry = self._checked(entry.filename)
        if entry.file_size > LARGEST_PICKLE_BYTES:
            raise CheckpointError(
                f"{self._path}: entry {entry.filename[:128]!r} has {entry.file_size} bytes, "
                f"at most {LARGEST_PICKLE_BYTES} are read"
            )
        return self._archive.read(entry)

    def _data_offset(self, entry: zipfile.ZipInfo) -> int:
        """Where an entry's bytes begin: after a local header whose name and extra field have lengths of their own."""
        raw = os.pread(self._file, _LOCAL_HEADER.size, entry.header_offset)
        signature, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(raw)
        offset = int(entry.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes)
        if signature != _LOCAL_SIGNATURE or offset + entry.file_size > self._file_bytes:
            raise CheckpointError(f"{self._path}: entry {entry.filename[:128]!r} lies beyond the end of the file")
        return offset

    def _locate(self, name: str, tensor: PickledTensor, root: str) -> SourceTensor:
        storage = tensor.storage
        entry = self._checked(f"{root}data/{storage.key}")
        if storage.elements * storage.itemsize > entry.file_size:
            raise CheckpointError(
                f"{self._path}: the storage of {name[:128]!r} has {entry.file_size} bytes, "
                f"its pickle asks for {storage.elements * storage.itemsize}"
            )
        offset = self._data_offset(entry) + tensor.offset * storage.itemsize
        return SourceTensor(str(self._path), name, storage.dtype, tensor.shape, tensor.strides, offset)
