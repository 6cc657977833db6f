"""Operators that are recorded once and replayed, as CUDA graphs; it knows no operator.

While operators are recorded, the stream of operators captures what it is given. The capture is CUDA's relaxed one:
other threads queue copies, pin memory and load modules meanwhile, and a garbage collection may free memory on this one,
none of which has to do with the recording. What must not be in it is refused by the port itself (`device.check_runs`).
"""

from collections.abc import Callable

from flexref_cupy.device import Device
from flexref_cupy.operators.attention import CacheRows
from flexref_cupy.operators.segments import Segments

NODE_BYTES, GRAPH_BYTES = 8 << 10, 64 << 10
"""Bound what a graph holds on the device: so much for every launch or copy, and so much for itself."""

CALL_BYTES = 2 * NODE_BYTES
"""What an operator counts for in a prediction: it has 1.4 launches on average in a layer of float16 weights, and 1.9 in
one of 4-bit ones."""

RECORDED_BYTES = 64 << 20
"""What recordings may hold all together."""


class Recording:
    """What was recorded. Before its first replay it holds nothing on the device, after that at most `nbytes`."""

    __slots__ = ("executable", "graph", "handles", "nbytes")

    def __init__(self, graph: int, nodes: int, handles: list[CacheRows | Segments]) -> None:
        """`handles`: what its kernels read lies where it is now, and stays there as long as the recording."""
        self.graph, self.handles, self.executable = graph, handles, 0
        self.nbytes = GRAPH_BYTES + nodes * NODE_BYTES


class Graphs:
    """The recordings of one device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._alive: set[Recording] = set()

    def record(self, operators: Callable[[], None]) -> Recording:
        """See `RecordingBackend.record`.

        Of small arrays recordings may keep half in their places: one more is as if it were too large for the rest.

        Before they are captured, operators are called with nothing started by it: what they load or upload when they
        are called first is there then. `CapacityError` if small arrays find no place.
        """
        cuda = self._device.cuda
        handles = self._device.begin_recording()
        try:
            cuda.muted = True
            operators()
            cuda.muted = False
            cuda.begin_capture()
            operators()
            graph, nodes = cuda.end_capture()
        except BaseException:
            if cuda.capturing:
                cuda.abandon_capture()
            _let_go(handles)
            raise
        finally:
            cuda.muted = False
            self._device.end_recording()
        recording = Recording(graph, nodes, handles)
        self._alive.add(recording)
        if self._kept_bytes() > self._device.small_bytes // 2:
            recording.nbytes += RECORDED_BYTES
        return recording

    def _kept_bytes(self) -> int:
        """Bytes of small arrays that stay where they are for recordings: layers share them."""
        return sum({each.small.address: each.small.nbytes for one in self._alive for each in one.handles}.values())

    def replay(self, recording: Recording) -> None:
        """See `RecordingBackend.replay`; `CapacityError` if the device has no memory for it."""
        if recording not in self._alive:
            raise RuntimeError("a recording is replayed that was given back")
        cuda = self._device.cuda
        if not recording.executable:
            recording.executable = cuda.instantiate(recording.graph)
            cuda.destroy_graph(recording.graph)
        cuda.launch_graph(recording.executable)

    def forget(self, recording: Recording) -> None:
        """See `RecordingBackend.forget`; what still runs comes to its end."""
        self._alive.remove(recording)
        if recording.executable:
            self._device.cuda.destroy_executable(recording.executable)
        else:
            self._device.cuda.destroy_graph(recording.graph)
        _let_go(recording.handles)

    def close(self) -> None:
        """Give back what nobody gave back."""
        for recording in tuple(self._alive):
            self.forget(recording)


def _let_go(handles: list[CacheRows | Segments]) -> None:
    """What the handles have on the device may leave its place."""
    for handle in handles:
        handle.recordings -= 1
    handles.clear()
