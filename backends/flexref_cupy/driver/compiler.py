"""NVRTC, asked directly: a kernel's text in, a program for one device out, which is kept; it starts no kernel."""

import ctypes
import hashlib
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

from flexref.machine.kept_bytes import KeptBytes
from flexref.machine.names import kept_folder
from flexref_cupy.driver.cublas import cuda_library
from flexref_cupy.driver.kernel_source import Source

LOG = logging.getLogger(__name__)

KEPT_FOLDER = "kernels"
"""Where programs are kept, below the user's folder."""

MOST_KEPT_BYTES = 128 << 20
"""Bounds what is kept: a program has some 50 KB, and all variants for one architecture 20 MB."""

KEY_VERSION = "1"
"""Raised when a program depends on something that its key did not name before."""


class TextCompiler(Protocol):
    """What makes programs of texts; any thread may call it."""

    @property
    def version(self) -> str:
        """Differs whenever the same text could become another program."""

    def architectures(self) -> Sequence[int]:
        """The compute capabilities that it knows, 90 for 9.0, ascending."""

    def compile(self, name: str, text: str, options: Sequence[str], intermediate: bool) -> bytes:
        """The program, or PTX if `intermediate`; `RuntimeError` with the compiler's own words."""


class Nvrtc:
    """The compiler of CuPy's CUDA."""

    def __init__(self) -> None:
        """`BackendUnavailable` if it is not installed."""
        self._library = library = cuda_library("nvrtc", "NVRTC")
        address, text, count = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
        library.nvrtcCreateProgram.argtypes = (address, text, text, count, address, address)
        library.nvrtcCompileProgram.argtypes = (address, count, address)
        library.nvrtcGetErrorString.restype = text
        for name in ("nvrtcGetProgramLog", "nvrtcGetCUBIN", "nvrtcGetPTX"):
            getattr(library, name).argtypes = (address, text)
            getattr(library, f"{name}Size").argtypes = (address, address)
        major, minor = count(), count()
        self._check(library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.number = f"{major.value}.{minor.value}"

    @property
    def version(self) -> str:
        """See `TextCompiler`. Releases of one number differ in their library's size."""
        return f"{self.number}, {Path(self._library._name).stat().st_size} bytes"

    def architectures(self) -> Sequence[int]:
        """See `TextCompiler`."""
        count = ctypes.c_int()
        self._check(self._library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        found = (ctypes.c_int * count.value)()
        self._check(self._library.nvrtcGetSupportedArchs(found))
        return sorted(found)

    def compile(self, name: str, text: str, options: Sequence[str], intermediate: bool) -> bytes:
        """See `TextCompiler`. Other threads run meanwhile: ctypes holds no lock of Python's while it calls."""
        library, program = self._library, ctypes.c_void_p()
        self._check(library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), name.encode(), 0, None, None))
        try:
            told = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            status = library.nvrtcCompileProgram(program, len(options), told)
            if status:
                said = self._read("nvrtcGetProgramLog", program).rstrip(b"\0").decode(errors="replace").strip()
                raise RuntimeError(f"{name} does not compile ({' '.join(options)}): {self._words(status)}\n{said}")
            return self._read("nvrtcGetPTX" if intermediate else "nvrtcGetCUBIN", program)
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def _read(self, call: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self._library, f"{call}Size")(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, call)(program, buffer))
        return buffer.raw

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(f"NVRTC fails: {self._words(status)}")

    def _words(self, status: int) -> str:
        return bytes(self._library.nvrtcGetErrorString(status)).decode()


class Compiler:
    """Programs for one device: as kept, or else compiled now and then kept. Any thread may ask."""

    def __init__(self, capability: tuple[int, int], compiler: TextCompiler, kept: KeptBytes | None = None) -> None:
        """`kept`: where programs are kept, in place of the user's own folder."""
        self._compiler = compiler
        self._kept = _programs_in(kept_folder(KEPT_FOLDER)) if kept is None else kept
        self.option, self._intermediate = architecture(capability, compiler.architectures())

    def program(self, text: Source) -> bytes:
        """What the driver loads for a text; `RuntimeError` if it does not compile."""
        options = (*text.options, self.option)
        key = program_key(text.text, options, self._compiler.version)
        found = self._kept.get(key)
        if found is None:
            found = self._compiler.compile(f"{text.operator}.cu", text.text, options, self._intermediate)
            LOG.debug("compiled %s.cu, %s", text.operator, " ".join(options))
            self._kept.put(key, found)
        return found


@cache
def _programs_in(folder: Path) -> KeptBytes:
    """One for all ports of a process: that a folder cannot be written is told once."""
    return KeptBytes(folder, MOST_KEPT_BYTES)


def program_key(text: str, options: Sequence[str], version: str) -> str:
    """A name that differs whenever the program could."""
    digest = hashlib.sha256()
    for part in (KEY_VERSION, version, *options, text):
        digest.update(f"{len(part)} ".encode())
        digest.update(part.encode())
    return digest.hexdigest()


def architecture(capability: tuple[int, int], known: Sequence[int]) -> tuple[str, bool]:
    """The compiler's option for a device, and whether its driver must finish the program: the compiler is older than
    the device, and gives code for the latest one that it knows. `RuntimeError` if it knows none that is old enough.
    """
    wanted = 10 * capability[0] + capability[1]
    if wanted in known:
        return f"--gpu-architecture=sm_{wanted}", False
    older = [number for number in known if number < wanted]
    if not older:
        raise RuntimeError(f"NVRTC knows no device of compute capability {capability[0]}.{capability[1]} any more")
    return f"--gpu-architecture=compute_{max(older)}", True
