"""The numba port: memory, lanes and sampling of the reference port, and operators that numba has compiled."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import llvmlite
import numba
import numpy as np
import numpy.typing as npt
from flexref_numpy import NumpyBackend

from flexref.backend.capabilities import Description
from flexref.backend.compiling import CompileTime
from flexref.backend.protocol import Matrix
from flexref.backend.records import RecordLayout
from flexref_numba.host_attention import HostAttention
from flexref_numba.norm import layer_norm
from flexref_numba.products import Products

Numbers = npt.NDArray[Any]


FUSED_ROWS = 256
"""Up to so many rows a product expands a matrix as it goes: what that costs beside it is little from few rows on."""


THREAD_SCRATCH_BYTES = 1 << 20
"""What each thread uses of its own at most: six rows of a matrix with some 43,000 columns."""


class NumbaBackend(NumpyBackend):
    """The host's processor: float32, records and codes read where they lie."""

    name = "numba"

    def __init__(self, threads: int | None = None) -> None:
        """`threads`: as many as numpy's BLAS has, if not given. Results do not depend on it."""
        super().__init__()
        self.compiling = CompileTime()
        self._attention = HostAttention(threads, self.compiling)
        scratch_bytes = self.caps.scratch_bytes + THREAD_SCRATCH_BYTES * self._attention.threads.count
        self.caps = replace(self.caps, fused_rows=FUSED_ROWS, scratch_bytes=scratch_bytes)
        self._of_matrices = Products(self._attention.functions, self._attention.threads)

    def describe(self) -> Description:
        """See `Backend.describe`: it runs on the host's processor, beside which it has no device."""
        versions = {"numba": numba.__version__, "llvmlite": llvmlite.__version__, "numpy": np.__version__}
        return Description((), versions)

    def close(self) -> None:
        """End the threads."""
        super().close()
        self._attention.close()

    def linear(self, x: Any, w: Matrix, b: Any, *, out: Any = None, add: bool = False) -> Numbers:
        """See `Backend.linear`."""
        if out is None:
            out = self.empty((x.shape[0], w.shape[0]), "float32")
        return self._of_matrices.linear(x, w, b, out, add=add)

    def expand(self, w: Matrix, out: Any) -> Numbers:
        """See `Backend.expand`."""
        return self._of_matrices.expand(w, out)

    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float, out: Any = None) -> Numbers:
        """See `Backend.layer_norm`."""
        if out is None:
            out = self.empty(x.shape, "float32")
        return layer_norm(self._attention.functions, self._attention.threads, x, (w, b), epsilon, out)

    def cache_rows(self, records: Sequence[Any], layout: RecordLayout, prefixes: Sequence[Any] | None = None) -> Any:
        """See `Backend.cache_rows`."""
        return self._attention.cache_rows(records, layout, prefixes)

    def segments(self, past: Sequence[int], new: Sequence[int]) -> Any:
        """See `Backend.segments`."""
        return self._attention.segments(past, new)

    def append(self, rows: Any, segments: Any, k: Any, v: Any) -> None:
        """See `Backend.append`."""
        self._attention.append(rows, segments, k, v)

    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Numbers:
        """See `Backend.attend`."""
        return self._attention.attend(rows, segments, q, scale, out)
