"""A port that tells a machine's time instead of computing: what a simulation asks of it beside the protocol."""

from collections.abc import Mapping
from typing import Protocol

from flexref.backend.protocol import Backend


class SimulatedTime(Protocol):
    """The clock of a machine that is not there. All that the port is called for is put on it."""

    @property
    def now_s(self) -> float:
        """Seconds that the host has come to."""

    @property
    def busy_s(self) -> Mapping[str, float]:
        """Seconds that every lane, and the operators under `compute`, have worked."""

    def spend(self, seconds: float) -> None:
        """The host works on something else for so long."""


class TimedBackend(Backend, Protocol):
    """A port made for a machine (`create(name, machine=...)`)."""

    @property
    def timing(self) -> SimulatedTime:
        """The machine's clock."""
