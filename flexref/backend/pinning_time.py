"""A port that pins memory while its caller goes on: what an account and a profile ask of it beside the protocol."""

from typing import Any, Protocol, runtime_checkable


class PinningTime:
    """Seconds that callers of a port have waited for memory, given out already, to be pinned, since it was made.

    Of these only those in which nothing was under way on the device: beside other work nobody waits longer for it.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    @property
    def refused(self) -> bool:
        """Whether the system has refused a part of memory that was given out, and not given back: it is of no use."""
        return False

    def settle(self) -> None:
        """Wait until all memory that was given out is pinned: what is timed then has the machine for itself."""


@runtime_checkable
class PinningBackend(Protocol):
    """A port that has such a time; one that pins nothing, or all before it gives memory out, has none."""

    pinning: PinningTime
    """It grows while moves are submitted."""


def pinning_time(port: Any) -> PinningTime:
    """What callers of `port` wait for its pinning: always nothing, where nothing is pinned beside other work."""
    return port.pinning if isinstance(port, PinningBackend) else PinningTime()
