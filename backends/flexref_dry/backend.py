"""Shapes instead of numbers: what a computation would hold, move and compute; no memory is touched."""

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.backend.protocol import Capabilities, LaneStep, Matrix, Move, Ticket
from flexref.backend.records import DTYPE_BYTES, RecordLayout
from flexref.backend.workspace import Workspace


@dataclass(frozen=True, slots=True)
class DryBuffer:
    """A size that stands for memory."""

    nbytes: int


@dataclass(frozen=True, slots=True)
class DryArray:
    """A shape and a type that stand for an array."""

    shape: tuple[int, ...]
    dtype: str

    def __getitem__(self, key: Any) -> "DryArray":
        keys = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(part, slice) for part in keys):
            raise TypeError(f"only slices make views, found {key!r}")
        lengths = [len(range(*part.indices(length))) for part, length in zip(keys, self.shape, strict=False)]
        return DryArray((*lengths, *self.shape[len(lengths) :]), self.dtype)


@dataclass(frozen=True, slots=True)
class DryTicket:
    """Done as soon as it is given out."""

    steps: int

    def wait(self) -> None:
        """Nothing is ever owed."""

    def done(self) -> bool:
        """See `Ticket.done`."""
        return True

    def times(self) -> Sequence[tuple[float, float]]:
        """Every step takes no time at time 0."""
        return [(0.0, 0.0)] * self.steps


@dataclass(frozen=True, slots=True)
class DryCaches:
    """What `cache_rows` and `segments` were called with."""

    lengths: tuple[tuple[int, int], ...]
    layout: RecordLayout | None = None


class DryBackend:
    """Counts: `flops` and `calls` per operator, `moved_bytes` per lane, and what the workspace would need.

    `compute_dtype` and `scratch_bytes` are those of the port whose runs are to be foreseen.
    """

    name = "dry"

    def __init__(self, compute_dtype: str = "float16", scratch_bytes: int = 0) -> None:
        self.caps = Capabilities(
            compute_dtype=compute_dtype,
            computes=False,
            overlaps_copies=False,
            attends_on_host=True,
            scratch_bytes=scratch_bytes,
            fused_rows=0,
        )
        self.calls: Counter[str] = Counter()
        self.flops: Counter[str] = Counter()
        self.moved_bytes: Counter[str] = Counter()
        self.results = Workspace(None)

    def _count(self, operator: str, flops: int) -> None:
        self.calls[operator] += 1
        self.flops[operator] += flops

    def free_bytes(self, tier: str) -> int:
        """As much as anybody may count."""
        return 1 << 62

    def allocate(self, tier: str, nbytes: int) -> DryBuffer:
        """A buffer without memory."""
        return DryBuffer(nbytes)

    def release(self, buffer: Any) -> None:
        """Nothing to do."""

    def view(self, buffer: Any, offset: int, shape: tuple[int, ...], dtype: str) -> DryArray:
        """See `Backend.view`; a view beyond the buffer raises as it does on every port."""
        end = offset + int(np.prod(shape, dtype=np.int64)) * DTYPE_BYTES[dtype]
        if offset < 0 or end > buffer.nbytes:
            raise IndexError(f"bytes {offset} to {end} of a buffer of {buffer.nbytes}")
        return DryArray(tuple(shape), dtype)

    def host_memory(self, buffer: Any) -> npt.NDArray[np.uint8]:
        """There is none: nothing that would touch it may be called on this port."""
        raise TypeError("the dry port has no memory")

    def upload(self, values: npt.NDArray[Any], out: Any = None) -> DryArray:
        """See `Backend.upload`."""
        return self.empty(values.shape, str(values.dtype)) if out is None else out

    def download(self, x: Any) -> npt.NDArray[Any]:
        """There is nothing to read."""
        raise TypeError("the dry port has no values")

    def assign(self, target: Any, source: Any) -> None:
        """See `Backend.assign`."""
        if target.shape != source.shape:
            raise ValueError(f"assign: {source.shape} does not fill {target.shape}")
        self._count("assign", 0)

    def workspace(self, buffer: Any) -> None:
        """See `Backend.workspace`; a new count starts."""
        self.results = Workspace(None if buffer is None else buffer.nbytes)

    def frame(self) -> AbstractContextManager[None]:
        """See `Backend.frame`."""
        return self.results.frame()

    def workspace_peak_bytes(self) -> int:
        """See `Backend.workspace_peak_bytes`."""
        return self.results.peak_bytes

    def empty(self, shape: tuple[int, ...], dtype: str) -> DryArray:
        """See `Backend.empty`."""
        self.results.take(int(np.prod(shape, dtype=np.int64)) * DTYPE_BYTES[dtype])
        return DryArray(tuple(shape), dtype)

    def submit(self, lane: str, steps: Sequence[LaneStep], after: Sequence[Ticket]) -> Ticket:
        """Counts the moves; work on the host is not done."""
        self.moved_bytes[lane] += sum(step.nbytes for step in steps if isinstance(step, Move))
        return DryTicket(len(steps))

    def mark(self) -> Ticket:
        """See `Backend.mark`."""
        return DryTicket(0)

    def wait(self, ticket: Ticket) -> None:
        """See `Backend.wait`."""

    def close(self) -> None:
        """Nothing to end."""

    def gather(self, table: Any, ids: Any, first: int, out: Any) -> Any:
        """See `Backend.gather`."""
        self._count("gather", 0)
        return out

    def add_rows(self, x: Any, table: Any, ids: Any) -> Any:
        """See `Backend.add_rows`."""
        self._count("add_rows", x.shape[0] * x.shape[1])
        return x

    def linear(self, x: Any, w: Matrix, b: Any, *, out: Any = None, add: bool = False) -> Any:
        """See `Backend.linear`: 2 T O I FLOPs."""
        if x.shape[-1] != w.shape[1]:
            raise ValueError(f"linear: x {x.shape} does not match w {w.shape}")
        self._count("linear", 2 * x.shape[0] * w.shape[0] * w.shape[1])
        return self.empty((x.shape[0], w.shape[0]), self.caps.compute_dtype) if out is None else out

    def expand(self, w: Matrix, out: Any) -> Any:
        """See `Backend.expand`: a product and a sum per element."""
        self._count("expand", 2 * w.shape[0] * w.shape[1])
        return out

    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float, out: Any = None) -> Any:
        """See `Backend.layer_norm`: about eight operations per element."""
        self._count("layer_norm", 8 * x.shape[0] * x.shape[1])
        return self.empty(x.shape, self.caps.compute_dtype) if out is None else out

    def activate(self, x: Any, activation: str) -> Any:
        """See `Backend.activate`: counted as one operation per element."""
        self._count("activate", x.shape[0] * x.shape[1])
        return x

    def cache_rows(self, records: Sequence[Any], layout: RecordLayout) -> DryCaches:
        """See `Backend.cache_rows`."""
        return DryCaches(tuple((array.shape[0], 0) for array in records), layout)

    def segments(self, past: Sequence[int], new: Sequence[int]) -> DryCaches:
        """See `Backend.segments`."""
        return DryCaches(tuple(zip(past, new, strict=True)))

    def append(self, rows: Any, segments: Any, k: Any, v: Any) -> None:
        """See `Backend.append`; records beyond a row's capacity raise as they do on every port."""
        for (capacity, _), (past, new) in zip(rows.lengths, segments.lengths, strict=True):
            if (past + new) * rows.layout.record_bytes > capacity:
                raise IndexError(f"{past + new} records in a cache of {capacity} bytes")
        self._count("append", 0)

    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        """See `Backend.attend`: 4 E FLOPs per query and visible key."""
        visible = sum(past * new + new * (new + 1) // 2 for past, new in segments.lengths)
        self._count("attend", 4 * q.shape[1] * visible)
        return out

    def sample(
        self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.int64]:
        """Token 0 for every row: no logits, no choice."""
        self._count("sample", logits.shape[0] * logits.shape[1])
        return np.zeros(logits.shape[0], np.int64)
