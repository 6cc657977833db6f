"""Which files of the numba port's kernels a compiled function comes of, so that no other is tried or compiled anew.

The port keeps functions by a digest of all its files. A mutant's functions that do not come of the changed file are
those of the port as it is: they are taken from where that keeps them, and a mutant is tried in a tenth of the time.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

from flexref.backend import protocol, records
from flexref.backend.protocol import Backend

COMPILED, KEPT = "compiled.py", "numba"
"""The file that names what is kept, and the folder where it lies."""

TOLD = "told = (SOURCES, "
"""What there names the sources of a function."""

_IMPORTED = re.compile(r"^from flexref_numba\.kernels\.(\w+) import", re.MULTILINE)


def files_of(package: Path, module: str) -> frozenset[str]:
    """The file of a kernel and those that it imports, as paths inside the package."""
    found, left = set[str](), [module.rpartition(".")[2]]
    while left:
        file = f"kernels/{left.pop()}.py"
        if file not in found:
            found.add(file)
            left += _IMPORTED.findall((package / file).read_text(encoding="utf-8"))
    return frozenset(found)


def take_over(package: Path, mutated: str, port: Path) -> None:
    """Let a mutated package name functions that do not come of the file `mutated` as the port in folder `port` does."""
    if mutated == COMPILED:
        return
    digest = digest_of_sources(port)
    kernels = sorted(path.stem for path in (package / "kernels").glob("[!_]*.py"))
    changed = [f"flexref_numba.kernels.{name}" for name in kernels if mutated in files_of(package, name)]
    path = package / COMPILED
    text = path.read_text(encoding="utf-8")
    if text.count(TOLD) != 1:
        raise ValueError(f"{path} has no {TOLD!r}, which names the sources of a function")
    own = (
        f"SOURCES if any(part.__module__ in {changed!r} for part in (make, *variant) if callable(part)) else {digest!r}"
    )
    path.write_text(text.replace(TOLD, f"told = ({own}, "), encoding="utf-8")


def digest_of_sources(package: Path) -> str:
    """As the package itself has it: tests hold the two together."""
    digest = hashlib.sha256()
    taken = [Path(str(module.__file__)) for module in (protocol, records)]
    for path in (*sorted(package.rglob("*.py")), *taken):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


class Asked:
    """Notes the files of the functions for which a port asks; of a port without such functions none."""

    def __init__(self, package: Path, backend: Backend) -> None:
        self.files = set[str]()
        functions = getattr(getattr(backend, "_attention", None), "functions", None)
        if functions is None:
            return
        get = functions.get

        def noted(make: Any, *variant: Any) -> Any:
            for part in filter(callable, (make, *variant)):
                self.files |= files_of(package, part.__module__)
            return get(make, *variant)

        functions.get = noted
