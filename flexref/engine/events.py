"""What a session tells whoever listens to its jobs, and logs; it prints nothing and knows no terminal."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from flexref.block.tracing.trace import Trace
from flexref.block.watch import OnLogits, OnVisit
from flexref.tiers.faults import FaultSeen

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WeightsLoaded:
    """So many bytes of weights, of those that the first pass needs, have been read, checked and placed."""

    loaded_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that a user should know before the first token: that this machine is being measured, say."""

    text: str


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who is told of a job: finished copies and visits to `trace`, the others as `block.watch` has it."""

    trace: Trace | None = None
    on_logits: OnLogits | None = None
    on_visit: OnVisit | None = None
    on_place: OnVisit | None = None


Event = WeightsLoaded | Notice | FaultSeen

OnEvent = Callable[[Event], None]
"""Told of every event in the thread that works: of a fault of a lane, which other threads see, after the beat in which
it was seen."""


def logged(on_event: OnEvent) -> OnEvent:
    """Tells `on_event` what it is told; logs notices and faults as warnings, but for what the job's error will say."""

    def tell(event: Event) -> None:
        if isinstance(event, FaultSeen) and event.kind == "fault":
            LOG.info("%s", event.text)
        elif isinstance(event, Notice | FaultSeen):
            LOG.warning("%s", event.text)
        on_event(event)

    return tell


def no_listener(event: Event) -> None:
    """Nobody listens."""
