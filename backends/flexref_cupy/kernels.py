"""The kernels' texts and their launches: a kernel is `kernels/<operator>.cu` with some macros; it knows no device.

A kernel's arguments are all 8 bytes wide, so that packing them is one call and never a matter of alignment:
pointers and integers as `long long`, other numbers as `double`.
"""

import re
from collections.abc import Mapping
from ctypes import addressof, c_ulonglong, create_string_buffer, sizeof
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from struct import Struct
from typing import TYPE_CHECKING, Any

from flexref_cupy.variants import VARIANTS

if TYPE_CHECKING:
    from flexref_cupy.cuda import Cuda

COMPILE_OPTIONS = ("--std=c++17", "-default-device")
"""No fast mathematics: divisions, roots and subnormal numbers are as the standard has them."""

_SIGNATURE = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\s*\(([^)]*)\)')

_BUFFER_POINTER, _BUFFER_SIZE, _END = 1, 2, 0
"""Names of the entries of CUDA's launch list (CU_LAUNCH_PARAM_...)."""


@dataclass(frozen=True, slots=True)
class Source:
    """One translation unit: the whole text, and for every kernel in it the types of its arguments."""

    operator: str
    text: str
    macros: tuple[tuple[str, str], ...]
    signatures: Mapping[str, str]

    @property
    def options(self) -> tuple[str, ...]:
        """What the compiler is told beside the architecture."""
        return (*COMPILE_OPTIONS, *(f"-D{name}={value}" for name, value in self.macros))


@cache
def operators() -> tuple[str, ...]:
    """The operators that have kernels: the stems of the `.cu` files."""
    folder = files("flexref_cupy") / "kernels"
    return tuple(sorted(entry.name[:-3] for entry in folder.iterdir() if entry.name.endswith(".cu")))


@cache
def _text(name: str) -> str:
    return (files("flexref_cupy") / "kernels" / name).read_text(encoding="utf-8")


def source(operator: str, macros: Mapping[str, object], common: str | None = None) -> Source:
    """The text of `operator` behind what all kernels share, which `common` replaces where no device compiles it."""
    body = _text(f"{operator}.cu")
    signatures = {name: _packing(name, arguments) for name, arguments in _SIGNATURE.findall(body)}
    if not signatures:
        raise ValueError(f"{operator}.cu defines no kernel")
    text = f'{common or _text("common.cuh")}\n#line 1 "{operator}.cu"\n{body}'
    return Source(operator, text, tuple((name, str(value)) for name, value in sorted(macros.items())), signatures)


def _packing(kernel: str, arguments: str) -> str:
    """The `struct` format of a kernel's arguments; `ValueError` for one that is not 8 bytes wide."""
    letters = []
    for argument in arguments.split(","):
        kind = argument.strip()
        if "*" in kind or kind.startswith(("integer ", "const integer ", "long long ")):
            letters.append("q")
        elif kind.startswith(("double ", "const double ")):
            letters.append("d")
        else:
            raise ValueError(f"kernel {kernel}: argument {kind!r} is no pointer, integer or double")
    return "=" + "".join(letters)


class Kernel:
    """One compiled kernel; calling it starts it on the port's stream of operators."""

    __slots__ = ("_buffer", "_cuda", "_extra", "_extra_address", "_function", "_pack", "_size", "name")

    def __init__(self, cuda: "Cuda", name: str, function: Any, packing: str) -> None:
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

    def __init__(self, cuda: "Cuda") -> None:
        self._cuda = cuda
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
                self._modules[module_key] = self._cuda.compile(text)
            function = self._cuda.function(self._modules[module_key], kernel, shared_bytes)
            found = self._found[key] = Kernel(self._cuda, kernel, function, text.signatures[kernel])
        return found
