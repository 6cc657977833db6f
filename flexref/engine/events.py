"""What a session tells whoever listens while it prepares a job; it prints nothing and knows no terminal."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WeightsLoaded:
    """So many more bytes of weights have been read, checked and placed."""

    nbytes: int


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that a user should know before the first token: that this machine is being measured, say."""

    text: str


Event = WeightsLoaded | Notice

OnEvent = Callable[[Event], None]
"""Told of every event, in the thread in which it happens."""


def no_listener(event: Event) -> None:
    """Nobody listens."""
