"""A sensible policy from budgets alone: of the candidates that fit, the one that moves the fewest bytes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flexref.backend.protocol import Capabilities
from flexref.engine.plan import BlockPlan, Lengths, check_fits, engine_needs, plan_block, slots_of, totals
from flexref.errors import CapacityError
from flexref.policy import Policy, Shares
from flexref.storage.weightfile import WeightFile
from flexref.tiers.transfer import Tier
from flexref.tiers.weights_plan import WeightsPlan

GRID = 8
"""Shares of weights are tried in steps of 1 / GRID."""

DISK_COST = 8.0
"""A byte from disk costs about as much time as so many over the link to the device: 2 GB/s against 16 (PCIe 3)."""

ROWS_PER_GROUP_MOST, GROUPS_MOST = 64, 8
"""Larger groups and blocks gain little and hold much."""

PLACES = (Shares(1, 0, 0), Shares(0, 1, 0), Shares(0, 0, 1))


@dataclass(frozen=True)
class Choice:
    """What there is to choose from: a file, a port, budgets, and the rows of the whole job in order."""

    file: WeightFile
    caps: Capabilities
    budgets: Mapping[Tier, int | None]
    rows: Sequence[Lengths]
    base: Policy

    @cached_property
    def weights(self) -> list[tuple[Shares, WeightsPlan]]:
        """Every placement of weights that is tried."""
        grid = ((device, host) for device in range(GRID + 1) for host in range(GRID + 1 - device))
        shares = [Shares.of(device / GRID, host / GRID) for device, host in grid]
        return [(share, WeightsPlan.of(self.file, share, slots_of(self.base))) for share in shares]

    def policies(self) -> Iterator[Policy]:
        """Group and block sizes with each placement of cache and activations."""
        most = min(len(self.rows), ROWS_PER_GROUP_MOST)
        sizes = {most, *(size for size in (1, 4, 16, 32) if size < most)}
        for rows_per_group in sorted(sizes, reverse=True):
            needed = -(-len(self.rows) // rows_per_group)
            for groups in sorted({1, min(2, needed), min(4, needed), min(GROUPS_MOST, needed)}):
                for cache in PLACES:
                    for activations in PLACES:
                        yield self.base.changed(
                            rows_per_group=rows_per_group, groups_per_block=groups, cache=cache, activations=activations
                        )


def blocks_of(rows: Sequence[Any], policy: Policy) -> list[Sequence[Any]]:
    """The rows of each block in order."""
    return [rows[first : first + policy.rows_per_block] for first in range(0, len(rows), policy.rows_per_block)]


def choose_policy(choice: Choice) -> Policy:
    """The cheapest policy that fits; `CapacityError` says by how much the most frugal one does not."""
    best: tuple[float, Policy] | None = None
    for policy in choice.policies():
        largest = max(blocks_of(choice.rows, policy), key=lambda block: sum(row.capacity_tokens for row in block))
        for shares, weights, block in _fitting(choice, policy, largest):
            cost = _cost(choice, policy, weights, block)
            if best is None or cost < best[0]:
                best = cost, policy.changed(weights=shares)
    if best is None:
        _explain(choice)
    assert best is not None
    return best[1]


def _fitting(
    choice: Choice, policy: Policy, rows: Sequence[Lengths]
) -> Iterator[tuple[Shares, WeightsPlan, BlockPlan]]:
    """The placements of weights with which this policy's largest block stays within every budget."""
    blocks: dict[bool, tuple[BlockPlan, dict[Tier, int]]] = {}
    for shares, weights in choice.weights:
        on_device = shares.device == 1
        if on_device not in blocks:
            block = plan_block(weights, choice.caps, policy, rows, expand=False)
            blocks[on_device] = block, totals(block.needs())
        block, held = blocks[on_device]
        sums = totals(weights.needs())
        engine = totals(engine_needs(choice.caps))
        fits = all(
            budget is None or held[tier] + sums[tier] + engine[tier] <= budget
            for tier, budget in choice.budgets.items()
        )
        if fits and weights.loading_bytes + sums[Tier.HOST] <= (choice.budgets[Tier.HOST] or 1 << 62):
            yield shares, weights, block


def _cost(choice: Choice, policy: Policy, weights: WeightsPlan, block: BlockPlan) -> float:
    """Weighted bytes that one pass over all rows moves, in bytes over the link to the device."""
    per_block = weights.bytes_at_home(Tier.HOST) + (1 + DISK_COST) * weights.bytes_at_home(Tier.DISK)
    cache = block.cache
    moved = cache.layers * (cache.layer_bytes(Tier.HOST) + (1 + DISK_COST) * cache.layer_bytes(Tier.DISK))
    hidden = block.activations
    moved += 2 * cache.layers * hidden.bytes_at_home(Tier.HOST)
    moved += 2 * cache.layers * (1 + DISK_COST) * hidden.bytes_at_home(Tier.DISK)
    return len(blocks_of(choice.rows, policy)) * float(per_block + moved)


def _explain(choice: Choice) -> None:
    """Nothing fits: raise what the most frugal policy lacks."""
    frugal = choice.base.changed(
        weights=PLACES[2], cache=PLACES[2], activations=PLACES[2], rows_per_group=1, groups_per_block=1
    )
    weights = WeightsPlan.of(choice.file, frugal.weights, slots_of(frugal))
    longest = max(choice.rows, key=lambda row: row.capacity_tokens)
    block = plan_block(weights, choice.caps, frugal, [longest], expand=False)
    needs = [*engine_needs(choice.caps), *weights.needs(), *block.needs()]
    check_fits(needs, choice.budgets)
    raise CapacityError("host", "loading the weights", weights.loading_bytes, choice.budgets[Tier.HOST] or 0, {})
