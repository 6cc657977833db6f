"""Compiles the kernels that are asked for, each once, and starts them; what they compute is in their own texts."""

from ctypes import addressof, c_ulonglong, create_string_buffer, sizeof
from struct import Struct
from time import perf_counter
from typing import Any

from flexref.backend.compiling import CompileTime
from flexref_cupy.cuda import Cuda
from flexref_cupy.kernel_source import source
from flexref_cupy.variants import VARIANTS

_BUFFER_POINTER, _BUFFER_SIZE, _END = 1, 2, 0
"""Names of the entries of CUDA's launch list (CU_LAUNCH_PARAM_...)."""


class Kernel:
    """One compiled kernel; calling it starts it on the port's stream of operators."""

    __slots__ = ("_buffer", "_cuda", "_extra", "_extra_address", "_function", "_pack", "_size", "name")

    def __init__(self, cuda: Cuda, name: str, function: Any, packing: str) -> None:
        self.name, self._cuda, self._function = name, cuda, function
        form = Struct(packing)
        self._buffer = create_string_buffer(form.size)
        self._size = c_ulonglong(form.size)
        self._pack = form.pack_into
        entries = (_BUFFER_POINTER, addressof(self._buffer), _BUFFER_SIZE, addressof(self._size), _END)
        self._extra = (c_ulonglong * len(entries))(*entries)
        assert sizeof(self._extra) == 8 * len(entries)
        self._extra_address = addressof(self._extra)

    def __call__(self, grid: tuple[int, int, int], block: int, *arguments: float, shared_bytes: int = 0) -> None:
        """Start `grid` blocks of `block` threads; the arguments are copied before the call returns."""
        self._pack(self._buffer, 0, *arguments)
        self._cuda.launch(self._function, grid, block, shared_bytes, self._extra_address)


class Kernels:
    """Every kernel that was asked for, compiled once per set of macros."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda, self.compiling = cuda, CompileTime()
        self._found: dict[Any, Kernel] = {}
        self._modules: dict[Any, Any] = {}

    def get(self, operator: str, kernel: str, shared_bytes: int = 0, **macros: object) -> Kernel:
        """The kernel `kernel` of `kernels/<operator>.cu`; it may use up to `shared_bytes` of dynamic shared memory."""
        key = (operator, kernel, shared_bytes, *macros.items())
        found = self._found.get(key)
        if found is None:
            if macros not in VARIANTS[operator]:
                raise ValueError(f"{operator}.cu has no variant {macros}: see variants.py")
            text = source(operator, macros)
            module_key = (operator, text.macros)
            if module_key not in self._modules:
                start = perf_counter()
                self._modules[module_key] = self._cuda.load(self._cuda.compile(text))
                self.compiling.seconds += perf_counter() - start
            function = self._cuda.function(self._modules[module_key], kernel, shared_bytes)
            found = self._found[key] = Kernel(self._cuda, kernel, function, text.signatures[kernel])
        return found
