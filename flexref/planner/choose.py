"""The policy of a job for which none was given: the planner's best for its machine, checked to fit; it runs nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flexref.block.budgets import check_fits, lasting_needs, loading_need
from flexref.block.memory_plan import plan_block
from flexref.block.rows import RowLengths
from flexref.block.workspace import Expansion
from flexref.errors import CapacityError, PolicyError
from flexref.machine.machine import Machine
from flexref.planner.fitting import fitted, solutions_of
from flexref.planner.predicted import predicted
from flexref.planner.program.lp import Solution
from flexref.planner.situation import Situation
from flexref.policy import Policy, Shares
from flexref.simulator.simulate import simulate
from flexref.storage.weightfile import WeightFile
from flexref.tiers.weights_plan import WeightsPlan
from flexref.units import Tier

NO_BUDGET_BYTES = 1 << 50
"""Stands for a tier without a budget: more than any machine holds."""

SIMULATED_FROM_S = 2.0
"""A job that is predicted to take longer has every solution simulated, which takes about a tenth of a second each."""

ON_DISK = Shares(0, 0, 1)


@dataclass(frozen=True)
class Choice:
    """What a policy is chosen for: a file, a machine, budgets, and the rows of the whole job in order."""

    file: WeightFile
    machine: Machine
    budgets: Mapping[Tier, int | None]
    rows: Sequence[RowLengths]
    keep: Mapping[str, Any]
    """Fields of `Policy` that were asked for and are not chosen."""

    @cached_property
    def situations(self) -> list[Situation]:
        """The job with attention on the device, then on the host if it may be there; each with and without the disk.

        A job that scores tokens has no decode pass, and so no attention on the host. Nor is it chosen, unless it is
        asked for, where rows shall have bits of their own and the host, which is not the device, rounds otherwise.
        """
        port = self.machine.port
        decodes = not any(row.scored_tokens for row in self.rows)
        same_bits = port.one_memory or not self.keep.get("row_invariant", Policy().row_invariant)
        places = ["device", "host"] if port.attends_on_host and decodes and same_bits else ["device"]
        share = self.keep.get("host_attention_share")
        if share is not None or "attention_on" in self.keep:
            places = [self.keep.get("attention_on", "host")]
        held = {tier.value: NO_BUDGET_BYTES if budget is None else budget for tier, budget in self.budgets.items()}
        machine = self.machine.changed(capacity_bytes=held)
        bases = [Policy(**{**self.keep, "attention_on": place}) for place in places]
        asked = self.keep.get("attention_on") == "host"
        with_disk = [Situation(self.file, machine, self.rows, base, False, share, asked) for base in bases]
        return [each for situation in with_disk for each in (situation, situation.without_disk())]


def choose_policy(choice: Choice) -> Policy:
    """The policy that takes the least time; `CapacityError` says by how much the most frugal one does not fit.

    `PolicyError` says what the machine lacks without which nothing can be planned.
    """
    port, name = choice.machine.port, choice.machine.name
    if choice.keep.get("attention_on") == "host" and not port.attends_on_host:
        raise PolicyError(f"machine {name!r} was measured without attention on the host, which is asked for")
    found, lacks = list[tuple[Policy, Solution]](), list[PolicyError]()
    for situation in choice.situations:
        try:
            found += _answers(choice, situation)
        except PolicyError as error:
            lacks.append(error)
    if lacks and not found:
        raise lacks[0]
    if not found:
        return _most_frugal(choice)
    found.sort(key=lambda answer: _job_s(choice, *answer))
    if _job_s(choice, *found[0]) < SIMULATED_FROM_S:
        return found[0][0]
    machine = choice.situations[0].machine

    def simulated_s(policy: Policy) -> float:
        prediction = predicted(
            choice.rows, policy.rows_per_block, lambda rows: simulate(choice.file, machine, policy, rows)
        )
        return prediction.prefill_s + prediction.decode_s

    return min((policy for policy, _ in found), key=simulated_s)


def _answers(choice: Choice, situation: Situation) -> list[tuple[Policy, Solution]]:
    """Policies that fit, each with the solution that it was rounded from; empty if none fits.

    `PolicyError` for what the machine lacks.
    """
    limits = situation.limits(choice.keep, None, None)
    try:
        solutions, _ = solutions_of(situation, limits)
    except CapacityError:
        return []  # what is missing is said by `_most_frugal`, to the byte
    answers = (fitted(situation, solution, limits) for solution in solutions)
    return [answer for answer in answers if answer is not None]


def _job_s(choice: Choice, policy: Policy, solution: Solution) -> float:
    """Seconds of the job: of as many full blocks as it has rows for, or of one that stays full until it thins out."""
    if choice.situations[0].task.turnover is not None:
        return solution.job_s
    return solution.block_s / policy.rows_per_block * len(choice.rows)


def _most_frugal(choice: Choice) -> Policy:
    """The policy that holds least on device and host: its exact plan may fit where the planner's estimate does not.

    Raises `CapacityError` if it does not fit either.
    """
    situation = choice.situations[0]
    fewest = {name: 1 for name in ("rows_per_group", "groups_per_block") if name not in choice.keep}
    frugal = situation.base.changed(weights=ON_DISK, cache=ON_DISK, activations=ON_DISK, **fewest)
    weights = WeightsPlan.under(choice.file, frugal)
    whole = lasting_needs(weights, situation.caps)
    rows = situation.job_rows(frugal)
    block = plan_block(weights, situation.caps, frugal, rows, expansion=Expansion.NEVER)
    check_fits([*whole, *block.needs()], choice.budgets)
    check_fits([*whole, loading_need(weights)], choice.budgets)
    return frugal
