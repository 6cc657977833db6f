"""A sensible policy from budgets alone: of the candidates that fit, the one that moves the fewest bytes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from flexref.backend.protocol import Capabilities
from flexref.engine.plan import (
    BlockPlan,
    Lengths,
    check_fits,
    engine_needs,
    plan_block,
    slots_of,
    table_on_device,
    totals,
)
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


@dataclass(frozen=True, slots=True)
class Candidate:
    """One placement of weights, with what it holds on each tier and what one fetch of all stages costs."""

    shares: Shares
    plan: WeightsPlan
    sums: Mapping[Tier, int]
    cost: float

    @classmethod
    def of(cls, file: WeightFile, shares: Shares, slots: int) -> "Candidate":
        """Cost: bytes over the link to the device, disk reads weighted."""
        plan = WeightsPlan.of(file, shares, slots)
        cost = plan.bytes_at_home(Tier.HOST) + (1 + DISK_COST) * plan.bytes_at_home(Tier.DISK)
        return cls(shares, plan, totals(plan.needs()), cost)


@dataclass(frozen=True)
class Choice:
    """What there is to choose from: a file, a port, budgets, and the rows of the whole job in order."""

    file: WeightFile
    caps: Capabilities
    budgets: Mapping[Tier, int | None]
    rows: Sequence[Lengths]
    keep: Mapping[str, Any]
    """Fields of `Policy` that were asked for and are not chosen."""

    @cached_property
    def base(self) -> Policy:
        """The policy of which all that is not kept may change."""
        return Policy(**self.keep)

    @cached_property
    def weights(self) -> list[Candidate]:
        """Every placement of weights that is tried."""
        grid = ((device, host) for device in range(GRID + 1) for host in range(GRID + 1 - device))
        shares = [Shares.of(device / GRID, host / GRID) for device, host in grid]
        return [Candidate.of(self.file, share, slots_of(self.base)) for share in shares]

    def worst_rows(self, count: int) -> list[Lengths]:
        """Rows that need at least as much, group by group, as any `count` rows of the job: the longest of each length.

        Holds because a policy that is tried puts all caches, and all activations, on one tier.
        """
        prompts = sorted((row.prompt_tokens for row in self.rows), reverse=True)[:count]
        capacities = sorted((row.capacity_tokens for row in self.rows), reverse=True)[:count]
        return [Lengths(*lengths) for lengths in zip(prompts, capacities, strict=True)]

    def policies(self) -> Iterator[Policy]:
        """Group and block sizes with each placement of cache and activations."""
        most = min(len(self.rows), ROWS_PER_GROUP_MOST)
        sizes = {most, *(size for size in (1, 4, 16, 32) if size < most)}
        if "rows_per_group" in self.keep:
            sizes = {self.base.rows_per_group}
        for rows_per_group in sorted(sizes, reverse=True):
            needed = -(-len(self.rows) // rows_per_group)
            counts = {1, min(2, needed), min(4, needed), min(GROUPS_MOST, needed)}
            if "groups_per_block" in self.keep:
                counts = {self.base.groups_per_block}
            for groups in sorted(counts):
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
        blocks = blocks_of(choice.rows, policy)
        for weights, block in _fitting(choice, policy, choice.worst_rows(policy.rows_per_block)):
            cost = len(blocks) * (weights.cost + _moved(block))
            if best is None or cost < best[0]:
                best = cost, policy.changed(weights=weights.shares)
        if best is not None and best[0] == 0:
            break
    return best[1] if best is not None else _explain(choice)


def _fitting(choice: Choice, policy: Policy, rows: Sequence[Lengths]) -> Iterator[tuple[Candidate, BlockPlan]]:
    """The placements of weights with which this policy's largest block stays within every budget."""
    blocks: dict[bool, tuple[BlockPlan, dict[Tier, int]]] = {}
    engine = totals(engine_needs(choice.caps))
    for weights in choice.weights:
        on_device = table_on_device(weights.plan)
        if on_device not in blocks:
            block = plan_block(weights.plan, choice.caps, policy, rows, expand=False)
            blocks[on_device] = block, totals(block.needs())
        block, held = blocks[on_device]
        # Weights are loaded before there is a block.
        needed = {tier: weights.sums[tier] + engine[tier] + held[tier] for tier in Tier}
        needed[Tier.HOST] = max(needed[Tier.HOST], weights.sums[Tier.HOST] + weights.plan.loading_bytes)
        if all(budget is None or needed[tier] <= budget for tier, budget in choice.budgets.items()):
            yield weights, block


def _moved(block: BlockPlan) -> float:
    """Weighted bytes of cache and hidden states that one pass over the block moves."""
    cache, hidden = block.cache, block.activations
    moved = cache.layers * (cache.layer_bytes(Tier.HOST) + (1 + DISK_COST) * cache.layer_bytes(Tier.DISK))
    return moved + 2 * cache.layers * (
        hidden.bytes_at_home(Tier.HOST) + (1 + DISK_COST) * hidden.bytes_at_home(Tier.DISK)
    )


def _explain(choice: Choice) -> NoReturn:
    """Nothing fits: raise what the most frugal policy lacks."""
    fewest = {name: 1 for name in ("rows_per_group", "groups_per_block") if name not in choice.keep}
    frugal = choice.base.changed(weights=PLACES[2], cache=PLACES[2], activations=PLACES[2], **fewest)
    weights = WeightsPlan.of(choice.file, frugal.weights, slots_of(frugal))
    block = plan_block(weights, choice.caps, frugal, choice.worst_rows(frugal.rows_per_block), expand=False)
    whole = [*engine_needs(choice.caps), *weights.needs()]
    check_fits([*whole, *block.needs()], choice.budgets)
    check_fits([*whole, (Tier.HOST, "loading", weights.loading_bytes)], choice.budgets)
    raise AssertionError("a policy that fits was not found")
