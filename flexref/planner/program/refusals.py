"""Why a pair of rows per group and groups has no placement, in words; it decides nothing."""

from collections.abc import Iterable

import numpy as np

from flexref.errors import CapacityError, PolicyError, gib_to_give, in_gib
from flexref.planner.program.cost import Costs
from flexref.planner.program.program import NEGLIGIBLE_EXCESS, Program, Shortage
from flexref.planner.program.table import DISK_WRITES, LATENCY, Table
from flexref.planner.program.task import Limits

TIER_WEIGHTS = {"disk": 1.0, "host": 1.5, "device": 2.0}
"""What a missing byte counts: where bytes may be missing on either of two tiers, the cheaper one is named."""

NO_TIER_WEIGHT = 3.0
"""What a byte counts that is missing on a tier of no capacity: one that is there is named before it."""

OPTIONS = {"device": "--device-mem-gib", "host": "--host-mem-gib", "disk": "--disk-gib"}
"""The options that give a tier more room in commands that plan; an engine names its own."""


def refusal(table: Table, costs: Costs, limits: Limits, pair: str) -> CapacityError | PolicyError:
    """The error for a table of one pair's variants, none of which keeps all bounds.

    Capacities come first, then disk writes, then latency: each is reported only if those before it can be kept.
    """
    programs = [Program(table, place) for place in range(len(table.pairs))]
    capacities = costs.machine.capacity_bytes
    weights = {
        f"{tier} memory": weight if capacities[tier] else NO_TIER_WEIGHT for tier, weight in TIER_WEIGHTS.items()
    }
    others = (DISK_WRITES, LATENCY)
    shortages = [program.shortage(weights, without=others) for program in programs]
    missing = [sum(shortage.excess.values()) for shortage in shortages]
    place = int(np.argmin(missing))
    if all(_misses(program, shortage) for program, shortage in zip(programs, shortages, strict=True)):
        return _capacity_error(costs, place, shortages[place], pair)
    if limits.max_disk_write_bytes is not None:
        over = table.over[DISK_WRITES]
        least = _least(program.least(over.taken(np.array([at])), without=others) for at, program in enumerate(programs))
        if least is not None and least > NEGLIGIBLE_EXCESS * max(1.0, limits.max_disk_write_bytes):
            needed, most = least + limits.max_disk_write_bytes, limits.max_disk_write_bytes
            return PolicyError(
                f"{pair} write at least {in_gib(round(needed))} to disk, allowed are {in_gib(round(most))}"
            )
    optima = (program.optimum(without=(LATENCY,)) for program in programs)
    shortest_s = _least(None if optimum is None else optimum.block_s for optimum in optima)
    if shortest_s is None or limits.max_block_s is None:
        return PolicyError(f"the linear program of {pair} could not be solved")
    return PolicyError(f"a block of {pair} takes at least {shortest_s:.4g} s, allowed are {limits.max_block_s:.4g} s")


def _misses(program: Program, shortage: Shortage) -> bool:
    """Whether any excess is more than the solver's rounding."""
    return any(over > NEGLIGIBLE_EXCESS * program.scale(name) for name, over in shortage.excess.items())


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _capacity_error(costs: Costs, place: int, shortage: Shortage, pair: str) -> CapacityError:
    """The error names the tier that is exceeded most, with its holders, in the placement that exceeds tiers least."""
    name = max(shortage.excess, key=lambda known: shortage.excess[known])
    tier = name.removesuffix(" memory")
    held = {holder: costs.value(nbytes, shortage.shares, place) for holder, nbytes in costs.held[tier].items()}
    holders = {holder: round(nbytes) for holder, nbytes in held.items() if nbytes >= 1}
    free = costs.machine.capacity_bytes[tier]
    needed = free + max(1, round(shortage.excess[name]))
    hint = f"give {OPTIONS[tier]} at least {gib_to_give(needed)}"
    if costs.blocks.rows[place] > 1:
        hint += ", or take fewer rows per group or groups"
    others = [
        f"{other} by {in_gib(round(over))}" for other, over in shortage.excess.items() if other != name and over >= 1
    ]
    if others:
        hint += f"; also too small: {', '.join(others)}"
    return CapacityError(tier, pair, needed, free, holders, hint)
