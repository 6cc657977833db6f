"""A tensor inside a file of a checkpoint, read by rows with plain reads; it knows neither format nor model."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

from flexref.errors import CheckpointError, StorageError
from flexref.storage.quant import Array

FLOAT_TYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "float16": np.dtype("<f2"),
        "bfloat16": np.dtype(ml_dtypes.bfloat16),
        "float32": np.dtype("<f4"),
        "float64": np.dtype("<f8"),
    }
)
"""The types that weights may have in a checkpoint."""


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """One tensor of a checkpoint: `shape`, `strides` in elements, and the byte `offset` of its first element.

    Whoever makes one has checked that all its elements lie inside the file. `dtype` is a name that may be no float
    type: such a tensor can be listed, not read.
    """

    path: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        count = self._float_type().itemsize
        for length in self.shape:
            count *= length
        return count

    @property
    def contents(self) -> tuple[Any, ...]:
        """What two tensors share if and only if they are the same bytes under two names."""
        return self.path, self.dtype, self.shape, self.strides, self.offset

    def _float_type(self) -> "np.dtype[Any]":
        if self.dtype not in FLOAT_TYPES:
            raise CheckpointError(
                f"{self.path}: tensor {self.name} has type {self.dtype}, needed one of {', '.join(FLOAT_TYPES)}"
            )
        return FLOAT_TYPES[self.dtype]

    def read_rows(self, first: int, stop: int) -> Array:
        """Entries `first` to `stop` of the first axis; memory is the run of bytes in which they lie.

        Raises `CheckpointError` for a file that ends too early and `StorageError` for one that cannot be read.
        """
        dtype = self._float_type()
        shape = (stop - first, *self.shape[1:])
        if 0 in shape:
            return np.empty(shape, dtype)
        last = sum((length - 1) * stride for length, stride in zip(shape, self.strides, strict=True))
        start = self.offset + first * self.strides[0] * dtype.itemsize
        run = self._read(start, (last + 1) * dtype.itemsize).view(dtype)
        steps = tuple(stride * dtype.itemsize for stride in self.strides)
        return np.lib.stride_tricks.as_strided(run, shape, steps, writeable=False)

    def _read(self, offset: int, nbytes: int) -> Array:
        buffer = np.empty(nbytes, np.uint8)
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                done = 0
                while done < nbytes:
                    count = os.preadv(file, [buffer.data[done:]], offset + done)
                    if not count:
                        raise CheckpointError(f"{self.path} is truncated inside tensor {self.name}")
                    done += count
            finally:
                os.close(file)
        except OSError as error:
            raise StorageError(f"cannot read {self.path}: {error.strerror}") from error
        return buffer


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a tensor whose last axis varies fastest."""
    strides, step = [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))
