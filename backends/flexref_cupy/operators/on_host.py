"""Attention over records in pinned host memory, on the host's processors; it knows no kernel of the device.

The arithmetic is that of `flexref_numba`, which is imported when the first cache on the host has a handle.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.backend.compiling import CompileTime
from flexref.backend.records import RecordLayout
from flexref_cupy.memory import Tensor
from flexref_cupy.pinned_memory import PinnedMemory
from flexref_cupy.pinning import Pinning

INSTALL = "it needs numba, which is not installed: pip install '.[numba]' in the checkout of flexref"


def is_possible() -> bool:
    """Whether numba is installed, which is not imported for that."""
    return find_spec("numba") is not None


class HostRows:
    """The caches of B rows in host memory: the handle of the host's operators, and the type of its records."""

    __slots__ = ("handle",)

    def __init__(self, handle: Any) -> None:
        self.handle = handle


class HostLengths:
    """The lengths of B rows in one pass, and the host's handle of them, which is made when it is needed."""

    __slots__ = ("handle", "new", "past")

    def __init__(self, past: Sequence[int], new: Sequence[int]) -> None:
        self.past, self.new = past, new
        self.handle: Any = None


class OnHost:
    """The operators `append` and `attend` on tensors of the host. Whoever calls has waited for what they read."""

    def __init__(self, pinning: Pinning, compiling: CompileTime) -> None:
        """`compiling` is told how long calls wait for numba."""
        self._pinning, self._compiling = pinning, compiling
        self._attention: Any = None

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor lies on the host."""
        return self._pinning.find(tensor.address) is not None

    def cache_rows(
        self, records: Sequence[Tensor], layout: RecordLayout, prefixes: Sequence[tuple[Any, int] | None] | None
    ) -> HostRows:
        """See `Backend.cache_rows`."""
        if self._attention is None:
            module = import_module("flexref_numba.host_attention")  # an extra of its own, and slow to import
            self._attention = module.HostAttention(compiling=self._compiling)
        named = None
        if prefixes is not None:
            named = [prefix and (self._array(prefix[0]), prefix[1]) for prefix in prefixes]
        return HostRows(self._attention.cache_rows([self._array(part) for part in records], layout, named))

    def append(self, rows: HostRows, lengths: HostLengths, k: Tensor, v: Tensor) -> None:
        """See `Backend.append`."""
        self._attention.append(rows.handle, self._handle(lengths), self._array(k), self._array(v))

    def attend(self, rows: HostRows, lengths: HostLengths, q: Tensor, scale: float, out: Tensor) -> None:
        """See `Backend.attend`."""
        self._attention.attend(rows.handle, self._handle(lengths), self._array(q), scale, self._array(out))

    def close(self) -> None:
        """End the threads."""
        if self._attention is not None:
            self._attention.close()

    def _handle(self, lengths: HostLengths) -> Any:
        if lengths.handle is None:
            lengths.handle = self._attention.segments(lengths.past, lengths.new)
        return lengths.handle

    def _array(self, tensor: Tensor) -> npt.NDArray[Any]:
        """The numbers of a tensor of the host, which may be written. `ValueError` for one of the device."""
        memory = self._pinning.find(tensor.address)
        if memory is None:
            raise ValueError("attention on the host reads and writes host memory alone, found an array of the device")
        return _view(memory, tensor)


def _view(memory: PinnedMemory, tensor: Tensor) -> npt.NDArray[Any]:
    dtype = np.dtype(tensor.dtype)
    strides = [dtype.itemsize]
    for axis in range(len(tensor.shape) - 1, 0, -1):
        strides.append(tensor.pitch_bytes if len(strides) == 1 else strides[-1] * tensor.shape[axis])
    return np.ndarray(tensor.shape, dtype, memory.bytes, tensor.address - memory.address, tuple(reversed(strides)))
