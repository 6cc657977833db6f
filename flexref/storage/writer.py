"""Writes a weight file whole or not at all: every tensor in file order, then the metadata; it knows no checkpoint.

HDF5 makes the metadata in memory and says where each dataset lies (`metadata_image`); everything is written by plain
writes, to blocks that were reserved before. Slabs of rows bound the memory, whatever a tensor's size.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np

from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import TensorSpec
from flexref.errors import CheckpointError, StorageError, in_gib
from flexref.files import NewFile
from flexref.storage.metadata_image import MetadataImage
from flexref.storage.quant import Array, Quantized
from flexref.storage.rounding import Rounding, rounding_of
from flexref.storage.schema import TOKENIZER, FileHeader, PartSpec
from flexref.storage.schemes import quantize_as
from flexref.storage.sink import Sink, told
from flexref.storage.trailer import seal
from flexref.units import ALIGNMENT_BYTES, aligned

SLAB_ELEMENTS = 1 << 21
"""Elements of a tensor that are worked on at a time: 8 MiB as float32."""

METADATA_BYTES_PER_OBJECT = 2048
"""Bounds what HDF5 takes to describe one dataset with its group, from above; checked against free space."""


MOST_WORKERS = 4
"""Threads that quantize: with more, reading and writing are the limit."""


def slab_rows(shape: tuple[int, ...]) -> int:
    """Rows of a tensor of `shape` that make one slab."""
    return max(1, SLAB_ELEMENTS * shape[0] // max(1, _elements(shape)))


def _elements(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


class WeightFileWriter:
    """A weight file in the making, as a context: `write` every tensor in the order of `header.stages()`, then leave.

    The file appears under its name only when all of it has reached the disk; on any failure nothing is left of it, and
    an older file of that name stays. Raises `StorageError` where the folder cannot be written or has too little room.
    """

    def __init__(
        self,
        path: str | Path,
        spec: ModelSpec,
        scheme: str,
        group_size: int | None,
        dtype: str,
        tokenizer_json: bytes | None = None,
    ) -> None:
        self.path = Path(path)
        self.header = FileHeader.of(spec, scheme, group_size, dtype)
        self._tokenizer = tokenizer_json or None
        self._tensors = [tensor for stage in self.header.stages() for tensor in stage.tensors]
        self.rounding: Rounding | None = None
        """What was lost so far where dense values were rounded to the file's type."""
        self._next = 0
        self._file: NewFile | None = None
        self._image: MetadataImage | None = None
        self._workers = min(MOST_WORKERS, len(os.sched_getaffinity(0)))
        self._pool = ThreadPoolExecutor(self._workers)

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Every tensor, in the order in which they must be written."""
        return tuple(self._tensors)

    @property
    def nbytes(self) -> int:
        """Bytes that the finished file takes at most."""
        parts = self._parts()
        return (
            sum(aligned(part.nbytes) for part in parts) + METADATA_BYTES_PER_OBJECT * len(parts) + 2 * ALIGNMENT_BYTES
        )

    def _parts(self) -> list[PartSpec]:
        parts = [part for tensor in self._tensors for part in self.header.parts(tensor)]
        if self._tokenizer is not None:
            parts.append(PartSpec(TOKENIZER, (len(self._tokenizer),), np.dtype(np.uint8)))
        return parts

    def __enter__(self) -> "WeightFileWriter":
        folder = self.path.parent
        if not folder.is_dir():
            why = f"{folder} is no folder" if folder.exists() else f"there is no folder {folder}"
            raise StorageError(f"cannot write {self.path}: {why}")
        if self.path.is_dir():
            raise StorageError(f"cannot write {self.path}: it is a folder")
        if self.path.exists() and not self.path.is_file():  # a pipe or device would be replaced by a file
            raise StorageError(f"cannot write {self.path}: it is there and no regular file")
        image = MetadataImage(self.header, self._parts())
        try:
            with told(self.path):
                file = NewFile(self.path)
            self._file, self._image = file, image
            self._check_room(folder)
            with told(self.path):
                # Blocks are had now or never: a disk that is full is found out before hours of work.
                os.posix_fallocate(file.descriptor, 0, self.nbytes)
        except BaseException:
            self._abandon()
            image.close()
            raise
        return self

    def _check_room(self, folder: Path) -> None:
        with told(self.path):
            space = os.statvfs(folder)
        free = space.f_bavail * space.f_frsize
        if self.nbytes > free:
            raise StorageError(
                f"{folder} has too little room for {self.path.name}: needed {in_gib(self.nbytes)}, free {in_gib(free)}"
            )

    def write(self, name: str, array: Array | Quantized) -> None:
        """Write the whole tensor `name`, the next in file order; see `write_slabs`."""
        if isinstance(array, Quantized):
            self.write_slabs(name, [(name, array)])
            return
        rows = slab_rows(array.shape)
        self.write_slabs(name, ((name, array[first : first + rows]) for first in range(0, len(array), rows)))

    def write_slabs(self, name: str, slabs: Iterable[tuple[str, Array | Quantized]]) -> None:
        """Write the tensor `name`, the next in file order, from consecutive runs of its rows.

        Each slab is (what it is called in messages, its rows) in any float type; it is quantized where the scheme says
        so, unless it is in groups of the file's layout already. Raises `CheckpointError` or `QuantizationError` naming
        the slab where values are not finite or do not fit, and `ValueError` where name, order, shape or groups are not
        what the file needs.
        """
        file, image = self._file, self._image
        if file is None or image is None or self._next >= len(self._tensors) or self._tensors[self._next].name != name:
            raise ValueError(f"{name} is not the next tensor to be written")
        tensor = self._tensors[self._next]
        parts = self.header.parts(tensor)
        sinks = [Sink(file, part, image.offsets[part.dataset]) for part in parts]
        for arrays in self._encoded(tensor, slabs):
            with told(self.path):
                for sink, array in zip(sinks, arrays, strict=True):
                    sink.append(array)
        for sink in sinks:
            image.set_checksum(sink.part.dataset, sink.finish())
        self._next += 1

    def _encoded(
        self, tensor: TensorSpec, slabs: Iterable[tuple[str, Array | Quantized]]
    ) -> Iterator[tuple[Array, ...]]:
        """The slabs as they are stored, in order: some are being quantized while one is read and one is written."""
        waiting: deque[Future[tuple[tuple[Array, ...], Rounding | None]]] = deque()
        for what, slab in slabs:
            if slab.shape[1:] != tensor.shape[1:]:
                raise ValueError(f"{tensor.name}: a slab has shape {slab.shape}, needed rows of {tensor.shape}")
            waiting.append(self._pool.submit(self._encode, tensor, what, slab))
            if len(waiting) > self._workers:
                yield self._noted(waiting.popleft())
        while waiting:
            yield self._noted(waiting.popleft())

    def _noted(self, done: "Future[tuple[tuple[Array, ...], Rounding | None]]") -> tuple[Array, ...]:
        arrays, lost = done.result()
        if lost is not None:
            self.rounding = lost if self.rounding is None else self.rounding.joined(lost)
        return arrays

    def _encode(
        self, tensor: TensorSpec, what: str, slab: Array | Quantized
    ) -> tuple[tuple[Array, ...], Rounding | None]:
        """The arrays as they are stored, and what rounding dense ones to the file's type lost."""
        dtype = self.header.dense_dtype
        if self.header.group_size is not None and tensor.quantizable:
            if not isinstance(slab, Quantized):
                slab = quantize_as(self.header.scheme, slab, self.header.group_size, dtype, what)
            if (slab.group_size, slab.bits, slab.scale.dtype) != (self.header.group_size, self.header.bits, dtype):
                raise ValueError(f"{what}: groups of {slab.group_size} values in {slab.bits} bits do not fit the file")
            return (slab.codes, slab.scale, slab.zero), None
        if isinstance(slab, Quantized):
            raise ValueError(f"{what} is in groups, but the file holds it dense")
        with np.errstate(over="ignore"):
            dense = np.ascontiguousarray(slab, dtype)
        if not np.isfinite(dense).all():
            if np.isfinite(slab).all():
                raise CheckpointError(f"{what}: holds values beyond the range of {dtype}; use float32")
            raise CheckpointError(f"{what}: holds weights that are not finite")
        return (dense,), rounding_of(slab, dense)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._complete()
        finally:
            self._abandon()

    def _complete(self) -> None:
        """Write tokenizer and metadata, seal, and give the file its name."""
        if self._next < len(self._tensors):
            raise ValueError(f"{self._tensors[self._next].name} was not written")
        file, image = self._file, self._image
        if file is None or image is None:
            raise ValueError("the writer was not entered")
        with told(self.path):
            if self._tokenizer is not None:
                sink = Sink(file, self._parts()[-1], image.offsets[TOKENIZER])
                sink.append(np.frombuffer(self._tokenizer, np.uint8))
                image.set_checksum(TOKENIZER, sink.finish())
            metadata, nbytes = image.finish()
            file.write(memoryview(metadata), 0)
            os.ftruncate(file.descriptor, nbytes)
            seal(file.descriptor, len(metadata))
            file.publish()

    def _abandon(self) -> None:
        """Give back what is held; a file that is not complete is gone with it."""
        self._pool.shutdown(cancel_futures=True)
        if self._image is not None:
            self._image.close()
        if self._file is not None:
            self._file.close()
        self._file = self._image = None
