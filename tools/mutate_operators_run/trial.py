"""In a process of its own: the contract on a port, unchanged or mutated; it knows no file of results."""

import os
import resource
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from flexref.backend.protocol import Backend
from flexref.errors import described
from flexref.machine.names import CACHE_VARIABLE
from flexref.testing.clauses.closing import a_closed_port_is_done_and_takes_no_work
from flexref.testing.conformance.black_box import BlackBox
from flexref.testing.conformance.processes import Telling
from flexref.testing.contract import clause_name, clauses_for, violation
from flexref.testing.verdicts import CLAUSES, LONGEST_ERROR, kept_nowhere, names_holding, violation_line
from mutate_operators_run import numba_functions
from mutate_operators_run.mutant import Mutant
from mutate_operators_run.ports import PORTS, Port, made

MOST_BYTES = 16 << 30
"""Of addresses: what a mutant may ask for, so that one that asks for all memory there is takes it from nobody."""

CLOSING = a_closed_port_is_done_and_takes_no_work.__name__
MAKING = "making the port"


@dataclass(frozen=True, slots=True)
class Step:
    """Clauses in the order in which they are tried, by so many examples, on one variant of the port."""

    variant: str
    examples: int
    clauses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kill:
    """The clause that fails, with how many examples, and what it says."""

    clause: str
    examples: int
    error: str


@dataclass(frozen=True, slots=True)
class Reached:
    """What a clause took, in seconds of the processor, and what of the port it runs.

    places: functions as "file:line", and the files of kernels.
    """

    seconds: float
    places: frozenset[str]


def try_mutant(box: BlackBox, tell: Telling, port: str, mutant: Mutant, steps: Sequence[Step], folder: str) -> None:
    """Tell a `Kill`, or None if every step passes; the process ends then, whatever its threads do.

    On the way what is under way is told as text. The mutated package is made in `folder`.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    _mutate(PORTS[port], mutant, Path(folder))
    tell(MAKING)
    try:
        with kept_nowhere():
            kill = _killed(port, steps, tell)
    except Exception as error:  # whatever a mutant raises kills it
        kill = Kill(MAKING, 0, described(error)[:LONGEST_ERROR])
    tell((kill,))
    os._exit(0)


def _mutate(port: Port, mutant: Mutant, folder: Path) -> None:
    """See to it that the port's package will be one with the mutant."""
    loaded = [name for name in sys.modules if name.partition(".")[0] == port.package]
    if loaded:
        raise RuntimeError(f"{loaded[0]} is loaded before it was mutated")
    package = folder / "packages" / port.package
    if not package.exists():
        shutil.copytree(port.folder, package)
        path = package / mutant.file
        path.write_text(mutant.applied(path.read_text(encoding="utf-8")), encoding="utf-8")
        for stale in path.parent.glob(f"__pycache__/{path.stem}.*"):
            stale.unlink()
        if port.compiled:
            numba_functions.take_over(package, mutant.file, port.folder)
    sys.path.insert(0, str(package.parent))
    # What a mutant's kernels were compiled to is of no use to anybody else.
    os.environ.update(dict.fromkeys(("XDG_CACHE_HOME", CACHE_VARIABLE), str(folder / "cache")))


def _killed(port: str, steps: Sequence[Step], tell: Telling) -> Kill | None:
    ports: dict[str, Backend] = {}
    for step in steps:
        for name in step.clauses:
            tell(name)
            if step.variant not in ports:
                ports[step.variant] = made(port, step.variant)
            error = _error(port, step.variant, ports[step.variant], name, step.examples)
            if error is not None:
                return Kill(name, step.examples, violation_line(error)[:LONGEST_ERROR])
    return None


def _error(port: str, variant: str, backend: Backend, name: str, examples: int) -> BaseException | None:
    """What a clause finds wrong with the port."""
    if name != CLOSING:
        return violation(backend, CLAUSES[name], examples)
    try:
        a_closed_port_is_done_and_takes_no_work(lambda: made(port, variant))
    except Exception as error:  # whatever a mutant raises kills it
        return error
    return None


def try_unchanged(
    box: BlackBox, tell: Telling, port: str, variant: str, words: Sequence[str], examples: int
) -> dict[str, Reached]:
    """Every clause that the port must pass, with what it takes and runs; `RuntimeError` if the port does not pass it.

    words: only clauses whose names hold one of them, if there are any.
    """
    watch, found = _Watch(PORTS[port].folder), dict[str, Reached]()
    seeing = nullcontext() if PORTS[port].emulated else watch  # of kernels the device itself counts the launches
    with kept_nowhere(), seeing:
        backend = made(port, variant)
        by_all = watch.places  # what made the port serves every clause
        asked = numba_functions.Asked(PORTS[port].folder, backend)
        launches = getattr(getattr(backend, "cuda", None), "launches", Counter[Any]())
        names = (*map(clause_name, clauses_for(backend.caps)), CLOSING)
        for name in names_holding(words, names) if words else names:
            tell(name)
            launches.clear()
            _forget(PORTS[port].package)
            began, watch.places, asked.files = time.process_time(), set(), set()
            error = _error(port, variant, backend, name, examples)
            if error is not None:
                raise RuntimeError(f"{port} as it is does not pass {name}: {violation_line(error)}")
            kernels = {f"kernels/{operator}.cu" for operator, _ in launches}
            found[name] = Reached(time.process_time() - began, frozenset(by_all | watch.places | asked.files | kernels))
        backend.close()
    return found


def _forget(package: str) -> None:
    """Functions of a package that keep what they gave are called anew: each clause that needs them is noted."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == package:
            for clear in (getattr(value, "cache_clear", None) for value in list(vars(module).values())):
                if clear is not None:
                    clear()


class _Watch:
    """Notes the functions of a package that are called, in threads that start meanwhile too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known = dict[CodeType, str | None]()
        self.places = set[str]()

    def __enter__(self) -> "_Watch":
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        if event != "call":
            return
        code = frame.f_code
        if code not in self._known:
            inside = code.co_filename.startswith(str(self._folder))
            place = f"{os.path.relpath(code.co_filename, self._folder)}:{code.co_firstlineno}"
            self._known[code] = place if inside else None
        found = self._known[code]
        if found is not None:
            self.places.add(found)
