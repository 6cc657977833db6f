"""Which piece lies on which tier, for given shares: sizes in, tiers out; it moves nothing.

Pieces cannot be cut, so a share is met over all of them together: what one stage has too little of the next has more
of. Thus every stage streams about the same bytes, and the real share of the whole is as near as the pieces allow.
Some stages may come first: the token table is read at both ends of a pass, where nothing hides its transfers.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import combinations

from flexref.policy import Shares
from flexref.units import Tier

SUBSET_LIMIT = 12
"""Up to so many pieces every subset of a stage is tried; a decoder layer has six."""


def place_stages(stage_bytes: Sequence[Sequence[int]], shares: Shares, first: Collection[int] = ()) -> list[list[Tier]]:
    """The tier of every unit of every stage (bytes per unit given), so that totals follow `shares`.

    The stages numbered in `first` go to the device, if it has room for all of them; the others share what is left.
    Stage by stage, the units for the device are the subset whose bytes come nearest to what the device is owed so far
    and likewise for the host; the rest lies on disk.
    """
    preferred, total = (sum(sum(stage_bytes[number]) for number in some) for some in (first, range(len(stage_bytes))))
    room = shares.device * total
    if not preferred or preferred > room or preferred == total:
        return _place_evenly(stage_bytes, shares)
    left = total - preferred
    rest = Shares((room - preferred) / left, shares.host * total / left, shares.disk * total / left)
    others = iter(_place_evenly([units for number, units in enumerate(stage_bytes) if number not in first], rest))
    return [[Tier.DEVICE] * len(units) if number in first else next(others) for number, units in enumerate(stage_bytes)]


def _place_evenly(stage_bytes: Sequence[Sequence[int]], shares: Shares) -> list[list[Tier]]:
    """See `place_stages`; no stage comes before another."""
    owed = {Tier.DEVICE: 0.0, Tier.HOST: 0.0}
    placed: list[list[Tier]] = []
    for units in stage_bytes:
        total = sum(units)
        owed[Tier.DEVICE] += shares.device * total
        owed[Tier.HOST] += shares.host * total
        left = list(range(len(units)))
        tiers = [Tier.DISK] * len(units)
        for tier, share, rest in (
            (Tier.DEVICE, shares.device, shares.host + shares.disk),
            (Tier.HOST, shares.host, shares.disk),
        ):
            if share == 0:
                continue
            # Where nothing is left for a slower tier, rounding must not send a unit there.
            chosen = left if rest == 0 else _nearest_subset(units, left, owed[tier])
            for unit in chosen:
                tiers[unit] = tier
                owed[tier] -= units[unit]
            left = [unit for unit in left if unit not in chosen]
        placed.append(tiers)
    return placed


def _nearest_subset(sizes: Sequence[int], units: Sequence[int], target: float) -> list[int]:
    """The subset of `units` whose sizes sum nearest to `target`; of equals the first in order of size and place."""
    if len(units) > SUBSET_LIMIT:
        raise ValueError(f"a stage has {len(units)} units, at most {SUBSET_LIMIT} are expected")
    subsets = (subset for count in range(len(units) + 1) for subset in combinations(units, count))
    return list(min(subsets, key=lambda subset: abs(sum(sizes[unit] for unit in subset) - target)))


def place_in_order(groups: Sequence[Sequence[int]], shares: Shares) -> list[list[Tier]]:
    """The tier of every item of every group (its size given): in each group first those on the device, then the host.

    An item's place in its group stays as it is: a product's rounding may depend on it, and a result must not depend on
    placement. How many of a group go where follows from what each tier is owed so far.
    """
    owed = {Tier.DEVICE: 0.0, Tier.HOST: 0.0}
    placed = []
    for sizes in groups:
        first, tiers = 0, [Tier.DISK] * len(sizes)
        for tier, share, rest in (
            (Tier.DEVICE, shares.device, shares.host + shares.disk),
            (Tier.HOST, shares.host, shares.disk),
        ):
            owed[tier] += share * sum(sizes)
            lasts = range(first, len(sizes) + 1)
            if share == 0:
                last = first
            elif rest == 0:
                last = len(sizes)
            else:
                last = min(lasts, key=lambda last: abs(sum(sizes[first:last]) - owed[tier]))
            tiers[first:last] = [tier] * (last - first)
            owed[tier] -= sum(sizes[first:last])
            first = last
        placed.append(tiers)
    return placed


def first_in_order(groups: Sequence[Sequence[int]], share: float) -> list[int]:
    """How many items of every group (its size given), the first ones, have that share of all: as `place_in_order`."""
    shares = Shares.of(share, 1 - share)
    return [tiers.count(Tier.DEVICE) for tiers in place_in_order(groups, shares)]


def place_items(sizes: Iterable[int], shares: Shares) -> list[Tier]:
    """The tier of every item (a row's cache, a group's activations), each where most is owed; nowhere for share 0."""
    owed = dict.fromkeys(Tier, 0.0)
    wanted = {Tier.DEVICE: shares.device, Tier.HOST: shares.host, Tier.DISK: shares.disk}
    placed = []
    for size in sizes:
        for tier, share in wanted.items():
            owed[tier] += share * size
        allowed = [tier for tier in Tier if wanted[tier] > 0]
        best = max(allowed, key=lambda tier: owed[tier])
        owed[best] -= size
        placed.append(best)
    return placed


def real_shares(sizes: Iterable[int], tiers: Iterable[Tier]) -> dict[str, float]:
    """What part of the bytes lies on each tier; all 0 where there are none."""
    held = dict.fromkeys(Tier, 0)
    for size, tier in zip(sizes, tiers, strict=True):
        held[tier] += size
    total = sum(held.values())
    return {tier.value: held[tier] / total if total else 0.0 for tier in Tier}
