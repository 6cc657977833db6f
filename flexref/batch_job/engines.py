"""Opens the engines of a job, each with less memory after one that ran out of it; it knows no line."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flexref.engine.engine import Engine
from flexref.engine.events import OnEvent, no_listener
from flexref.errors import CapacityError, FlexrefError, in_gib
from flexref.loading import open_engine
from flexref.planner.advisor import Advisor
from flexref.units import GIB, Tier

LOG = logging.getLogger(__name__)

LESS = 0.85
"""An engine after one that ran out of memory gets this share of what that one had: a step that a planner answers with
other places, and small enough that little is wasted."""

ATTEMPTS = 6
"""So many engines in a row may fail before a line is answered: the last has less than half of the memory."""


@dataclass
class Engines:
    """How the engines of a job are opened. `budgets` and `options` as `open_engine` takes them.

    `settling`: who chooses the policy. It chooses anew for every engine, unless it was given one.
    """

    model: Any
    settling: Advisor
    backend: str
    budgets: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    on_event: OnEvent = no_listener
    mirror: str | Path | None = None
    have_less: bool = field(init=False, default=False)
    """Whether the next engine has less memory than the job was given, since some ran out."""
    _refused: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.budgets = dict(self.budgets)

    def open(self, on_event: OnEvent | None = None) -> Engine:
        """The next engine, which tells `on_event`, or else its own listener; raises what `open_engine` raises."""
        return open_engine(
            self.model,
            self.settling,
            backend=self.backend,
            **self.budgets,
            mirror=self.mirror,
            on_event=on_event or self.on_event,
            **self.options,
        )

    def gave_an_answer(self) -> None:
        """The engine is of use: earlier ones that failed do not count any more."""
        self._refused = 0

    def begin_again(self, error: FlexrefError) -> None:
        """The next engine is to go on where one could not; raises `error` if that has been tried often enough."""
        self._refused += 1
        if self._refused >= ATTEMPTS:
            raise error

    def lower(self, engine: Engine, error: CapacityError | MemoryError) -> str:
        """Give the next engine less of what `engine` ran out of; says so in words.

        Raises `error` if that has not helped so far, or if the policy was given, which no planner may change.
        """
        self._refused += 1
        if self._refused >= ATTEMPTS or self.settling.policy is not None:
            raise error
        tier = error.tier if isinstance(error, CapacityError) and error.tier in ("device", "host") else "host"
        had = engine.session.budgets[Tier(tier)]
        free = engine.backend.free_bytes(tier)
        less = int(LESS * (free if had is None else had))
        self.budgets = {**self.budgets, f"{tier}_mem_gib": less / GIB}
        self.have_less = True
        return f"{tier} memory ran out; the job goes on with {in_gib(less)} of it and a policy that fits"
