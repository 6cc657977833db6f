"""A weight file as its readers see it: tensors with their byte extents, checked; it never lets HDF5 read a tensor.

`open_weight_file` checks all that metadata can tell and closes HDF5 again; from then on the file is extents, which any
number of threads may read with plain reads. What was read is checked with `check_bytes`.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import TensorSpec
from flexref.errors import StorageError, WeightFileError
from flexref.policy import WEIGHT_SCHEMES
from flexref.storage.hdf5 import FoundPart, read_metadata
from flexref.storage.quant import Array, Quantized
from flexref.storage.schema import BITS, TOKENIZER, FileHeader
from flexref.storage.trailer import CHUNK_BYTES, check_trailer

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of `nbytes` bytes at `offset` of the file `path`."""

    path: str
    offset: int
    nbytes: int

    @property
    def stop(self) -> int:
        """The offset after the last byte."""
        return self.offset + self.nbytes


@dataclass(frozen=True, slots=True)
class Part:
    """One HDF5 dataset: its name, what it holds, where its bytes lie, and their XXH3-64."""

    dataset: str
    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"
    extent: Extent
    checksum: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as stored: a dense one has one part; one in groups has `codes`, `scale` and `zero`, in this order."""

    spec: TensorSpec
    scheme: str
    group_size: int | None
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """Its name in the file."""
        return self.spec.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, whatever its form."""
        return self.spec.shape

    @property
    def nbytes(self) -> int:
        """Bytes of all parts, without the gaps between them."""
        return sum(part.extent.nbytes for part in self.parts)

    @property
    def bits(self) -> int | None:
        """Bits of a code; None for a dense tensor."""
        return None if self.group_size is None else BITS[WEIGHT_SCHEMES[self.scheme]]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return self.spec.elements


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One weight file: its model, how it is stored, and every tensor by name in file order."""

    path: str
    spec: ModelSpec
    scheme: str
    group_size: int | None
    dtype: str
    tile_rows: int
    tensors: Mapping[str, StoredTensor]
    tokenizer: Part | None
    tokenizer_json: bytes | None
    file_bytes: int

    @property
    def layout(self) -> str:
        """How ports read the matrices of layers, whatever way of finding codes the scheme names."""
        return WEIGHT_SCHEMES[self.scheme]

    @property
    def stored(self) -> str:
        """How the matrices of layers are stored: as a type, or in groups of a layout."""
        return self.dtype if self.layout == "none" else self.layout

    @property
    def parts(self) -> Iterator[Part]:
        """Every dataset in file order, the tokenizer's included."""
        for tensor in self.tensors.values():
            yield from tensor.parts
        if self.tokenizer is not None:
            yield self.tokenizer

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


@contextmanager
def _opened(path: str) -> Iterator[int]:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"cannot open {path}: {error.strerror}") from error
    try:
        yield file
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(file)


def _part(path: str, found: FoundPart) -> Part:
    extent = Extent(path, found.offset, found.spec.nbytes)
    return Part(found.spec.dataset, found.spec.shape, found.spec.dtype, extent, found.checksum)


def _stored_tensors(path: str, header: FileHeader, found: Mapping[str, FoundPart]) -> Iterator[StoredTensor]:
    for stage in header.stages():
        for tensor in stage.tensors:
            scheme = header.scheme_of(tensor)
            group_size = None if scheme == "none" else header.group_size
            parts = tuple(_part(path, found[spec.dataset]) for spec in header.parts(tensor))
            yield StoredTensor(tensor, scheme, group_size, parts)


def read_layout(path: str | Path) -> WeightFile:
    """`open_weight_file` without the tokenizer's bytes: what can be said of a file whose data may be damaged."""
    path = str(path)
    with _opened(path) as file:
        trailer = check_trailer(file, path)
    header, found = read_metadata(path, trailer)
    tensors = {tensor.name: tensor for tensor in _stored_tensors(path, header, found)}
    tokenizer = _part(path, found[TOKENIZER]) if TOKENIZER in found else None
    return WeightFile(
        path,
        header.spec,
        header.scheme,
        header.group_size,
        header.dtype,
        header.tile_rows,
        tensors,
        tokenizer,
        tokenizer_json=None,
        file_bytes=trailer.file_bytes,
    )


def open_weight_file(path: str | Path) -> WeightFile:
    """The weight file at `path`, its metadata and tokenizer checked, its tensors not yet read.

    Raises `StorageError` where the file cannot be read and `WeightFileError` where it is foreign, of another version,
    truncated or damaged, or does not hold exactly the datasets that its header asks for.
    """
    layout = read_layout(path)
    if layout.tokenizer is None:
        return layout
    return replace(layout, tokenizer_json=read_part(layout.tokenizer).tobytes())


def check_bytes(part: Part, buffer: Any) -> None:
    """`WeightFileError` naming the dataset unless `buffer`, bytes of `part` as read, has its length and checksum."""
    view = memoryview(buffer).cast("B")
    if view.nbytes != part.extent.nbytes:
        raise WeightFileError(
            f"{part.extent.path}: dataset {part.dataset} has {part.extent.nbytes} bytes, {view.nbytes} were read"
        )
    if xxhash.xxh3_64_intdigest(view) != part.checksum:
        raise WeightFileError(f"{part.extent.path} is damaged: dataset {part.dataset} does not match its checksum")


def read_part(part: Part) -> Array:
    """The checked contents of one dataset, by plain reads."""
    buffer = _read(part, 0, part.extent.nbytes)
    check_bytes(part, buffer)
    return buffer.view(part.dtype).reshape(part.shape)


def _read(part: Part, start: int, nbytes: int) -> Array:
    """Bytes of a dataset from `start` on."""
    buffer = np.empty(nbytes, np.uint8)
    with _opened(part.extent.path) as file:
        done = 0
        while done < nbytes:
            piece = buffer.data[done : done + CHUNK_BYTES]
            count = os.preadv(file, [piece], part.extent.offset + start + done)
            if not count:
                raise WeightFileError(f"{part.extent.path} is truncated inside dataset {part.dataset}")
            done += count
    return buffer


def read_part_rows(part: Part, first: int, stop: int) -> Array:
    """Rows `first` to `stop` of one dataset, by plain reads; nothing is checked but that they are there."""
    row_bytes = part.extent.nbytes // part.shape[0]
    buffer = _read(part, first * row_bytes, (stop - first) * row_bytes)
    return buffer.view(part.dtype).reshape(stop - first, *part.shape[1:])


def read_tensor(stored: StoredTensor) -> Array | Quantized:
    """The checked contents of one tensor, as stored: an array, or its groups."""
    arrays = [read_part(part) for part in stored.parts]
    if stored.group_size is None or stored.bits is None:
        return arrays[0]
    return Quantized(arrays[0], arrays[1], arrays[2], stored.shape[-1], stored.group_size, stored.bits)


def _checksum(file: int, part: Part, on_chunk: Callable[[int], None]) -> int:
    digest, buffer = xxhash.xxh3_64(), bytearray(min(CHUNK_BYTES, part.extent.nbytes))
    offset = part.extent.offset
    while offset < part.extent.stop:
        count = os.preadv(file, [memoryview(buffer)[: part.extent.stop - offset]], offset)
        if not count:
            break
        digest.update(memoryview(buffer)[:count])
        offset += count
        on_chunk(count)
    return digest.intdigest()


def verify(path: str | Path, on_progress: Progress | None = None) -> list[str]:
    """The names of the datasets whose bytes do not match their checksum, in file order; memory stays bounded.

    Damage to the metadata leaves no names to give: it raises `WeightFileError`, as `open_weight_file` does.
    """
    layout = read_layout(path)
    total, done = sum(part.extent.nbytes for part in layout.parts), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress(done, total)

    with _opened(layout.path) as file:
        return [part.dataset for part in layout.parts if _checksum(file, part, advance) != part.checksum]
