"""Opens the engines of a job, one after another, and says how it goes on after one that failed; it knows no file."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flexref.batch_job.answers import LineAnswer
from flexref.batch_job.serve import OnJob, Serving, nobody
from flexref.engine.engine import Engine
from flexref.engine.events import OnEvent, no_listener
from flexref.errors import CapacityError, SpillDamaged, in_gib
from flexref.loading import open_engine
from flexref.planner.advisor import Advisor
from flexref.units import GIB, Tier

LESS = 0.85
"""An engine after one that ran out of memory gets this share of what that one had: a step that a planner answers with
other places, and small enough that little is wasted."""

EngineFailure = CapacityError | MemoryError | SpillDamaged

ENGINE_FAILURES = (CapacityError, MemoryError, SpillDamaged)
"""After which another engine may go on: its memory ran out, or what it had spilled did not come back."""

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

    def answers(
        self, serving: Serving, engine: Engine, *, on_begin: OnJob = nobody, on_pass: OnJob = nobody
    ) -> Iterator[LineAnswer]:
        """The answers that `engine` gives: of the lines, then of those that need a policy of their own.

        Raises what `Serving.run` raises. After one of `ENGINE_FAILURES` `recover` says how to go on; closed early, it
        raises none of them, since nobody goes on.
        """
        while True:
            run = serving.run(engine, on_begin=on_begin, on_pass=on_pass, may_refuse=not self.have_less)
            with closing(run):  # else what its lanes end with would be raised where nobody hears it
                yield from self._heard(run)
            if not serving.has_set_aside:
                return

    def _heard(self, run: Generator[LineAnswer, None, None]) -> Iterator[LineAnswer]:
        try:
            for answer in run:
                self._refused = 0  # the engine is of use: earlier ones that failed do not count any more
                yield answer
        except GeneratorExit:
            with suppress(*ENGINE_FAILURES):
                run.close()
            raise

    def recover(self, serving: Serving, engine: Engine, error: EngineFailure) -> tuple[str, str]:
        """How the next engine goes on after one that failed: the kind of event that this is, and a line of words.

        If memory ran out it has less of it. Raises `error` if that has not helped so far, if no policy fits, or if the
        policy was given, which no planner may change.
        """
        self._refused += 1
        if self._refused >= ATTEMPTS:
            raise error
        if isinstance(error, SpillDamaged):
            return "retry", f"rows that are under way begin again from their tokens: {error}"
        if not serving.is_running or self.settling.policy is not None:
            raise error
        return "replan", self._lower(engine, error)

    def _lower(self, engine: Engine, error: CapacityError | MemoryError) -> str:
        """Give the next engine less of what `engine` ran out of; says so in words."""
        tier = error.tier if isinstance(error, CapacityError) and error.tier in ("device", "host") else "host"
        had = engine.session.budgets[Tier(tier)]
        free = engine.backend.free_bytes(tier)
        less = int(LESS * (free if had is None else had))
        self.budgets = {**self.budgets, f"{tier}_mem_gib": less / GIB}
        self.have_less = True
        return f"{tier} memory ran out; the job goes on with {in_gib(less)} of it and a policy that fits"
