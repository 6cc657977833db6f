"""What the planner proposes, made real: shares that fit to the byte.

The linear program counts with rates and fractions; here its solutions become policies of which every block fits.
"""

from flexref.errors import CapacityError, PolicyError
from flexref.planner.program.lp import Solution, solve
from flexref.planner.program.search import Found, search
from flexref.planner.program.task import Limits
from flexref.planner.situation import Situation, rounded
from flexref.policy import Policy, Shares
from flexref.units import Tier

SEARCHED, SOLUTIONS = 24, 3
"""Solutions that a search keeps, and those of them that are looked at."""

FLAT_SHARE = 0.02
"""Solutions that differ by less than this share of tokens per second are about the same to the linear program."""

FITTING_ROUNDS = 14
"""How often a solution is solved again with what the tensors' sizes took from it, or left it."""

EXCESS_FACTOR = 1.5
"""What a policy holds too much is taken from a capacity, and each time so many times more: rows and tensors are steps,
and a little less of a tier may change nothing."""

SPARE_SHARE = 0.01
"""A solution that leaves less than this of every capacity that binds is not solved again."""


def solutions_of(situation: Situation, limits: Limits) -> tuple[list[Solution], Found]:
    """Solutions to look at, the first first, and the search that found them; raises what `search` raises.

    Of those that the linear program can hardly tell apart the ones with the fewest groups come first: all that it does
    not count, a visit's own work and what a schedule cannot hide, is by the visit.
    """
    found = search(situation.machine, situation.task, limits, keep=SEARCHED)
    flat_from = (1 - FLAT_SHARE) * found.ranked[0].tokens_per_s
    flat = sorted((each for each in found.ranked if each.tokens_per_s >= flat_from), key=lambda each: each.groups)
    rest = [each for each in found.ranked if each.tokens_per_s < flat_from]
    return [each.solution for each in (flat + rest)[:SOLUTIONS]], found


def fitted(situation: Situation, solution: Solution, limits: Limits) -> tuple[Policy, Solution] | None:
    """A policy near `solution`, with the same rows and groups, of which every block fits; None if there is none.

    Tensors cannot be cut and the linear program's count of slots and staging is an estimate: what a policy holds too
    much is taken from the capacities, what it leaves is given to them, and the program is solved again.
    """
    machine = situation.machine
    counted = dict(machine.capacity_bytes)
    best: tuple[Policy, Solution] | None = None
    for attempt in range(FITTING_ROUNDS):
        policy = situation.policy(solution)
        held = situation.held_bytes(policy)
        spare = {tier: machine.capacity_bytes[tier.value] - held[tier] for tier in Tier}
        fits = min(spare.values()) >= 0
        if fits and (best is None or solution.block_s < best[1].block_s):
            best = policy, solution
        bound = [tier for tier in Tier if f"{tier.value} memory" in solution.binding]
        if fits and all(spare[tier] <= SPARE_SHARE * machine.capacity_bytes[tier.value] for tier in bound):
            break
        for tier in Tier:
            if spare[tier] < 0:
                excess = round(EXCESS_FACTOR**attempt * spare[tier])
                counted[tier.value] = max(0, counted[tier.value] + excess)
            elif tier in bound:
                counted[tier.value] += spare[tier]
        try:
            program = machine.changed(capacity_bytes=counted)
            solution = solve(program, situation.task, solution.rows_per_group, solution.groups, limits)
        except (CapacityError, PolicyError):
            break
    found = best or _nudged(situation, solution)
    return None if found is None else (situation.reading_ahead(found[0]), found[1])


def _nudged(situation: Situation, solution: Solution) -> tuple[Policy, Solution] | None:
    """The solution with some of its weights moved a tier down until it fits; None if it does not."""
    policy = situation.policy(solution)
    for _ in range(FITTING_ROUNDS):
        held = situation.held_bytes(policy)
        over = {tier: held[tier] - situation.machine.capacity_bytes[tier.value] for tier in Tier}
        if max(over.values()) <= 0:
            return policy, solution
        total, weights = sum(situation.task.stage_bytes), policy.weights
        off_device = min(weights.device, EXCESS_FACTOR * max(0, over[Tier.DEVICE]) / total)
        off_host = min(weights.host, EXCESS_FACTOR * max(0, over[Tier.HOST]) / total)
        moved = Shares.of(weights.device - off_device, weights.host + off_device - off_host)
        if moved == weights:
            return None
        policy = policy.changed(weights=rounded(moved))
    return None
