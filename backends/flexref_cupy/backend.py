"""The CuPy port: memory, lanes and operators by name; the arithmetic is in the kernels and in cuBLAS."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.backend.capabilities import Capabilities, Description
from flexref.backend.protocol import LANES, LaneStep, Matrix, Prefix, Ticket
from flexref.backend.records import RecordLayout
from flexref.backend.workspace import Workspace
from flexref.units import DTYPE_BYTES
from flexref_cupy import memory
from flexref_cupy.device import SCRATCH_BYTES, Device, check_runs
from flexref_cupy.driver.cuda import Cuda
from flexref_cupy.events import DeviceTicket, Events
from flexref_cupy.lanes import Lane, wait_on_device
from flexref_cupy.memory import Buffer, Copying, Tensor
from flexref_cupy.operators import on_host, pointwise, sampling
from flexref_cupy.operators.attention import Attention
from flexref_cupy.operators.on_host import HostRows, OnHost
from flexref_cupy.operators.products import FUSED_ROWS, Products
from flexref_cupy.pinning import PIECE_BYTES, Pinning
from flexref_cupy.recording import CALL_BYTES, GRAPH_BYTES, RECORDED_BYTES, Graphs, Recording
from flexref_cupy.rehearsal import Compiling, ImaginaryCuda

COMPUTE_DTYPE = "float16"


class CupyBackend:
    """One CUDA device: float16 storage, float32 sums, copies on streams of their own."""

    name = "cupy"

    def __init__(
        self,
        device: int = 0,
        fused_rows: int = FUSED_ROWS,
        cuda: Cuda | None = None,
        piece_bytes: int = PIECE_BYTES,
        attends_on_host: bool | None = None,
    ) -> None:
        """`fused_rows` as in `Capabilities`; `cuda` takes the place of CuPy's calls. Host memory is pinned in pieces of
        `piece_bytes`. `attends_on_host`: if not said, it does if numba is installed. Raises `BackendUnavailable`.
        """
        attends = on_host.is_possible() if attends_on_host is None else attends_on_host
        self.cuda = Cuda(device) if cuda is None else cuda
        self.caps = Capabilities(
            compute_dtype=COMPUTE_DTYPE,
            computes=True,
            overlaps_copies=True,
            attends_on_host=attends,
            scratch_bytes=SCRATCH_BYTES + RECORDED_BYTES,
            fused_rows=fused_rows,
            row_invariant=True,
            shares_prefixes=True,
            recorded_bytes=RECORDED_BYTES,
            recording_bytes=GRAPH_BYTES,
            recorded_call_bytes=CALL_BYTES,
            lacks_on_host="" if attends else on_host.INSTALL,
        )
        self.pinning = Pinning(self.cuda, piece_bytes, under_way=self._under_way)
        copying = Copying(self.cuda, self.pinning)
        self.device = Device(self.cuda, copying)
        self.compiling = Compiling(self.device.kernels, self.cuda.compiles_ahead, partial(_imagined, fused_rows))
        self._events = Events(self.cuda)
        self._lanes: dict[str, Lane] = {lane: Lane(lane, self._events, copying) for lane in LANES}
        self._closed = False
        self._workspace: Workspace | None = None
        self._results: Buffer | None = None
        self._products, self._attention = Products(self.device, fused_rows), Attention(self.device)
        self._graphs, self._on_host = Graphs(self.device), OnHost(self.pinning, self.compiling)
        self.keep_rows_apart(True)

    def describe(self) -> Description:
        """See `Backend.describe`."""
        return Description(self.cuda.devices(), self.cuda.versions())

    def keep_rows_apart(self, on: bool) -> None:
        """See `Backend.keep_rows_apart`: of products, and of attention with handles of lengths that are made later."""
        self._products.rows_apart = self._attention.rows_apart = on

    # Memory

    def free_bytes(self, tier: str) -> int:
        """See `Backend.free_bytes`; the port's own scratch, which the caller counts, is free to it.

        What was given out and is not present yet is not free, though the system says so.
        """
        if tier == "device":
            return self.cuda.memory()[0] + SCRATCH_BYTES
        return self.pinning.free_bytes()

    def allocate(self, tier: str, nbytes: int) -> Buffer:
        """See `Backend.allocate`; host memory is pinned beside what the caller does next."""
        return memory.device_buffer(self.cuda, nbytes) if tier == "device" else memory.host_buffer(self.pinning, nbytes)

    def release(self, buffer: Any) -> None:
        """See `Backend.release`."""
        if buffer.tier == "device":
            self.cuda.free(buffer.address)
        else:
            memory.release_host(self.pinning, buffer)

    def view(self, buffer: Any, offset: int, shape: tuple[int, ...], dtype: str) -> Tensor:
        """See `Backend.view`."""
        return memory.view(buffer, offset, shape, dtype)

    def host_memory(self, buffer: Any) -> npt.NDArray[np.uint8]:
        """See `Backend.host_memory`."""
        assert buffer.memory is not None
        return buffer.memory  # type: ignore[no-any-return]

    def upload(self, values: npt.NDArray[Any], out: Any = None) -> Tensor:
        """See `Backend.upload`."""
        target: Tensor = self.empty(values.shape, memory.name_of(values.dtype)) if out is None else out
        self.device.upload(values, target)
        return target

    def download(self, x: Any) -> npt.NDArray[Any]:
        """See `Backend.download`."""
        return self.device.download(x)

    def assign(self, target: Any, source: Any) -> None:
        """See `Backend.assign`."""
        self.device.assign(target, source)

    def workspace(self, buffer: Any) -> None:
        """See `Backend.workspace`."""
        self._workspace = None if buffer is None else Workspace(buffer.nbytes)
        self._results = buffer

    def frame(self) -> AbstractContextManager[None]:
        """See `Backend.frame`."""
        return nullcontext() if self._workspace is None else self._workspace.frame()

    def workspace_peak_bytes(self) -> int:
        """See `Backend.workspace_peak_bytes`; without a workspace nothing is counted."""
        return 0 if self._workspace is None else self._workspace.peak_bytes

    def empty(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        """See `Backend.empty`."""
        nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
        if self._workspace is None or self._results is None:
            check_runs(self.cuda, "a result that no workspace holds")
            fresh = memory.Fresh(self.cuda, nbytes)
            return Tensor(fresh.address, shape, dtype, shape[-1], owner=fresh)
        return Tensor(self._results.address + self._workspace.take(nbytes), shape, dtype, shape[-1])

    # Recordings

    def record(self, operators: Callable[[], None]) -> Recording:
        """See `RecordingBackend.record`."""
        return self._graphs.record(operators)

    def replay(self, recording: Recording) -> None:
        """See `RecordingBackend.replay`."""
        self._graphs.replay(recording)

    def forget(self, recording: Recording) -> None:
        """See `RecordingBackend.forget`."""
        self._graphs.forget(recording)

    def renew_rows(
        self, rows: Sequence[Any], records: Sequence[Any], prefixes: Sequence[Prefix | None] | None = None
    ) -> bool:
        """See `RecordingBackend.renew_rows`."""
        return self._attention.renew_rows(rows, records, prefixes)

    def renew_segments(self, segments: Any, past: Sequence[int], new: Sequence[int]) -> bool:
        """See `RecordingBackend.renew_segments`."""
        return self._attention.renew_segments(segments, past, new)

    # Lanes

    def submit(self, lane: str, steps: Sequence[LaneStep], after: Sequence[Ticket]) -> Ticket:
        """See `Backend.submit`."""
        return self._lanes[lane].submit(steps, after)

    def mark(self) -> Ticket:
        """See `Backend.mark`."""
        end = self._events.take()
        self.cuda.record(end, self.cuda.compute_stream)
        return DeviceTicket(self._events, None, end, (1,))

    def _under_way(self) -> list[Ticket]:
        """Tickets of all that the device has been given to do."""
        queued = [lane.queued for lane in self._lanes.values()]
        return [self.mark(), *(ticket for ticket in queued if ticket is not None)]

    def wait(self, ticket: Ticket) -> None:
        """See `Backend.wait`; blocks the host only as long as a lane's thread has work before the copies."""
        wait_on_device(self.cuda, self.cuda.compute_stream, ticket)

    def close(self) -> None:
        """See `Backend.close`; streams and events are given back too."""
        if self._closed:
            return
        self._closed = True
        for lane in self._lanes.values():
            lane.close()
        self.pinning.close()
        self._graphs.close()
        self._on_host.close()
        self.device.close()
        self._events.close()
        self.cuda.close()

    # Operators

    def gather(self, table: Any, ids: Any, first: int, out: Any) -> Tensor:
        """See `Backend.gather`."""
        pointwise.gather(self.device, table, ids, first, out)
        return out  # type: ignore[no-any-return]

    def add_rows(self, x: Any, table: Any, ids: Any) -> Tensor:
        """See `Backend.add_rows`."""
        pointwise.add_rows(self.device, x, table, ids)
        return x  # type: ignore[no-any-return]

    def linear(self, x: Any, w: Matrix, b: Any, *, out: Any = None, add: bool = False) -> Tensor:
        """See `Backend.linear`."""
        target: Tensor = self.empty((x.shape[0], w.shape[0]), COMPUTE_DTYPE) if out is None else out
        self._products.linear(x, w, b, target, add)
        return target

    def expand(self, w: Matrix, out: Any) -> Tensor:
        """See `Backend.expand`."""
        self._products.expand(w, out)
        return out  # type: ignore[no-any-return]

    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float, out: Any = None) -> Tensor:
        """See `Backend.layer_norm`."""
        target: Tensor = self.empty(x.shape, COMPUTE_DTYPE) if out is None else out
        pointwise.layer_norm(self.device, x, w, b, epsilon, target)
        return target

    def activate(self, x: Any, activation: str) -> Tensor:
        """See `Backend.activate`."""
        pointwise.activate(self.device, x, activation)
        return x  # type: ignore[no-any-return]

    def cache_rows(
        self, records: Sequence[Any], layout: RecordLayout, prefixes: Sequence[Prefix | None] | None = None
    ) -> Any:
        """See `Backend.cache_rows`; of records on the host the operators run there."""
        if self.caps.attends_on_host and records and self._on_host.holds(records[0]):
            return self._on_host.cache_rows(records, layout, prefixes)
        return self._attention.cache_rows(records, layout, prefixes)

    def segments(self, past: Sequence[int], new: Sequence[int]) -> Any:
        """See `Backend.segments`."""
        return self._attention.segments(past, new)

    def append(self, rows: Any, segments: Any, k: Any, v: Any) -> None:
        """See `Backend.append`."""
        if isinstance(rows, HostRows):
            self._arrive_on_host()
            self._on_host.append(rows, segments.on_host, k, v)
            return
        self._attention.append(rows, segments, k, v)

    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Tensor:
        """See `Backend.attend`."""
        if isinstance(rows, HostRows):
            self._arrive_on_host()
            self._on_host.attend(rows, segments.on_host, q, scale, out)
            return out  # type: ignore[no-any-return]
        self._attention.attend(rows, segments, q, scale, out)
        return out  # type: ignore[no-any-return]

    def _arrive_on_host(self) -> None:
        """The host has what operators made that were called before; a lane's own thread has waited for all it reads."""
        check_runs(self.cuda, "attention on the host")
        if not any(lane.is_here for lane in self._lanes.values()):
            self.cuda.await_stream(self.cuda.compute_stream)

    def sample(
        self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.int64]:
        """See `Backend.sample`."""
        return sampling.sample(self.device, logits, temperature, top_k, top_p, uniforms)

    def sample_ahead(
        self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: npt.NDArray[np.float64], out: Any
    ) -> Callable[[], npt.NDArray[np.int64]]:
        """See `RecordingBackend.sample_ahead`."""
        check_runs(self.cuda, "a download")
        sampling.start(self.device, logits, temperature, top_k, top_p, uniforms, out)
        return partial(sampling.known_after, self.device, self.mark(), out)


def _imagined(fused_rows: int, cuda: ImaginaryCuda) -> CupyBackend:
    """The port on a device that is not there."""
    return CupyBackend(fused_rows=fused_rows, cuda=cuda)  # type: ignore[arg-type]
