"""Whether what a block needs fits the budgets of the tiers, what to say where it does not, and how far it reads ahead
from disk with what it leaves; it takes no memory.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from flexref.backend.capabilities import Capabilities
from flexref.backend.protocol import Backend
from flexref.block.memory_plan import BlockPlan, Need, plan_block
from flexref.block.rows import JobRows
from flexref.block.workspace import Expansion
from flexref.errors import CapacityError, gib_to_give
from flexref.policy import Policy
from flexref.tiers.weights_plan import LOADING, WeightsPlan
from flexref.units import ALIGNMENT_BYTES, GIB, MIB, Tier, aligned

STAGES_AHEAD = 4
"""Stages that are being read from disk, wait, or are loaded at a time where the policy does not say: with two the disk
waits whenever a stage takes longer than its reading, as the head and the choice of tokens do."""

BYTES_AHEAD = 256 * MIB
"""So much at least, where stages are small: a tenth of a second of a fast disk, in which the host may be late."""


def engine_needs(caps: Capabilities) -> Iterator[Need]:
    """What a port holds whatever it computes."""
    if caps.scratch_bytes:
        yield Tier.DEVICE, "scratch", aligned(caps.scratch_bytes, ALIGNMENT_BYTES)


def lasting_needs(weights: WeightsPlan, caps: Capabilities) -> list[Need]:
    """What is held whatever block runs: by the port, and for the weights."""
    return [*engine_needs(caps), *weights.needs()]


def loading_need(weights: WeightsPlan) -> Need:
    """What loading the weights takes beside that for a while; where there is no room for a block beside it, it is given
    back before there is one.
    """
    return Tier.HOST, LOADING, weights.loading_bytes


def totals(needs: Iterable[Need]) -> dict[Tier, int]:
    """Bytes per tier, each need with its alignment, as the arenas count them."""
    sums = dict.fromkeys(Tier, 0)
    for tier, _, nbytes in needs:
        sums[tier] += aligned(nbytes, ALIGNMENT_BYTES)
    return sums


def check_fits(needs: Sequence[Need], budgets: Mapping[Tier, int | None]) -> None:
    """`CapacityError` for the first tier whose budget the needs exceed: its largest holders, what would help."""
    sums = totals(needs)
    for tier, budget in budgets.items():
        if budget is None or sums[tier] <= budget:
            continue
        holders: dict[str, int] = {}
        for at, holder, nbytes in needs:
            if at is tier:
                holders[holder] = holders.get(holder, 0) + aligned(nbytes, ALIGNMENT_BYTES)
        option = {Tier.DEVICE: "--device-mem-gib", Tier.HOST: "--host-mem-gib", Tier.DISK: "--disk-dir"}[tier]
        least = gib_to_give(sums[tier])
        hint = f"give {option} at least {least}, place less on {tier.value}, or take fewer rows per group"
        raise CapacityError(tier.value, "this policy", sums[tier], budget, holders, hint)


def fit(needs: Sequence[Need], budgets: Mapping[Tier, int | None]) -> bool:
    """Whether they exceed no budget."""
    sums = totals(needs)
    return all(budget is None or sums[tier] <= budget for tier, budget in budgets.items())


def fitting_block(
    weights: WeightsPlan,
    caps: Capabilities,
    policy: Policy,
    rows: JobRows,
    budgets: Mapping[Tier, int | None],
) -> BlockPlan:
    """The memory of a block for `rows` within budgets; weights are expanded as seldom as there is room for.

    Loading the weights must fit too: what it takes for a while can be given back before the block is taken. Raises
    `CapacityError` naming the tier, what is missing and what would help.
    """
    whole = lasting_needs(weights, caps)
    loading = [*whole, loading_need(weights)]
    loads = fit(loading, budgets)
    for expansion in (Expansion.KEPT, Expansion.PER_PASS, Expansion.NEVER):
        plan = plan_block(weights, caps, policy, rows, expansion=expansion)
        needs = [*whole, *plan.needs()]
        if loads and fit(needs, budgets):
            return plan
    # What asks for more of the host comes first: who gives that has given the other's.
    for each in sorted((needs, loading), key=lambda needs: -totals(needs)[Tier.HOST]):
        check_fits(each, budgets)
    raise AssertionError("a plan that exceeds a budget passed its check")


def with_read_ahead(
    policy: Policy, weights: WeightsPlan, block: BlockPlan, caps: Capabilities, budgets: Mapping[Tier, int | None]
) -> Policy:
    """`policy` with `read_ahead_gib` set for a block on `weights`; the same if it is set, or nothing is read from disk.

    `weights` and `block` are those of `policy`, and fit the budgets; what these leave of the host is the most.
    """
    slot, least = weights.staging_slot_bytes, weights.staging_slots
    if policy.read_ahead_gib is not None or not policy.overlap or not slot:
        return policy
    wanted = min(max(STAGES_AHEAD, -(-BYTES_AHEAD // slot)), len(weights.fetched))
    budget = budgets[Tier.HOST]
    if budget is not None:
        left = budget - totals([*lasting_needs(weights, caps), *block.needs()])[Tier.HOST]
        wanted = min(wanted, least + left // slot)
    return policy if wanted <= least else policy.changed(read_ahead_gib=wanted * slot / GIB)


def backend_budgets(backend: Backend, device_bytes: int | None, host_bytes: int | None) -> dict[Tier, int | None]:
    """The budgets that were asked for, and what is free where none was."""
    return {
        Tier.DEVICE: backend.free_bytes("device") if device_bytes is None else device_bytes,
        Tier.HOST: backend.free_bytes("host") if host_bytes is None else host_bytes,
        Tier.DISK: None,
    }
