"""The kernels' texts: a kernel is `kernels/<operator>.cu` with some macros; it knows no device.

A kernel's arguments are all 8 bytes wide, so that packing them is one call and never a matter of alignment:
pointers and integers as `long long`, other numbers as `double`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

COMPILE_OPTIONS = ("--std=c++17", "-default-device", "--ftz=true")
"""No fast mathematics: divisions and roots are as the standard has them. But subnormal float32 numbers are taken as 0,
as CuPy has it whenever it compiles; bounds of errors count the smallest normal number."""

AWAIT = "\n    await_earlier();"
"""Stands in every kernel: see common.cuh."""

_INCLUDED = re.compile(r'^#include "([^"]+)"\n', re.MULTILINE)

_SIGNATURE = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\s*\(([^)]*)\)')


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


def _with_included(name: str) -> str:
    """A file of `kernels/` with the texts that it includes in their places: the compiler is given no files."""
    text = _text(name)

    def included(line: re.Match[str]) -> str:
        number = text.count("\n", 0, line.end()) + 1
        return f'#line 1 "{line[1]}"\n{_text(line[1])}#line {number} "{name}"\n'

    return _INCLUDED.sub(included, text)


def source(operator: str, macros: Mapping[str, object], common: str | None = None) -> Source:
    """The text of `operator` after what all kernels share, which `common` replaces where no device compiles it."""
    body = _with_included(f"{operator}.cu")
    signatures = {}
    for kernel in _SIGNATURE.finditer(body):
        name, arguments = kernel.groups()
        if AWAIT not in body[kernel.end() :].partition("\n}")[0]:
            raise ValueError(f"kernel {name} never calls await_earlier(), which lets it wait for those before it")
        signatures[name] = _packing(name, arguments)
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
