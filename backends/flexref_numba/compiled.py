"""Functions of numba, compiled once for a processor and kept in the user's cache folder; it knows no operator.

Each has one signature and releases Python's lock. numba's own cache lies beside the source, or in a folder of its own,
and two processes that write it at once may mix up its index; here each function is one file, named by all that it
depends on: this package's sources and those of what its kernels take from the protocol, the versions, the processor.
"""

import hashlib
import pickle
import platform
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite
import numba
from numba.core import types
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from flexref.backend import protocol, records
from flexref.backend.compiling import CompileTime
from flexref.errors import BackendUnavailable
from flexref.machine.kept_bytes import KeptBytes
from flexref.machine.names import kept_folder
from flexref_numba.kernels.numbers import argument_kinds, name_apart
from flexref_numba.kernels.sharing import make_shared
from flexref_numba.kernels.vectors import reads_halves

KEPT_FOLDER = "numba"
"""Where functions are kept, below the user's folder."""

MOST_KEPT_BYTES = 64 << 20
"""Bounds what is kept: a function has some 100 KB."""


def digest_of_sources() -> str:
    """A digest of this package's files, and of those with constants and layouts that kernels hold compiled."""
    digest = hashlib.sha256()
    taken = [Path(str(module.__file__)) for module in (protocol, records)]
    for path in (*sorted(Path(__file__).parent.rglob("*.py")), *taken):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


SOURCES = digest_of_sources()
"""As they are when they are imported: an installation may be exchanged while a process runs."""

Make = Callable[..., Callable[..., Any]]
"""Makes the function of a variant, which its arguments name. The function takes and gives int64, but for arguments that
it annotates as float."""


class Kept(_Cache):  # type: ignore[misc]
    """What a dispatcher of numba's asks before it compiles its one signature, in place of numba's own cache."""

    def __init__(self, key: str, kept: KeptBytes) -> None:
        self._key, self._kept = key, kept

    @property
    def cache_path(self) -> str:
        """Where functions are kept."""
        return str(self._kept.folder)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The function as it was kept; None if it was not."""
        target_context.refresh()
        found = self._kept.get(self._key)
        return None if found is None else CompileResult._rebuild(target_context, *pickle.loads(found))

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the function."""
        self._kept.put(self._key, dumps(data._reduce()))

    def enable(self) -> None:
        """It always is."""

    def disable(self) -> None:
        """It never is."""

    def flush(self) -> None:
        """Nothing is waiting."""


class Compiled(NamedTuple):
    """A compiled function: as Python calls it, without its lock, and where it lies, for others of numba's to call."""

    call: Callable[..., Any]
    address: int
    result: Any
    """What numba has made: memory that lasts as long as this does."""


class Functions:
    """Compiled functions for one port, and the time that it waited for them; any thread may ask."""

    def __init__(self, compiling: CompileTime) -> None:
        """Raises `BackendUnavailable` where numba is told to compile nothing, or for a processor that cannot read
        float16."""
        if numba.config.DISABLE_JIT:
            raise BackendUnavailable("numba compiles nothing while NUMBA_DISABLE_JIT is set: unset it")
        if not reads_halves():
            raise BackendUnavailable("numba compiles for a processor that cannot read float16 (x86 without F16C)")
        self._compiling, self._found = compiling, dict[tuple[Any, ...], Compiled]()
        self._one = threading.Lock()

    def get(self, make: Make, *variant: Any) -> Compiled:
        """The function that `make` makes of `variant`, compiled."""
        found = self._found.get((make, *variant))
        if found is None:
            with self._one:
                start = time.perf_counter()
                found = self._found[(make, *variant)] = compiled(kept_folder(KEPT_FOLDER), make, *variant)
                self._compiling.seconds += time.perf_counter() - start
        return found

    def shared(self, make: Make, *variant: Any) -> Compiled:
        """The same for some threads to share, see `sharing.make_shared`."""
        return self.get(make_shared, make, *variant)


@cache
def compiled(folder: Path, make: Make, *variant: Any) -> Compiled:
    """The function, as kept in `folder`, or else compiled now and then kept. Called without numba's own dispatch."""
    function = make(*variant)
    name_apart(function)
    gives = types.int64 if function.__annotations__.get("return") is int else types.void
    dispatcher = numba.njit(nogil=True, error_model="numpy")(function)
    dispatcher._cache = Kept(function_key(make, variant), _functions_in(folder))
    dispatcher.compile(gives(*argument_kinds(function)))
    (result,) = dispatcher.overloads.values()
    address = result.library.get_pointer_to_function(result.fndesc.llvm_cfunc_wrapper_name)
    return Compiled(result.entry_point, address, result)


def function_key(make: Make, variant: tuple[Any, ...]) -> str:
    """A name that differs whenever the compiled function could."""
    from numba.core.registry import cpu_target  # noqa: PLC0415  it starts LLVM

    magic = cpu_target.target_context.codegen().magic_tuple()
    told = (SOURCES, protocol.CHUNK_TOKENS, numba.__version__, llvmlite.__version__, platform.python_version(), magic)
    names = [part.__qualname__ if callable(part) else part for part in (make, *variant)]
    return hashlib.sha256(repr((*told, names)).encode()).hexdigest()


@cache
def _functions_in(folder: Path) -> KeptBytes:
    """One for all ports of a process: that a folder cannot be written is told once."""
    return KeptBytes(folder, MOST_KEPT_BYTES)
