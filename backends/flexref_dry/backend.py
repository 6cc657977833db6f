"""Shapes instead of numbers: what a computation would hold, move, compute and take; no memory is touched."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from flexref.backend.capabilities import Capabilities, Description
from flexref.backend.protocol import HostWork, LaneStep, Matrix, Move, Prefix, Ticket
from flexref.backend.records import RecordLayout
from flexref.backend.workspace import Workspace
from flexref.machine.machine import Machine
from flexref.units import DTYPE_BYTES
from flexref_dry.recording import DryRecording, DryRecordings
from flexref_dry.stand_ins import (
    DryArray,
    DryBuffer,
    DryCaches,
    DrySegments,
    DryValues,
    gathered_bytes,
    nbytes_of,
    sizes_of,
    stored_as,
)
from flexref_dry.timing import DryTicket, Timing


class DryBackend(DryRecordings):
    """Counts: `flops` and `calls` per operator, `moved_bytes` per lane, and what the workspace would need.

    On a `machine` it also tells the time: tickets are done when that machine would have done them, and it has the
    capabilities of the machine's port. Without one nothing takes time; `compute_dtype` and `scratch_bytes` are then
    those of the port whose runs are to be predicted.
    """

    name = "dry"

    def __init__(self, compute_dtype: str = "float16", scratch_bytes: int = 0, machine: Machine | None = None) -> None:
        port = None if machine is None else machine.port
        self.caps = Capabilities(
            compute_dtype=compute_dtype if port is None else port.compute_dtype,
            computes=False,
            overlaps_copies=port is not None and port.overlaps_copies,
            attends_on_host=True if port is None else port.attends_on_host,
            scratch_bytes=scratch_bytes if port is None else port.scratch_bytes,
            fused_rows=0 if port is None else port.fused_rows,
            shares_prefixes=True,
            recorded_bytes=0 if port is None else port.recorded_bytes,
            recording_bytes=0 if port is None else port.recording_bytes,
            recorded_call_bytes=0 if port is None else port.recorded_call_bytes,
        )
        self.calls: Counter[str] = Counter()
        self.flops: Counter[str] = Counter()
        self.moved_bytes: Counter[str] = Counter()
        self._closed = False
        self._recording: DryRecording | None = None
        self._results = Workspace(None)
        self.timing = None if machine is None else Timing(machine)

    def describe(self) -> Description:
        """See `Backend.describe`: there is no device, and no library computes."""
        return Description((), {})

    def keep_rows_apart(self, on: bool) -> None:
        """There are no bits."""

    def free_bytes(self, tier: str) -> int:
        """As much as anybody may count."""
        return 1 << 62

    def allocate(self, tier: str, nbytes: int) -> DryBuffer:
        """A buffer without memory."""
        return DryBuffer(nbytes, tier)

    def release(self, buffer: Any) -> None:
        """Nothing to do."""

    def view(self, buffer: Any, offset: int, shape: tuple[int, ...], dtype: str) -> DryArray:
        """See `Backend.view`; a view beyond the buffer raises as it does on every port."""
        end = offset + math.prod(shape) * DTYPE_BYTES[dtype]
        if offset < 0 or end > buffer.nbytes:
            raise IndexError(f"bytes {offset} to {end} of a buffer of {buffer.nbytes}")
        return DryArray(tuple(shape), dtype, buffer.tier)

    def host_memory(self, buffer: Any) -> npt.NDArray[np.uint8]:
        """There is none: nothing that would touch it may be called on this port."""
        raise TypeError("the dry port has no memory")

    def upload(self, values: npt.NDArray[Any], out: Any = None) -> DryArray:
        """See `Backend.upload`."""
        if out is not None:
            return cast(DryArray, out)
        self.empty(values.shape, str(values.dtype))
        return DryValues(values.shape, str(values.dtype), values=values)

    def download(self, x: Any) -> npt.NDArray[Any]:
        """There is nothing to read."""
        raise TypeError("the dry port has no values")

    def assign(self, target: Any, source: Any) -> None:
        """See `Backend.assign`."""
        if target.shape != source.shape:
            raise ValueError(f"assign: {source.shape} does not fill {target.shape}")
        nbytes = nbytes_of(target)
        if source.tier == target.tier:
            self._count("assign", 0, "operator", "assign", nbytes)
        else:
            self._count("assign", 0, "copy", f"{source.tier}->{target.tier}", nbytes)

    def workspace(self, buffer: Any) -> None:
        """See `Backend.workspace`; a new count starts."""
        self._results = Workspace(None if buffer is None else buffer.nbytes)

    def frame(self) -> AbstractContextManager[None]:
        """See `Backend.frame`."""
        return self._results.frame()

    def workspace_peak_bytes(self) -> int:
        """See `Backend.workspace_peak_bytes`."""
        return self._results.peak_bytes

    def empty(self, shape: tuple[int, ...], dtype: str) -> DryArray:
        """See `Backend.empty`."""
        self._results.take(math.prod(shape) * DTYPE_BYTES[dtype])
        return DryArray(tuple(shape), dtype)

    def submit(self, lane: str, steps: Sequence[LaneStep], after: Sequence[Ticket]) -> Ticket:
        """Counts the moves; work on the host is not done, but for operators, which are counted on the lane.

        `RuntimeError` once the port is closed.
        """
        if self._closed:
            raise RuntimeError(f"lane {lane} is closed")
        self.moved_bytes[lane] += sum(step.nbytes for step in steps if isinstance(step, Move))
        called = [self._called(step.call) if isinstance(step, HostWork) and step.operators else () for step in steps]
        return DryTicket.at_once(len(steps)) if self.timing is None else self.timing.submit(lane, steps, after, called)

    def _called(self, call: Callable[[], None]) -> list[tuple[Any, ...]]:
        """Count the operators that a lane calls; what of each is timed."""
        outer, self._recording = self._recording, DryRecording()
        try:
            call()
            found = list(self._recording)
        finally:
            self._recording = outer
        for operator, flops, _ in found:
            self.calls[operator] += 1
            self.flops[operator] += flops
        return [timed for _, _, timed in found]

    def mark(self) -> Ticket:
        """See `Backend.mark`."""
        return DryTicket.at_once(1) if self.timing is None else self.timing.mark()

    def wait(self, ticket: Ticket) -> None:
        """See `Backend.wait`."""
        if self.timing is not None:
            self.timing.wait(ticket)

    def close(self) -> None:
        """Nothing to end but the lanes' being open."""
        self._closed = True

    def gather(self, table: Any, ids: Any, first: int, out: Any) -> Any:
        """See `Backend.gather`."""
        self._count("gather", 0, "operator", "gather", gathered_bytes(table, ids, first, out))
        return out

    def add_rows(self, x: Any, table: Any, ids: Any) -> Any:
        """See `Backend.add_rows`."""
        self._count("add_rows", x.shape[0] * x.shape[1], "operator", "add_rows", nbytes_of(x))
        return x

    def linear(self, x: Any, w: Matrix, b: Any, *, out: Any = None, add: bool = False) -> Any:
        """See `Backend.linear`: 2 T O I FLOPs."""
        if x.shape[-1] != w.shape[1]:
            raise ValueError(f"linear: x {x.shape} does not match w {w.shape}")
        (tokens, inputs), outputs = x.shape, w.shape[0]
        self._count("linear", 2 * tokens * outputs * inputs, "linear", tokens, outputs, inputs, stored_as(w))
        return self.empty((x.shape[0], w.shape[0]), self.caps.compute_dtype) if out is None else out

    def expand(self, w: Matrix, out: Any) -> Any:
        """See `Backend.expand`: a product and a sum per element."""
        stored, elements = stored_as(w), w.shape[0] * w.shape[1]
        if stored == out.dtype:
            self._count("expand", 0, "operator", "assign", nbytes_of(out))
        else:
            self._count("expand", 2 * elements, "expand", elements, stored)
        return out

    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float, out: Any = None) -> Any:
        """See `Backend.layer_norm`: about eight operations per element."""
        self._count("layer_norm", 8 * x.shape[0] * x.shape[1], "operator", "layer_norm", nbytes_of(x))
        return self.empty(x.shape, self.caps.compute_dtype) if out is None else out

    def activate(self, x: Any, activation: str) -> Any:
        """See `Backend.activate`: counted as one operation per element."""
        self._count("activate", x.shape[0] * x.shape[1], "operator", "activate", nbytes_of(x))
        return x

    def cache_rows(
        self, records: Sequence[Any], layout: RecordLayout, prefixes: Sequence[Prefix | None] | None = None
    ) -> DryCaches:
        """See `Backend.cache_rows`."""
        return DryCaches(*sizes_of(records, prefixes), layout, records[0].tier if records else "device")

    def segments(self, past: Sequence[int], new: Sequence[int]) -> DrySegments:
        """See `Backend.segments`."""
        return DrySegments(tuple(zip(past, new, strict=True)))

    def append(self, rows: Any, segments: Any, k: Any, v: Any) -> None:
        """See `Backend.append`; records beyond a row's capacity raise as they do on every port."""
        record_bytes = rows.layout.record_bytes
        for shared, capacity, (past, new) in zip(rows.shared, rows.capacities, segments.lengths, strict=True):
            if (past + new - shared) * record_bytes > capacity:
                raise IndexError(f"{past + new - shared} records in a cache of {capacity} bytes")
            if past < shared:
                raise IndexError(f"a row of {past} tokens begins with {shared} of a prefix")
        where = rows.tier, rows.layout.scheme
        self._counted(lambda: ("append", 0, ("append", *where, segments.new * record_bytes)))

    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        """See `Backend.attend`: 4 E FLOPs per query and visible key."""
        layout, width = rows.layout, q.shape[1]
        sums = "attend_sums", (rows.tier, layout.scheme, layout.head_width), layout.heads, layout.record_bytes
        self._counted(lambda: ("attend", 4 * width * segments.pairs, (*sums, segments.decoding, segments.visible)))
        return out

    def sample(
        self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.int64]:
        """Token 0 for every row: no logits, no choice."""
        self._count("sample", logits.shape[0] * logits.shape[1], "operator", "sample", nbytes_of(logits))
        if self.timing is not None:
            self.timing.choose(logits.shape[0])
        return np.zeros(logits.shape[0], np.int64)
