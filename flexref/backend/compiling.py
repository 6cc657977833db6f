"""A port that compiles its operators while it runs: what an account and an engine ask of it beside the protocol."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from flexref.backend.protocol import Backend


class CompileTime:
    """Seconds that callers of a port have waited for operators to be compiled, or to be read compiled, since it was
    made."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def rehearse(self, play: "Callable[[Backend], None]") -> None:
        """Let `play` call operators on a port like this one that has no memory and computes nothing, and begin to
        compile what it has called for, beside all else. Where nothing is compiled nothing is played.
        """

    def settle(self) -> None:
        """Wait until nothing is being compiled any more: what is timed then has the processors for itself."""


@runtime_checkable
class CompilingBackend(Protocol):
    """A port that has such a time; one that is compiled already has none."""

    compiling: CompileTime
    """It grows while operators are called."""


def compile_time(port: Any) -> CompileTime:
    """What `port` spends on compiling: always nothing, where it compiles nothing."""
    return port.compiling if isinstance(port, CompilingBackend) else CompileTime()
