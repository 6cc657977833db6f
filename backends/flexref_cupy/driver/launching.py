"""Compiles kernels, each once, when they are asked for or before, and starts them; it knows not what they compute."""

import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from ctypes import addressof, c_ulonglong, create_string_buffer, sizeof
from struct import Struct
from time import perf_counter
from typing import Any

from flexref.backend.compiling import CompileTime
from flexref_cupy.driver.cuda import Cuda
from flexref_cupy.driver.kernel_source import Source, source
from flexref_cupy.driver.variants import VARIANTS

_BUFFER_POINTER, _BUFFER_SIZE, _END = 1, 2, 0
"""Names of the entries of CUDA's launch list (CU_LAUNCH_PARAM_...)."""

MOST_THREADS = 16
"""Bounds those that compile: each takes some hundred MB meanwhile, and a model needs some twenty texts."""


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
        """Start `grid` blocks of `block` threads, unless muted; the arguments are copied before the call returns."""
        if self._cuda.muted:
            return
        self._pack(self._buffer, 0, *arguments)
        self._cuda.launch(self._function, grid, block, shared_bytes, self._extra_address)


class Kernels:
    """Every kernel that was asked for, compiled once per set of macros."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.compiling = cuda, CompileTime()
        self._found: dict[Any, Kernel] = {}
        self._modules: dict[Any, Any] = {}
        self._shared_bytes: dict[Any, int] = {}
        """The most that each kernel was asked for with: a kernel of a program is one, and may use what is said last."""
        self._prepared: dict[Any, Future[Any]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def get(self, operator: str, kernel: str, shared_bytes: int = 0, **macros: object) -> Kernel:
        """The kernel `kernel` of `kernels/<operator>.cu`; it may use up to `shared_bytes` of dynamic shared memory."""
        key = (operator, kernel, shared_bytes, *macros.items())
        found = self._found.get(key)
        if found is None:
            if self.cuda.capturing:
                raise RuntimeError(f"{kernel} is asked for the first time while operators are recorded")
            if macros not in VARIANTS[operator]:
                raise ValueError(f"{operator}.cu has no variant {macros}: see variants.py")
            text = source(operator, macros)
            one = kernel, _module_key(text)
            most = self._shared_bytes[one] = max(shared_bytes, self._shared_bytes.get(one, 0))
            function = self.cuda.function(self._module(text), kernel, most)
            found = self._found[key] = Kernel(self.cuda, kernel, function, text.signatures[kernel])
        return found

    def prepare(self, texts: Iterable[Source]) -> None:
        """Begin to compile what is not compiled yet, the first ones first; who gets a kernel waits for its text alone.

        What the compiler says of a text is raised then, too.
        """
        for text in texts:
            key = _module_key(text)
            if key in self._modules or key in self._prepared:
                continue
            if self._pool is None:
                threads = min(MOST_THREADS, len(os.sched_getaffinity(0)))
                self._pool = ThreadPoolExecutor(threads, "flexref compiles")
            self._prepared[key] = self._pool.submit(self.cuda.compile, text)

    def settle(self) -> None:
        """Wait until all has been compiled that was begun; who gets a kernel is told what the compiler said."""
        wait(list(self._prepared.values()))

    def close(self) -> None:
        """Compile no more; what is being compiled is waited for."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _module(self, text: Source) -> Any:
        key = _module_key(text)
        if key not in self._modules:
            start = perf_counter()
            prepared = self._prepared.pop(key, None)
            program = self.cuda.compile(text) if prepared is None else prepared.result()
            self._modules[key] = self.cuda.load(program)
            self.compiling.seconds += perf_counter() - start
        return self._modules[key]


def _module_key(text: Source) -> tuple[str, tuple[tuple[str, str], ...]]:
    return text.operator, text.macros
