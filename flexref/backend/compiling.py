"""A port that compiles its operators while it runs: what an account asks of it beside the protocol."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(slots=True)
class CompileTime:
    """Seconds that a port has spent on compiling its operators, or on reading them compiled, since it was made."""

    seconds: float = 0.0


@runtime_checkable
class CompilingBackend(Protocol):
    """A port that has such a time; one that is compiled already has none."""

    compiling: CompileTime
    """It grows while operators are called."""


def compile_time(port: Any) -> CompileTime:
    """What `port` spends on compiling: always nothing, where it compiles nothing."""
    return port.compiling if isinstance(port, CompilingBackend) else CompileTime()
