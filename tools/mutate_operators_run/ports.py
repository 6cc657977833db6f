"""The ports whose operators are mutated: where their files are, and how a process makes one; it runs nothing."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flexref.backend.protocol import Backend
from flexref.backend.registry import create
from flexref.errors import WrongCall
from flexref.machine.names import kept_folder
from mutate_operators_run import cuda_mutants, numba_functions, python_mutants
from mutate_operators_run.mutant import Mutant, mutants_of

EMULATOR = Path(__file__).parents[2] / "tests" / "kernels" / "emulator"
"""Where the emulated device is."""

COMMON = "kernels/common.cuh"

DEVICES: Mapping[str, tuple[int, Mapping[str, Any]]] = {
    "at-once": (1 << 20, {"capability": (7, 5), "multiprocessors": 3}),
    "late": (4096, {"capability": (9, 0), "multiprocessors": 40, "late": True}),
}
"""The emulated devices of `tests/kernels/test_port_on_emulator.py`: bytes of a piece of host memory, and the rest."""

SMALL_SCRATCH = "small scratch"
"""The numpy port as `tests/conformance` has it too: its tiles are so small that operators need several."""

SMALL_PIECES = "small pieces"
"""The torch port with temporary arrays so small that operators need several: it has no argument for that."""

SMALL_PIECE_ELEMENTS = 1 << 12
"""Of a temporary array then: less than the scores of a row's heads, more than a row of a matrix."""

LIKE_A_GPU = "like a GPU"
"""The torch port as it is on CUDA: float16, and attention by a kernel of PyTorch's, which is the processor's here."""


@dataclass(frozen=True, slots=True)
class Port:
    """A port by its name here; `patterns`: the files of its package that are mutated.

    variants: ways to make it, of which each must keep the contract; the first one is tried first. loading_s: what
    making it may take of the processor, its compiler included.
    """

    name: str
    package: str
    patterns: tuple[str, ...] = ("*.py",)
    variants: tuple[str, ...] = ("",)
    loading_s: float = 20.0

    @property
    def emulated(self) -> bool:
        """Whether it runs on the emulated device."""
        return self.variants == tuple(DEVICES)

    @property
    def compiled(self) -> bool:
        """Whether numba compiles its kernels, which it keeps."""
        return self.package == "flexref_numba"

    @property
    def folder(self) -> Path:
        """Its package; `WrongCall` if that is not installed."""
        found = find_spec(self.package)
        if found is None or found.origin is None:
            raise WrongCall(f"no package {self.package} is installed, which has the operators of {self.name}")
        return Path(found.origin).parent

    def files(self) -> list[str]:
        """What is mutated, as paths inside the package."""
        paths = {path for pattern in self.patterns for path in self.folder.glob(pattern)}
        return [str(path.relative_to(self.folder)) for path in sorted(paths) if path.name != "__init__.py"]

    def mutants(self) -> Iterator[Mutant]:
        """Every mutant, file by file."""
        for file in self.files():
            text = (self.folder / file).read_text(encoding="utf-8")
            changes = python_mutants.changes if file.endswith(".py") else cuda_mutants.changes
            for mutant in mutants_of(file, text, changes(text)):
                if file != COMMON or _emulated(mutant.applied(text)) != _emulated(text):
                    yield mutant


PORTS: Mapping[str, Port] = {
    port.name: port
    for port in (
        Port("numpy", "flexref_numpy", variants=("", SMALL_SCRATCH)),
        Port("cupy-emulated", "flexref_cupy", ("kernels/*.cu", "kernels/*.cuh"), tuple(DEVICES), loading_s=120.0),
        Port("torch", "flexref_torch", variants=("", SMALL_PIECES, LIKE_A_GPU), loading_s=30.0),
        Port("numba", "flexref_numba", ("*.py", "kernels/*.py"), loading_s=60.0),
    )
}


def made(port: str, variant: str) -> Backend:
    """A new port, of the package that is first on the path."""
    if variant in ("", SMALL_PIECES, LIKE_A_GPU):
        plain: Any = create(port)
        if variant == SMALL_PIECES:
            plain._most = SMALL_PIECE_ELEMENTS
        elif variant == LIKE_A_GPU:
            _see_a_gpu(plain)
        return plain  # type: ignore[no-any-return]
    if variant == SMALL_SCRATCH:
        from flexref_numpy.backend import MINIMUM_SCRATCH_BYTES, NumpyBackend

        return NumpyBackend(MINIMUM_SCRATCH_BYTES)
    _see_emulator()
    from emulated_cuda import EmulatedCuda
    from flexref_cupy import CupyBackend

    piece_bytes, device = DEVICES[variant]
    return CupyBackend(cuda=EmulatedCuda(**device), piece_bytes=piece_bytes)


def _see_a_gpu(port: Any) -> None:
    from flexref_torch import attention, backend
    from torch.nn.attention import SDPBackend

    attention.FUSED = SDPBackend.FLASH_ATTENTION
    port._fuses, port._tile = True, backend.PIECES["cuda"][1]
    port.caps = replace(port.caps, compute_dtype="float16")


def keep_compiled(port: str, folder: Path) -> None:
    """What a compiler has made of the port as it is is there in a mutant's folder, too."""
    if PORTS[port].emulated:
        _see_emulator()
        from emulated_build import kept_folder as folder_of_emulator

        known, pattern = folder_of_emulator(), "*.so"
    elif PORTS[port].compiled:
        known, pattern = kept_folder(numba_functions.KEPT), "*.kept"
    else:
        return
    kept = folder / "cache" / known.name
    kept.mkdir(mode=0o700, parents=True)
    for path in known.glob(pattern):
        (kept / path.name).symlink_to(path)


def _see_emulator() -> None:
    if str(EMULATOR) not in sys.path:
        sys.path.append(str(EMULATOR))


@cache
def _emulated(common: str) -> str:
    """What the emulated device compiles of a text that all kernels share: it has parts of its own."""
    _see_emulator()
    from emulated_build import portable

    return str(portable(f'{common}\n#line 1 "none"\n')[0])
