"""What a session tells whoever listens while it prepares a job, and logs; it prints nothing and knows no terminal."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WeightsLoaded:
    """So many bytes of weights, of those that are read before the first pass, have been read, checked and placed."""

    loaded_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that a user should know before the first token: that this machine is being measured, say."""

    text: str


Event = WeightsLoaded | Notice

OnEvent = Callable[[Event], None]
"""Told of every event, in the thread in which it happens."""


def logged(on_event: OnEvent) -> OnEvent:
    """Tells `on_event` what it is told, and logs notices as warnings."""

    def tell(event: Event) -> None:
        if isinstance(event, Notice):
            LOG.warning("%s", event.text)
        on_event(event)

    return tell


def no_listener(event: Event) -> None:
    """Nobody listens."""
