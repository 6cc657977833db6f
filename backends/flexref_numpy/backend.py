"""The numpy port's memory and its operators by name; the arithmetic is in `operators`, `attention` and `sampling`."""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from flexref.backend.capabilities import Capabilities, Description
from flexref.backend.protocol import LANES, LaneStep, Matrix, Prefix, Ticket
from flexref.backend.recording import DirectCalls
from flexref.backend.records import RecordLayout
from flexref.backend.results import CountedResults
from flexref.units import ALIGNMENT_BYTES
from flexref_numpy import attention, linear, operators, sampling
from flexref_numpy.lanes import Lane, LaneTicket, bytes_of
from flexref_numpy.products import Products, blas_threads
from flexref_numpy.scratch import Scratch

Numbers = npt.NDArray[Any]

SCRATCH_BYTES = 4 << 20
"""Bounds what an operator uses inside itself: tiles of expanded weights and of scores that stay near the caches."""

MINIMUM_SCRATCH_BYTES = 1 << 16
"""Below it a tile would be less than one row of the matrices of the smallest models."""


class NumpyBackend(CountedResults, DirectCalls):
    """The reference port. `device` is ordinary memory with a budget, so that offloading runs without a GPU."""

    name = "numpy"

    def __init__(self, scratch_bytes: int = SCRATCH_BYTES) -> None:
        """`scratch_bytes` bounds the tiles inside operators; results depend on it in rounding only."""
        if scratch_bytes < MINIMUM_SCRATCH_BYTES:
            raise ValueError(f"scratch_bytes must be at least {MINIMUM_SCRATCH_BYTES}, found {scratch_bytes}")
        self.caps = Capabilities(
            compute_dtype="float32",
            computes=True,
            overlaps_copies=True,
            attends_on_host=True,
            scratch_bytes=scratch_bytes,
            fused_rows=0,
            one_memory=True,
            row_invariant=True,
            shares_prefixes=True,
        )
        self._scratch = Scratch(scratch_bytes)
        self._beside: Scratch | None = None
        self._rows_apart = True
        self._products = Products(blas_threads())
        self._linear = linear.RowsApart(self._scratch, self._products)
        self._lanes: dict[str, Lane] = {lane: Lane(lane) for lane in LANES}

    def describe(self) -> Description:
        """See `Backend.describe`: it runs on the host's processor, beside which it has no device."""
        return Description((), {"numpy": np.__version__})

    def keep_rows_apart(self, on: bool) -> None:
        """See `Backend.keep_rows_apart`: products are the plain ones of numpy, if not `on`; attention is the same."""
        self._rows_apart = on

    def free_bytes(self, tier: str) -> int:
        """Half of the free memory each: on this port `device` and `host` are one."""
        return int(psutil.virtual_memory().available) // 2

    def allocate(self, tier: str, nbytes: int) -> Numbers:
        """Aligned bytes; pages that are never touched cost nothing."""
        whole = np.empty(nbytes + ALIGNMENT_BYTES, np.uint8)
        start = -whole.ctypes.data % ALIGNMENT_BYTES
        return whole[start : start + nbytes]

    def release(self, buffer: Any) -> None:
        """Nothing to do: the memory goes with the last view of it."""

    def view(self, buffer: Any, offset: int, shape: tuple[int, ...], dtype: str) -> Numbers:
        """See `Backend.view`."""
        count = math.prod(shape) * np.dtype(dtype).itemsize
        return bytes_of(buffer, offset, count).view(dtype).reshape(shape)

    def host_memory(self, buffer: Any) -> npt.NDArray[np.uint8]:
        """See `Backend.host_memory`."""
        assert isinstance(buffer, np.ndarray)
        return buffer

    def upload(self, values: Numbers, out: Any = None) -> Numbers:
        """See `Backend.upload`."""
        if out is None:
            out = self.empty(values.shape, str(values.dtype))
        np.copyto(out, values)
        return out  # type: ignore[no-any-return]

    def download(self, x: Any) -> Numbers:
        """See `Backend.download`."""
        return np.array(x)

    def assign(self, target: Any, source: Any) -> None:
        """See `Backend.assign`."""
        np.copyto(target, source)

    def _fresh(self, shape: tuple[int, ...], dtype: str) -> Numbers:
        return np.empty(shape, dtype)

    def submit(self, lane: str, steps: Sequence[LaneStep], after: Sequence[Ticket]) -> Ticket:
        """See `Backend.submit`."""
        return self._lanes[lane].submit(steps, after)

    def mark(self) -> Ticket:
        """Operators are done when their call returns, so the ticket is too."""
        ticket, now = LaneTicket(), time.perf_counter()
        ticket.finish([(now, now)], None)
        return ticket

    def wait(self, ticket: Ticket) -> None:
        """See `Backend.wait`."""
        ticket.wait()

    def close(self) -> None:
        """End the threads of the lanes and of products."""
        for lane in self._lanes.values():
            lane.close()
        self._products.close()

    def gather(self, table: Any, ids: Any, first: int, out: Any) -> Numbers:
        """See `Backend.gather`."""
        return operators.gather(table, ids, first, out)

    def add_rows(self, x: Any, table: Any, ids: Any) -> Numbers:
        """See `Backend.add_rows`."""
        return operators.add_rows(x, table, ids)

    def linear(self, x: Any, w: Matrix, b: Any, *, out: Any = None, add: bool = False) -> Numbers:
        """See `Backend.linear`."""
        if out is None:
            out = self.empty((x.shape[0], w.shape[0]), "float32")
        if not self._rows_apart:
            return linear.linear(self._scratch, x, w, b, out, add=add)
        return self._linear.linear(x, w, b, out, add=add)

    def expand(self, w: Matrix, out: Any) -> Numbers:
        """See `Backend.expand`."""
        return operators.expand(w, 0, w.shape[0], out)

    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float, out: Any = None) -> Numbers:
        """See `Backend.layer_norm`."""
        if out is None:
            out = self.empty(x.shape, "float32")
        return operators.layer_norm(x, w, b, epsilon, out)

    def activate(self, x: Any, activation: str) -> Numbers:
        """See `Backend.activate`."""
        return operators.activate(self._scratch, x, activation)

    def cache_rows(
        self, records: Sequence[Any], layout: RecordLayout, prefixes: Sequence[Prefix | None] | None = None
    ) -> attention.CacheRows:
        """See `Backend.cache_rows`."""
        named: Sequence[Any] = [None] * len(records) if prefixes is None else prefixes
        return attention.CacheRows(tuple(records), layout, tuple(named))

    def segments(self, past: Sequence[int], new: Sequence[int]) -> attention.Segments:
        """See `Backend.segments`."""
        return attention.Segments(tuple(past), tuple(new))

    def append(self, rows: Any, segments: Any, k: Any, v: Any) -> None:
        """See `Backend.append`."""
        attention.append(rows, segments, k, v)

    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Numbers:
        """See `Backend.attend`."""
        scratch = self._scratch_of_lanes() if any(lane.is_here for lane in self._lanes.values()) else self._scratch
        return attention.attend(scratch, rows, segments, q, scale, out)

    def _scratch_of_lanes(self) -> Scratch:
        """A lane that attends has a scratch of its own, as large as that of the operators beside which it does."""
        if self._beside is None:
            self._beside = Scratch(self.caps.scratch_bytes)
        return self._beside

    def sample(
        self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.int64]:
        """See `Backend.sample`."""
        return sampling.sample(logits, temperature, top_k, top_p, uniforms)
