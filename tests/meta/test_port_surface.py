"""A port's public surface is the protocol's: the same methods, arguments, kinds and defaults, and nothing more."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from flexref_numpy import NumpyBackend

from flexref.backend.protocol import Backend
from flexref.backend.registry import installed, maker
from flexref.check.placed import PlacedBackend

FIELDS = frozenset({"name", "caps"})
"""What the protocol has beside methods."""

OWN = {
    "cupy": frozenset({"compiling", "cuda", "device", "pinning"}),
    "dry": frozenset({"calls", "flops", "moved_bytes", "timing"}),
    "numba": frozenset({"compiling"}),
}
"""Data that a port has for whoever made it: the device that tests stand in for, and what the dry port is there to tell
(`timing` is that of `TimedBackend`, `compiling` that of `CompilingBackend`, `pinning` that of `PinningBackend`). No
method is among it."""


def methods(of: type) -> dict[str, Any]:
    """The public functions, properties and classes of a class by name, inherited ones too."""
    return {
        name: member
        for name, member in inspect.getmembers(of)
        if not name.startswith("_") and (callable(member) or isinstance(member, property))
    }


def arguments(function: Any) -> list[tuple[str, Any, Any]]:
    """Name, kind and default of every argument: annotations are a matter of the type checker."""
    return [(entry.name, entry.kind, entry.default) for entry in inspect.signature(function).parameters.values()]


def fields(of: type) -> set[str]:
    """Public attributes that a class or any of its methods sets."""
    found = {name for name, member in inspect.getmembers(of) if not callable(member) and not name.startswith("_")}
    for part in of.__mro__[:-1]:
        tree = ast.parse(textwrap.dedent(inspect.getsource(part)))
        found |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
        }
    return {name for name in found if not name.startswith("_")}


def differences(port: type, own: frozenset[str] = frozenset()) -> Iterator[str]:
    """One line for everything in which a port's surface is not the protocol's."""
    asked, found = methods(Backend), methods(port)
    yield from (f"{name} is missing" for name in sorted(asked.keys() - found.keys()))
    yield from (f"{name} is not in the protocol" for name in sorted(found.keys() - asked.keys()))
    for name in sorted(asked.keys() & found.keys()):
        if isinstance(found[name], property) or inspect.isclass(found[name]):
            yield f"{name} is no method"
        elif arguments(found[name]) != arguments(asked[name]):
            yield f"{name}{inspect.signature(found[name])} where the protocol has {inspect.signature(asked[name])}"
    data = fields(port)
    yield from (f"{name} is missing" for name in sorted(FIELDS - data))
    yield from (f"{name} is not in the protocol" for name in sorted(data - FIELDS - own - found.keys()))


def test_all_ports_that_are_shipped_are_looked_at() -> None:
    assert {"numpy", "cupy", "dry"} <= set(installed())


@pytest.mark.parametrize("name", installed())
def test_a_ports_surface_is_the_protocols(name: str) -> None:
    assert list(differences(maker(name), OWN.get(name, frozenset()))) == []


def test_what_a_port_has_of_its_own_is_there() -> None:
    for name, own in OWN.items():
        assert own <= fields(maker(name))


def test_a_port_under_checks_has_the_same_memory_and_lanes() -> None:
    missing = {line for line in differences(PlacedBackend) if line.endswith(" is missing")}
    assert "describe is missing" not in missing
    assert set(differences(PlacedBackend)) == missing


class WithoutTheLanesEnd(NumpyBackend):
    close: Any = property(lambda self: None)


class WithOneMore(NumpyBackend):
    def synchronize(self) -> None: ...


class WithOneMoreField(NumpyBackend):
    def __init__(self) -> None:
        super().__init__()
        self.stream = 0


class WithOneMoreProperty(NumpyBackend):
    @property
    def streams(self) -> int:
        return 1


class OtherNames(NumpyBackend):
    def mark(self, lane: Any = None) -> Any:
        return super().mark()

    def release(self, memory: Any) -> None:  # type: ignore[override]
        super().release(memory)


class OtherKinds(NumpyBackend):
    def linear(self, x: Any, w: Any, b: Any, out: Any = None, add: bool = False) -> Any:
        return super().linear(x, w, b, out=out, add=add)


class OtherDefaults(NumpyBackend):
    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float = 1e-5, out: Any = None) -> Any:
        return super().layer_norm(x, w, b, epsilon, out)


class Lacking:
    """No method but one, and no name."""

    def __init__(self) -> None:
        self.caps = None

    def mark(self) -> Any: ...


@pytest.mark.parametrize(
    ("wrong", "lines"),
    [
        (WithoutTheLanesEnd, ["close is no method"]),
        (WithOneMore, ["synchronize is not in the protocol"]),
        (WithOneMoreField, ["stream is not in the protocol"]),
        (WithOneMoreProperty, ["streams is not in the protocol"]),
        (OtherNames, ["mark(self, lane", "release(self, memory"]),
        (OtherKinds, ["linear(self, x"]),
        (OtherDefaults, ["layer_norm(self, x"]),
    ],
)
def test_a_planted_difference_is_found(wrong: type, lines: list[str]) -> None:
    found = list(differences(wrong))
    assert len(found) == len(lines)
    assert all(line.startswith(start) for line, start in zip(found, lines, strict=True))


def test_what_is_missing_is_named() -> None:
    found = list(differences(Lacking))
    assert found[-1] == "name is missing"
    assert found.count("close is missing") == 1
    assert len(found) == len(methods(Backend))
