"""The CUDA calls that the port makes, one method each: the only module that imports CuPy, and of it two modules alone.

`import cupy` itself takes seconds: arrays, random numbers, Fourier transforms, libraries of all of them.
"""

import contextlib
import ctypes
from typing import Any

from flexref.errors import BackendUnavailable, CapacityError
from flexref_cupy.driver.compiler import Compiler, Nvrtc
from flexref_cupy.driver.cublas import Cublas, check_status
from flexref_cupy.driver.cublas_lt import CublasLt
from flexref_cupy.driver.early_launch import Grid, launches
from flexref_cupy.driver.installation import INSTALL, check_driver, cupy_version, first_line
from flexref_cupy.driver.kernel_source import Source
from flexref_cupy.starting import DRIVER

Handle = int
"""A stream, an event, a module, a function: what CUDA gives out, as an integer."""

OLDEST_CAPABILITY = (7, 5)
"""Tensor cores as the kernels use them came with Turing, the T4's architecture."""

COPY_ANY_WAY = 4
"""cudaMemcpyDefault: the direction follows from the addresses."""

OUT_OF_MEMORY = 2
"""cudaErrorMemoryAllocation."""

CAPTURE_RELAXED = 2
"""cudaStreamCaptureModeRelaxed: other threads and streams go on as if nothing were captured (see `recording`)."""


class Cuda:
    """One device. All copies and launches are asynchronous; whoever needs their end waits for an event."""

    compiles_ahead = True
    """Kernels that a job may need are compiled beside all else, before it asks for them."""

    def __init__(self, number: int = 0) -> None:
        """`BackendUnavailable` in one line, if there is no CuPy, driver or device, or one that is too old."""
        self._runtime, self._driver = _libraries()
        runtime = self._runtime
        check_driver(runtime)
        try:
            count = runtime.getDeviceCount()
            if number >= count:
                raise BackendUnavailable(f"device {number} was asked for, {count} CUDA devices are here")
            runtime.setDevice(number)
            properties = runtime.getDeviceProperties(number)
            self.capability = (int(properties["major"]), int(properties["minor"]))
            runtime.free(0)  # makes the context now, so that its memory is not mistaken for free
            _load_driver(self._driver)
        except runtime.CUDARuntimeError as error:
            raise BackendUnavailable(f"the CUDA device cannot be used ({error}); nvidia-smi says more") from error
        self.number = number
        self.name = _device_name(properties)
        self.multiprocessors = int(properties["multiProcessorCount"])
        if self.capability < OLDEST_CAPABILITY:
            found, needed = (".".join(map(str, which)) for which in (self.capability, OLDEST_CAPABILITY))
            raise BackendUnavailable(f"{self.name} has compute capability {found}, needed {needed} or later")
        self._nvrtc = Nvrtc()
        self._compiler = Compiler(self.capability, self._nvrtc)
        self._modules: list[Handle] = []
        self.compute_stream = self.stream()
        self._launches = launches(self._driver, self.capability, self.compute_stream)
        self.capturing = self.muted = False
        self._products, self._apart = Cublas(self.compute_stream), CublasLt(self.compute_stream)

    # Memory

    def memory(self) -> tuple[int, int]:
        """(free, all) bytes of the device."""
        free, total = self._runtime.memGetInfo()
        return int(free), int(total)

    def allocate(self, nbytes: int) -> int:
        """The address of `nbytes` on the device; `CapacityError` if it has no such piece."""
        try:
            return int(self._runtime.malloc(nbytes))
        except self._runtime.CUDARuntimeError as error:
            raise self._no_room("CUDA", nbytes, error) from error

    def _no_room(self, what: str, nbytes: int, error: Exception) -> CapacityError:
        return CapacityError("device", what, nbytes, self.memory()[0], {}, first_line(error))

    def free(self, address: int) -> None:
        """Give device memory back, when nothing uses it any more."""
        self._runtime.free(address)

    def pin(self, address: int, nbytes: int) -> None:
        """Lock host memory in place, so that copies run beside the host; `CapacityError` if the system refuses."""
        try:
            self._runtime.hostRegister(address, nbytes, 0)
        except self._runtime.CUDARuntimeError as error:
            raise refused(nbytes, first_line(error)) from error

    def unpin(self, address: int) -> None:
        """Undo `pin`."""
        self._runtime.hostUnregister(address)

    def copy(self, target: int, source: int, nbytes: int, stream: Handle) -> None:
        """Copy bytes in any direction, in order with the stream."""
        self._runtime.memcpyAsync(target, source, nbytes, COPY_ANY_WAY, stream)

    def copy_rows(
        self, target: tuple[int, int], source: tuple[int, int], nbytes: int, rows: int, stream: Handle
    ) -> None:
        """Copy `rows` pieces of `nbytes`; `target` and `source` are the first one's address and the stride in bytes."""
        self._runtime.memcpy2DAsync(*target, *source, nbytes, rows, COPY_ANY_WAY, stream)

    # Streams and events

    def stream(self) -> Handle:
        """A stream of its own, that waits for no other one."""
        return int(self._runtime.streamCreateWithFlags(self._runtime.streamNonBlocking))

    def destroy_stream(self, stream: Handle) -> None:
        """Give a stream back, which has nothing to do any more."""
        self._runtime.streamDestroy(stream)

    def destroy_event(self, event: Handle) -> None:
        """Give an event back; what waits for it on the device goes on waiting."""
        self._runtime.eventDestroy(event)

    def close(self) -> None:
        """Give the stream of operators back, and cuBLAS and all kernels with it; memory can still be given back."""
        self._products.close()
        self._apart.close()
        self.destroy_stream(self.compute_stream)
        while self._modules:
            self._driver.moduleUnload(self._modules.pop())

    def event(self) -> Handle:
        """An event that knows its time."""
        return int(self._runtime.eventCreateWithFlags(self._runtime.eventDefault))

    def record(self, event: Handle, stream: Handle) -> None:
        """The event happens when the stream has done all that it was given so far."""
        self._runtime.eventRecord(event, stream)

    def let_wait(self, stream: Handle, event: Handle) -> None:
        """What the stream is given from now on starts after the event."""
        self._runtime.streamWaitEvent(stream, event)

    def happened(self, event: Handle) -> bool:
        """Whether a recorded event is over."""
        return bool(self._runtime.eventQuery(event) == 0)

    def await_event(self, event: Handle) -> None:
        """Block the calling thread until a recorded event is over; raises what failed on the device before it."""
        self._runtime.eventSynchronize(event)

    def seconds_between(self, first: Handle, second: Handle) -> float:
        """Seconds from one event to another, both over."""
        return float(self._runtime.eventElapsedTime(first, second)) / 1e3

    def await_stream(self, stream: Handle) -> None:
        """Block the calling thread until the stream has done everything."""
        self._runtime.streamSynchronize(stream)

    def join_thread(self) -> None:
        """Let the calling thread use the device; every thread calls it once."""
        self._runtime.setDevice(self.number)

    # What all of it is

    def devices(self) -> tuple[str, ...]:
        """The devices of this machine: names, and bytes of memory."""
        every = [self._runtime.getDeviceProperties(number) for number in range(self._runtime.getDeviceCount())]
        return tuple(f"{_device_name(device)}, {device['totalGlobalMem']} bytes" for device in every)

    def versions(self) -> dict[str, str]:
        """Versions by name: CuPy, the CUDA that it uses, the CUDA that the driver knows, the compiler of kernels."""
        numbers = {"cuda": self._runtime.runtimeGetVersion(), "driver_cuda": self._runtime.driverGetVersion()}
        found = {name: f"{number // 1000}.{number % 1000 // 10}" for name, number in numbers.items()}
        return {"cupy": cupy_version(), **found, "nvrtc": self._nvrtc.number}

    # Kernels and products

    def compile(self, text: Source) -> bytes:
        """A program of the device's own code, as it was kept or compiled now; any thread may ask for one."""
        return self._compiler.program(text)

    def load(self, program: bytes) -> Handle:
        """A module on the device of what `compile` gave."""
        module = int(self._driver.moduleLoadData(program))
        self._modules.append(module)
        return module

    def function(self, module: Handle, name: str, shared_bytes: int) -> Handle:
        """A kernel of a module that may use so much dynamic shared memory."""
        function = int(self._driver.moduleGetFunction(module, name))
        if shared_bytes:
            most = self._driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._driver.funcSetAttribute(function, most, shared_bytes)
        return function

    def launch(self, function: Handle, grid: Grid, block: int, shared_bytes: int, arguments: int) -> None:
        """Start a kernel on the stream of operators; `arguments` is the address of CUDA's launch list."""
        self._launches[self.capturing](function, grid, block, shared_bytes, arguments)

    def begin_capture(self) -> None:
        """What the stream of operators is given from now on is captured and does not run."""
        self._runtime.streamBeginCapture(self.compute_stream, CAPTURE_RELAXED)
        self.capturing = True

    def end_capture(self) -> tuple[Handle, int]:
        """The graph of what was captured, which holds nothing on the device, and how many nodes it has."""
        self.capturing = False
        graph, count = int(self._runtime.streamEndCapture(self.compute_stream)), ctypes.c_size_t()
        status = ctypes.CDLL(DRIVER).cuGraphGetNodes(ctypes.c_void_p(graph), None, ctypes.byref(count))
        check_status("cuGraphGetNodes", status)
        return graph, count.value

    def abandon_capture(self) -> None:
        """End a capture in which something has failed, which says more than CUDA could say of the capture."""
        self.capturing = False
        with contextlib.suppress(self._runtime.CUDARuntimeError):
            self._runtime.graphDestroy(self._runtime.streamEndCapture(self.compute_stream))

    def instantiate(self, graph: Handle) -> Handle:
        """The graph as the device runs it; `CapacityError` if the device has no memory for that."""
        try:
            return int(self._runtime.graphInstantiate(graph))
        except self._runtime.CUDARuntimeError as error:
            raise self._no_room("a recording", 0, error) from error

    def launch_graph(self, executable: Handle) -> None:
        """Run what was captured, in order with the stream of operators; `CapacityError` as in `instantiate`."""
        try:
            self._runtime.graphLaunch(executable, self.compute_stream)
        except self._runtime.CUDARuntimeError as error:
            if error.status != OUT_OF_MEMORY:
                raise
            raise self._no_room("a recording", 0, error) from error

    def destroy_graph(self, graph: Handle) -> None:
        """Give a graph back."""
        self._runtime.graphDestroy(graph)

    def destroy_executable(self, executable: Handle) -> None:
        """Give back what `instantiate` made; if it runs just now, it runs to its end."""
        self._runtime.graphExecDestroy(executable)

    def products_in(self, address: int, nbytes: int) -> None:
        """Let cuBLAS work in this memory instead of its own, so that it is counted."""
        self._products.work_in(address, nbytes)

    def multiply(
        self, shape: tuple[int, int, int], x: tuple[int, int], w: tuple[int, int], out: tuple[int, int, str], add: bool
    ) -> None:
        """out (T, O) = x (T, I) w (O, I)^T, or is added to, in float32 sums; `shape` is (T, O, I).

        Operands are (address, pitch in elements), float16; `out` has its type too.
        """
        if not self.muted:
            self._products.multiply(shape, x, w, out, add)

    def multiply_apart(
        self, shape: tuple[int, int, int], x: tuple[int, int], w: tuple[int, int], out: tuple[int, int, str], add: bool
    ) -> None:
        """See `multiply`; but a row of `out` has the same bits for every T, wherever it stands."""
        if not self.muted:
            self._apart.multiply(shape, x, w, out, add)


def refused(nbytes: int, why: str) -> CapacityError:
    """That so much host memory cannot be pinned, and what would help."""
    hint = f"pinned memory was refused ({why}): lower --host-mem-gib, or raise `ulimit -l`"
    return CapacityError("host", "pinned memory", nbytes, 0, {}, hint)


def _libraries() -> tuple[Any, Any]:
    """CUDA's runtime and driver as CuPy gives them."""
    try:
        from cupy_backends.cuda.api import driver, runtime  # noqa: PLC0415 - absent on most machines
    except ImportError as error:
        raise BackendUnavailable(f"CuPy cannot be imported ({first_line(error)}): {INSTALL}") from error
    return runtime, driver


def _load_driver(driver: Any) -> None:
    """Call the driver for the first time, which loads its library: CuPy would import all of itself to print so, for
    whoever sets a variable of it.
    """
    from cupy_backends.cuda import _softlink  # noqa: PLC0415

    tell, _softlink._log = _softlink._log, lambda text: None
    try:
        driver.ctxGetCurrent()
    finally:
        _softlink._log = tell


def _device_name(properties: Any) -> str:
    return bytes(properties["name"]).split(b"\0")[0].decode()
