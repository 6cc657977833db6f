"""Results of a port's operators in the workspace that it is given, counted by `Workspace`; it knows no memory."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from flexref.backend.workspace import Workspace
from flexref.units import DTYPE_BYTES


def view_end(buffer: Any, offset: int, shape: tuple[int, ...], dtype: str) -> int:
    """Where a view of `buffer` that begins at `offset` ends; `IndexError` if it lies outside the buffer."""
    end = offset + math.prod(shape) * DTYPE_BYTES[dtype]
    if offset < 0 or end > buffer.nbytes:
        raise IndexError(f"bytes {offset} to {end} of a buffer of {buffer.nbytes}")
    return end


class CountedResults:
    """The part of `Backend` that is about results, for a port whose workspace is one of its own buffers.

    The port has `view` and `_fresh`.
    """

    _workspace: Workspace | None = None
    _results: Any = None

    def view(self, buffer: Any, offset: int, shape: tuple[int, ...], dtype: str) -> Any:
        """See `Backend.view`."""
        raise NotImplementedError

    def _fresh(self, shape: tuple[int, ...], dtype: str) -> Any:
        """An uninitialized array on the device, of memory that goes with it."""
        raise NotImplementedError

    def workspace(self, buffer: Any) -> None:
        """See `Backend.workspace`."""
        self._results, self._workspace = buffer, None if buffer is None else Workspace(buffer.nbytes)

    def frame(self) -> AbstractContextManager[None]:
        """See `Backend.frame`."""
        return nullcontext() if self._workspace is None else self._workspace.frame()

    def workspace_peak_bytes(self) -> int:
        """See `Backend.workspace_peak_bytes`."""
        return 0 if self._workspace is None else self._workspace.peak_bytes

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """See `Backend.empty`."""
        if self._workspace is None:
            return self._fresh(shape, dtype)
        return self.view(self._results, self._workspace.take(math.prod(shape) * DTYPE_BYTES[dtype]), shape, dtype)
