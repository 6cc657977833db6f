"""The account of a job from what its engine saw: traffic, peaks, and what lay where; it knows no row and no token."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flexref.block.memory_plan import BlockPlan, totals
from flexref.engine.results import Stats
from flexref.tiers.transfer import LINKS, Flow, Tier
from flexref.tiers.weights_plan import WeightsPlan

if TYPE_CHECKING:
    from flexref.block.walk import Walk
    from flexref.engine.engine import Engine


@contextmanager
def memory_of(block: "Walk", engine: "Engine", stats: Stats) -> Iterator[None]:
    """Take all that a block needs and give it back; the seconds of both are `allocate_s`."""
    start = time.perf_counter()
    try:
        block.allocate(engine.arenas)
        stats.allocate_s += time.perf_counter() - start
        yield
    finally:
        start = time.perf_counter()
        block.release()
        stats.allocate_s += time.perf_counter() - start


def fill(
    stats: Stats,
    engine: "Engine",
    flows: Mapping[tuple[str, str], Flow],
    plans: Sequence[BlockPlan],
    weights: WeightsPlan,
) -> None:
    """Write into `stats` what moved, what was held at most, and the bytes and shares of each kind on each tier."""
    stats.direct_disk_reads = engine.direct_disk_reads
    stats.link_bytes = {link: {} for link in LINKS.values()}
    stats.link_s = {link: {} for link in LINKS.values()}
    for (link, kind), flow in sorted(flows.items()):
        stats.link_bytes[link][kind] = flow.nbytes
        stats.link_s[link][kind] = flow.seconds
    stats.peak_bytes = {tier.value: arena.peak_bytes for tier, arena in engine.arenas.items()}
    stats.budget_bytes = {tier.value: budget for tier, budget in engine.budgets.items()}
    largest = max(plans, key=lambda plan: sum(totals(plan.needs()).values()))
    held = {
        "weights": {tier.value: weights.bytes_at_home(tier) for tier in Tier},
        "cache": {tier.value: largest.cache.layers * largest.cache.layer_bytes(tier) for tier in Tier},
        "activations": {tier.value: largest.activations.bytes_at_home(tier) for tier in Tier},
    }
    stats.tier_bytes = held
    for kind, tiers in held.items():
        shares, total = getattr(stats.policy, kind), sum(tiers.values())
        stats.placement[kind] = {
            "planned": {tier.value: getattr(shares, tier.value) for tier in Tier},
            "real": {tier: nbytes / total if total else 0.0 for tier, nbytes in tiers.items()},
        }
