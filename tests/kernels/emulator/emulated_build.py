"""Makes shared objects of kernels and of the runtime with a C++ compiler, each once per user; it starts no kernel."""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flexref_cupy.driver.kernel_source import Source

FOLDER = Path(__file__).parent
COMPILER = os.environ.get("CXX", "g++")
COMMON_FLAGS = ("-std=c++17", "-fPIC", "-fno-exceptions")
RUNTIME_FLAGS = ("-O2", "-ftree-vectorize")
KERNEL_FLAGS = (
    # Of debugging, lines are all that is read: where variables are is not worth a fifth of the compiler's time.
    *("-O1", "-g1", "-gdwarf-4", "-fno-var-tracking", "-w"),
    # What CUDA allows and standard C++ does not: types read through pointers to others, sums that wrap, 1.0f / 0.0f.
    *("-fno-strict-aliasing", "-fwrapv", "-fno-trapping-math", "-ffp-contract=off"),
    # The compiler calls the runtime before every access: nothing of these sanitizers' own libraries is used.
    # (Its checks of shifts and divisions are left out: with them, g++ 12 compiles `(a ? b : c)[d / 2]` wrongly.)
    *("-fsanitize=thread,alignment,bounds", "-fno-sanitize-recover=all"),
    *("--param", "tsan-instrument-func-entry-exit=0"),
)

KERNELS_START = '\n#line 1 "'
"""After what all kernels share, this stands before an operator's own text (see `kernel_source.source`)."""

FRAME = """#include "emulated_calls.h"
namespace kernels {{ namespace {{
{macros}#include "emulated_common.h"
{body}
}} }}
#define EXPORT extern "C" EMULATED_UNCHECKED __attribute__((visibility("default")))
#define HIDDEN __attribute__((weak, visibility("hidden")))
extern "C" unsigned char __start_emulated_shared[] HIDDEN, __stop_emulated_shared[] HIDDEN;
extern "C" unsigned char __ehdr_start[] HIDDEN, _end[] HIDDEN;
EXPORT void pieces(void** out) {{
    out[0] = __start_emulated_shared, out[1] = __stop_emulated_shared, out[2] = __ehdr_start, out[3] = _end;
}}
{entries}"""
"""A translation unit; the linker knows where its shared memory and the whole of it begin and end."""

ENTRY = """EXPORT void entry_{name}(const void* bytes) {{
    kernels::emulated_start(&kernels::{name}, static_cast<const unsigned char*>(bytes));
}}
"""

_DEFINED = re.compile(
    r"#define (\w+)|struct (?:alignas\(\d+\) )?(\w+)|typedef .*?(\w+);|constexpr [^=]*?(\w+) =|(\w+)(?:<\w+>)?\("
)
_FOR_DEVICES = re.compile(r"\basm\b|__cvta|__CUDA_ARCH__")
_BESIDE = re.compile(r"\bBeside\b|\bCOPIES_BESIDE\b")
"""What differs where a device copies to shared memory by way of registers; other kernels are compiled once for both."""


class EmulationError(AssertionError):
    """What a kernel did that CUDA does not allow, or whose result would depend on chance."""


class Launch(ctypes.Structure):
    """What the runtime is told of a launch."""

    _fields_ = (
        ("entry", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint),
        ("shared_bytes", ctypes.c_uint),
        ("seed", ctypes.c_uint),
        ("pieces", ctypes.c_void_p * 4),
        ("message", ctypes.c_char_p),
        ("message_bytes", ctypes.c_size_t),
        ("message_place", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Module:
    """A translation unit that was compiled; `pieces`: start and end of its static shared memory and of its image."""

    operator: str
    path: Path
    library: Any
    pieces: tuple[int, int, int, int]

    @property
    def static_shared_bytes(self) -> int:
        """Shared memory that its kernels have whatever a launch asks for."""
        return self.pieces[1] - self.pieces[0]

    def entry(self, kernel: str) -> int:
        """The address that the runtime calls for every thread of a kernel."""
        return int(ctypes.cast(getattr(self.library, f"entry_{kernel}"), ctypes.c_void_p).value or 0)

    def line(self, place: int) -> str:
        """The source line of an instruction, as ` (file:line)`, if it is known."""
        _, _, start, end = self.pieces
        if not start <= place < end or shutil.which("addr2line") is None:
            return ""
        command = ["addr2line", "-s", "-e", str(self.path), hex(place - 1 - start)]
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        return f" ({found})" if found else ""


def compiler_is_here() -> bool:
    """Whether there is a C++ compiler."""
    return shutil.which(COMPILER) is not None


@cache
def runtime() -> ctypes.CDLL:
    """The runtime: all kernels call the same one, so that there is one of it in a process."""
    path = _build("runtime", '#include "emulated_runtime.cpp"\n', RUNTIME_FLAGS)
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    library.emulated_region.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    library.emulated_no_region.argtypes = (ctypes.c_void_p,)
    library.emulated_owner.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    library.emulated_launch.argtypes = (ctypes.POINTER(Launch),)
    return library


def build(source: Source, copies_beside: bool = True) -> Module:
    """The kernels of a translation unit; `EmulationError` with the compiler's message if it does not compile.

    copies_beside: whether the device copies to shared memory beside computing.
    """
    common, kernels = portable(source.text)
    beside = copies_beside or _BESIDE.search(kernels) is None
    given = (("EMULATED_COPIES_BESIDE", int(beside)), *source.macros)
    macros = "".join(f"#define {name} {value}\n" for name, value in given)
    text = FRAME.format(
        macros=macros,
        body=f'#line 1 "common.cuh"\n{common}\n{kernels}',
        entries="".join(ENTRY.format(name=name) for name in source.signatures),
    )
    path = _build(source.operator, text, KERNEL_FLAGS, (runtime()._name,))
    library = ctypes.CDLL(str(path))
    pieces = (ctypes.c_void_p * 4)()
    library.pieces(pieces)
    static_start, static_end, image_start, image_end = (int(piece or 0) for piece in pieces)
    return Module(source.operator, path, library, (static_start, static_end, image_start, image_end))


def portable(text: str) -> tuple[str, str]:
    """What all kernels share without what emulated_common.h has in its place, line by line; and the kernels' text."""
    common, marker, kernels = text.partition(KERNELS_START)
    lines = []
    for name, definition in _definitions(common):
        if name in _replaced():
            lines.append("\n" * definition.count("\n"))
        elif _FOR_DEVICES.search(definition):
            raise EmulationError(f"common.cuh: {name} is for devices alone, and emulated_common.h has no {name}")
        else:
            lines.append(definition)
    # A kernel's name may be one of the C library's: within a namespace of C++ both can be.
    return "".join(lines), (marker + kernels).replace('extern "C" __global__', "__global__")


def _definitions(text: str) -> Iterator[tuple[str | None, str]]:
    """Every definition of a header with the lines before it, and the name that it defines."""
    chunk: list[str] = []
    depth = 0
    for line in text.splitlines(keepends=True):
        code = line.partition("//")[0].rstrip()
        chunk.append(line)
        depth += code.count("{") - code.count("}")
        is_macro = code.startswith(("#", "EMULATED_")) and not code.endswith("\\")
        if depth == 0 and (is_macro or code.endswith(("}", ";"))):
            found = _DEFINED.search("".join(part.partition("//")[0] for part in chunk))
            yield next(filter(None, found.groups())) if found else None, "".join(chunk)
            chunk = []
    yield None, "".join(chunk)


@cache
def _replaced() -> frozenset[str]:
    """The names that emulated_common.h defines."""
    text = (FOLDER / "emulated_common.h").read_text("utf-8")
    return frozenset(name for name, _ in _definitions(text) if name is not None)


@cache
def _constant_parts() -> str:
    """What every shared object depends on: the texts in this folder, and the compiler."""
    version = subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=True).stdout
    texts = [
        path.read_text("utf-8") for path in [*sorted(FOLDER.glob("emulated_*.h")), FOLDER / "emulated_runtime.cpp"]
    ]
    return "\0".join((version, *texts))


def kept_folder() -> Path:
    """Where what compilers made is kept: a folder of this user alone."""
    base = os.environ.get("XDG_CACHE_HOME") or tempfile.gettempdir()
    folder = Path(base) / f"flexref-emulated-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    return folder


def _build(name: str, text: str, flags: tuple[str, ...], libraries: tuple[str, ...] = ()) -> Path:
    """The shared object of a C++ text; several processes may make the same one at once."""
    parts = "\0".join((_constant_parts(), text, COMPILER, *COMMON_FLAGS, *flags))
    target = kept_folder() / f"{name}-{hashlib.sha256(parts.encode()).hexdigest()[:24]}.so"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        source, made, linked = (Path(folder) / part for part in (f"{name}.cpp", "made.o", "linked.so"))
        source.write_text(text, encoding="utf-8")
        _run(name, [*COMMON_FLAGS, *flags, f"-I{FOLDER}", "-c", str(source), "-o", str(made)])
        _run(name, ["-shared", str(made), "-o", str(linked), *libraries])
        linked.replace(target)
    return target


def _run(name: str, arguments: list[str]) -> None:
    done = subprocess.run([COMPILER, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise EmulationError(f"{name} does not compile:\n{done.stderr[-6000:]}")
