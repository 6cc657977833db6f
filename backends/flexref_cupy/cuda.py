"""The CUDA calls that the port makes, one method each, through CuPy: the only module that imports it."""

import ctypes
from typing import Any

from flexref.errors import BackendUnavailable, CapacityError
from flexref_cupy.kernel_source import Source

Handle = int
"""A stream, an event, a function: what CUDA gives out, as an integer."""

DRIVER_NEEDED = {12: "525", 13: "580"}
"""The oldest Linux driver that runs programs of a CUDA major version (NVIDIA, *CUDA Compatibility*, table 1)."""

INSTALL = "pip install 'flexref[cuda13]' (driver 580 or later) or 'flexref[cuda12]' (driver 525 or later)"

OLDEST_CAPABILITY = (7, 5)
"""Tensor cores as the kernels use them came with Turing, the T4's architecture."""

COPY_ANY_WAY = 4
"""cudaMemcpyDefault: the direction follows from the addresses."""

_TRANSPOSED, _AS_IT_IS = 1, 0
_FLOAT32, _FLOAT16 = 0, 2
_COMPUTE_FLOAT32 = 68
_ALGORITHM_DEFAULT = 99
_FULL_PRECISION_REDUCTION = 16
"""Names of cuBLAS: CUBLAS_OP_T and _N, CUDA_R_32F and _16F, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT_TENSOR_OP,
CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION."""

_TYPES = {"float32": _FLOAT32, "float16": _FLOAT16}


class Cuda:
    """One device. All copies and launches are asynchronous; whoever needs their end waits for an event."""

    def __init__(self, number: int = 0) -> None:
        """`BackendUnavailable` in one line, if there is no CuPy, driver or device, or one that is too old."""
        self._runtime, self._driver, self._cupy = _libraries()
        runtime = self._runtime
        _check_driver(runtime)
        try:
            count = runtime.getDeviceCount()
            if number >= count:
                raise BackendUnavailable(f"device {number} was asked for, {count} CUDA devices are here")
            runtime.setDevice(number)
            properties = runtime.getDeviceProperties(number)
            self.capability = (int(properties["major"]), int(properties["minor"]))
            runtime.free(0)  # makes the context now, so that its memory is not mistaken for free
        except runtime.CUDARuntimeError as error:
            raise BackendUnavailable(f"the CUDA device cannot be used ({error}); nvidia-smi says more") from error
        self.number = number
        self.name = bytes(properties["name"]).split(b"\0")[0].decode()
        self.multiprocessors = int(properties["multiProcessorCount"])
        if self.capability < OLDEST_CAPABILITY:
            found, needed = (".".join(map(str, which)) for which in (self.capability, OLDEST_CAPABILITY))
            raise BackendUnavailable(f"{self.name} has compute capability {found}, needed {needed} or later")
        self.compute_stream = self.stream()
        self._products = _Products(self.compute_stream)

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
            raise CapacityError("device", "CUDA", nbytes, self.memory()[0], {}, _first_line(error)) from error

    def free(self, address: int) -> None:
        """Give device memory back, when nothing uses it any more."""
        self._runtime.free(address)

    def pin(self, address: int, nbytes: int) -> None:
        """Lock host memory in place, so that copies run beside the host; `CapacityError` if the system refuses."""
        try:
            self._runtime.hostRegister(address, nbytes, 0)
        except self._runtime.CUDARuntimeError as error:
            hint = f"pinned memory was refused ({_first_line(error)}): lower --host-mem-gib, or raise `ulimit -l`"
            raise CapacityError("host", "pinned memory", nbytes, 0, {}, hint) from error

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
        """Give the stream of operators back, and cuBLAS with it; memory can still be given back."""
        self._products.close()
        self.destroy_stream(self.compute_stream)

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

    # Kernels and products

    def compile(self, text: Source) -> Any:
        """A module of the device's own code; CuPy keeps what it compiled on disk."""
        module = self._cupy.RawModule(code=text.text, options=text.options, backend="nvrtc")
        module.compile()
        return module

    def function(self, module: Any, name: str, shared_bytes: int) -> Any:
        """A kernel of a module that may use so much dynamic shared memory."""
        function = module.get_function(name)
        if shared_bytes:
            function.max_dynamic_shared_size_bytes = shared_bytes
        return function.kernel.ptr

    def launch(self, function: Any, grid: tuple[int, int, int], block: int, shared_bytes: int, arguments: int) -> None:
        """Start a kernel on the stream of operators; `arguments` is the address of CUDA's launch list."""
        self._driver.launchKernel(function, *grid, block, 1, 1, shared_bytes, self.compute_stream, 0, arguments)

    def products_in(self, address: int, nbytes: int) -> None:
        """Let cuBLAS work in this memory instead of its own, so that it is counted."""
        self._products.work_in(address, nbytes)

    def multiply(
        self,
        shape: tuple[int, int, int],
        x: tuple[int, int],
        w: tuple[int, int],
        out: tuple[int, int, str],
        add: bool,
    ) -> None:
        """out (T, O) = x (T, I) w (O, I)^T, or is added to, in float32 sums; `shape` is (T, O, I).

        Operands are (address, pitch in elements), float16; `out` has its type too.
        """
        self._products.multiply(shape, x, w, out, add)


class _Products:
    """cuBLAS on one stream, asked directly.

    CuPy's own calls set the stream to CuPy's current one each time, which also takes cuBLAS' workspace away.
    """

    def __init__(self, stream: Handle) -> None:
        library = _cublas()
        self._multiply = library.cublasGemmEx
        number, address = ctypes.c_int, ctypes.c_void_p
        operand = (address, number, number)
        self._multiply.argtypes = (
            *(address, number, number, number, number, number),
            *(address, *operand, *operand, address, *operand, number, number),
        )
        self._set_workspace = library.cublasSetWorkspace_v2
        self._set_workspace.argtypes = (address, address, ctypes.c_size_t)
        handle = ctypes.c_void_p()
        _check_cublas("cublasCreate", library.cublasCreate_v2(ctypes.byref(handle)))
        _check_cublas("cublasSetStream", library.cublasSetStream_v2(handle, ctypes.c_void_p(stream)))
        # Products that are cut along their inputs are to be added up in float32 too, whatever type the result has.
        mode = library.cublasSetMathMode(handle, _FULL_PRECISION_REDUCTION)
        _check_cublas("cublasSetMathMode", mode)
        self._handle = handle.value
        self._destroy = library.cublasDestroy_v2
        self._destroy.argtypes = (address,)
        # The factors 0 and 1 of BLAS, which lie on the host.
        self._factors = (ctypes.c_float * 2)(0.0, 1.0)
        self._zero = ctypes.addressof(self._factors)
        self._one = self._zero + ctypes.sizeof(ctypes.c_float)

    def close(self) -> None:
        """Give cuBLAS' own memory back."""
        _check_cublas("cublasDestroy", self._destroy(self._handle))

    def work_in(self, address: int, nbytes: int) -> None:
        """See `Cuda.products_in`."""
        _check_cublas("cublasSetWorkspace", self._set_workspace(self._handle, address, nbytes))

    def multiply(
        self,
        shape: tuple[int, int, int],
        x: tuple[int, int],
        w: tuple[int, int],
        out: tuple[int, int, str],
        add: bool,
    ) -> None:
        """See `Cuda.multiply`: rows of ours are columns of BLAS, so out^T = w x^T."""
        tokens, outputs, inputs = shape
        status = self._multiply(
            *(self._handle, _TRANSPOSED, _AS_IT_IS, outputs, tokens, inputs),
            *(self._one, w[0], _FLOAT16, w[1], x[0], _FLOAT16, x[1]),
            *(self._one if add else self._zero, out[0], _TYPES[out[2]], out[1]),
            *(_COMPUTE_FLOAT32, _ALGORITHM_DEFAULT),
        )
        if status:
            _check_cublas(f"cublasGemmEx of {shape}", status)


def _cublas() -> ctypes.CDLL:
    """The cuBLAS of CuPy's CUDA."""
    from cuda import pathfinder  # noqa: PLC0415 - comes with CuPy

    try:
        path = pathfinder.load_nvidia_dynamic_lib("cublas").abs_path
    except pathfinder.DynamicLibNotFoundError as error:
        raise BackendUnavailable(f"cuBLAS is not installed ({_first_line(error)}): {INSTALL}") from error
    return ctypes.CDLL(str(path))


def _check_cublas(call: str, status: int) -> None:
    if status:
        raise RuntimeError(f"{call} gives status {status}")


def _libraries() -> tuple[Any, Any, Any]:
    """CUDA's runtime and driver as CuPy gives them, and CuPy."""
    try:
        import cupy  # noqa: PLC0415 - absent on most machines, and slow to load on the others
        from cupy_backends.cuda.api import driver, runtime  # noqa: PLC0415
    except ImportError as error:
        raise BackendUnavailable(f"CuPy cannot be imported ({_first_line(error)}): {INSTALL}") from error
    return runtime, driver, cupy


def _check_driver(runtime: Any) -> None:
    """`BackendUnavailable` if there is no NVIDIA driver, or one older than the CUDA that CuPy was made for."""
    try:
        driver, needed = int(runtime.driverGetVersion()), int(runtime.runtimeGetVersion())
    except runtime.CUDARuntimeError as error:
        raise BackendUnavailable(f"CUDA does not answer ({_first_line(error)})") from error
    major = needed // 1000
    if driver == 0:
        raise BackendUnavailable("no NVIDIA driver is loaded here; nvidia-smi would list its devices")
    if driver // 1000 < major:
        raise BackendUnavailable(
            f"the NVIDIA driver knows CUDA {driver // 1000}.{driver % 1000 // 10} at most, CuPy needs CUDA {major} "
            f"(driver {DRIVER_NEEDED.get(major, 'of that time')} or later); else {INSTALL}"
        )


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
