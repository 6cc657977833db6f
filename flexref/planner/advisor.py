"""Chooses the policies of a session's jobs for its machine, and holds what they took against what was predicted."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from flexref.backend.protocol import Backend
from flexref.block.rows import RowLengths
from flexref.engine.events import Notice
from flexref.engine.results import Generation, Stats
from flexref.engine.session import Session, check_policy
from flexref.engine.wall import WallPart
from flexref.errors import CapacityError, PolicyError
from flexref.planner.plain_choice import PlainChoice
from flexref.policy import Policy

if TYPE_CHECKING:
    from flexref.machine.machine import Machine
    from flexref.simulator.prediction_error import PredictionError

LOG = logging.getLogger(__name__)


class Machines(Protocol):
    """Knows the machine that a port runs on."""

    def check(self, backend: Backend) -> None:
        """`PolicyError` if the machine is known not to be one of this port; nothing is measured."""

    def measured(self, backend: Backend, disk_dir: Path, tell: Callable[[str], None] | None) -> "Machine":
        """The machine; it may be measured first, which `tell` hears of."""

    def kept(self, backend: Backend, disk_dir: Path) -> "Machine | None":
        """The machine, if it is known without measuring."""


class Advisor:
    """Settles policies (it is an `engine.session.Settle`): the one given, or the best for each job."""

    def __init__(
        self,
        machines: Machines,
        policy: Policy | None = None,
        keep: Mapping[str, Any] | None = None,
        *,
        plainly: bool = False,
    ) -> None:
        """`keep` names fields of `Policy` that a chosen one must have so: rows per group, overlap, cache scheme.

        `plainly`: where all of a job fits on the device, no machine is asked for (`plain_choice`).
        """
        self.machines, self.policy, self.keep, self.plainly = machines, policy, dict(keep or {}), plainly

    def __call__(self, session: Session, rows: Sequence[RowLengths], /) -> Policy:
        """The policy that was given, or the one that takes the least time for a job of `rows`.

        The machine is measured for it if it is not known; the session's listener hears of that. Raises `CapacityError`
        if no policy fits, `PolicyError` for a machine of another port, `EngineError` while a job is under way.
        """
        self.machines.check(session.backend)  # whoever settles, the job is held against it at its end
        if self.policy is not None:
            LOG.info("policy: %s; it was given", self.policy.in_short)
            return self.policy
        session.gate.check()
        check_policy(Policy(**self.keep), session.file, session.backend)  # before anything is measured for it
        if self.plainly:
            choice = PlainChoice(session.file, session.backend.caps, session.budgets, rows, self.keep)
            plain = choice.policy()
            if plain is not None:
                LOG.info("policy: %s; all of the job fits on the device", plain.in_short)
                return plain
        with session.wall.part(WallPart.MACHINE):
            machine = self.machines.measured(
                session.backend, session.disk_dir, lambda text: session.on_event(Notice(text))
            )
        # The planner's program is loaded for who plans alone.
        from flexref.planner.choose import Choice, choose_policy  # noqa: PLC0415

        chosen = choose_policy(Choice(session.file, _as_used(machine, session), session.budgets, rows, self.keep))
        LOG.info("policy: %s; the fastest that is predicted for %s", chosen.in_short, machine.name)
        return chosen

    def judge(self, session: Session, generation: Generation) -> "PredictionError | None":
        """What the machine was to take for a generation, beside what it took: see `judge_stats`.

        Rows have the lengths that they turned out to have. None where rows shared prefixes: which, outputs do not say.
        """
        if generation.stats.shared_prefix_tokens:
            return None
        rows = [RowLengths(output.prompt_tokens, len(output.token_ids)) for output in generation.outputs]
        return self.judge_stats(session, generation.stats, rows)

    def judge_stats(self, session: Session, stats: Stats, rows: Sequence[RowLengths]) -> "PredictionError | None":
        """The same for rows of given lengths; None if no machine is known without measuring, or see
        `prediction_error`. Where the machine lacks what the job needs that is logged, for the job is done.
        """
        machine = self.machines.kept(session.backend, session.disk_dir)
        if machine is None:
            return None
        # Neither does a job without a known machine need the simulator.
        from flexref.simulator.prediction_error import prediction_error  # noqa: PLC0415

        try:
            return prediction_error(session.file, _as_used(machine, session), stats, rows, session.budgets)
        except (CapacityError, PolicyError) as error:
            LOG.warning("what the job was to take on %s cannot be predicted: %s", machine.name, error)
            return None


def _as_used(machine: "Machine", session: Session) -> "Machine":
    """The machine with its port as the session uses it: it may be that nothing is to be recorded."""
    return machine if session.graphs else machine.changed(port=replace(machine.port, recorded_bytes=0))
