"""Which unit of which stage lies where: totals follow the shares, stages stream alike, and some come first."""

from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.architecture.published import published
from flexref.policy import Shares
from flexref.storage.random_weights import random_file
from flexref.testing.strategies import shares
from flexref.tiers.disk import CHUNK_BYTES
from flexref.tiers.placement import place_stages, real_shares
from flexref.tiers.weights_plan import LOADING_PIECES, LOADING_PLACES, WeightsPlan
from flexref.units import Tier

STAGES = st.lists(st.lists(st.integers(1, 1000), min_size=1, max_size=6), min_size=1, max_size=12)


def flat(stages: list[list[int]], placed: list[list[Tier]]) -> tuple[list[int], list[Tier]]:
    return [size for units in stages for size in units], [tier for tiers in placed for tier in tiers]


@given(STAGES, shares(), st.sets(st.integers(0, 11)))
def test_totals_follow_the_shares_as_near_as_the_largest_unit_allows(
    stages: list[list[int]], wanted: Shares, first: set[int]
) -> None:
    first = {number for number in first if number < len(stages)}
    sizes, tiers = flat(stages, place_stages(stages, wanted, first))
    assert len(sizes) == len(tiers)
    slack = 2 * max(sizes) / sum(sizes) + 1e-6
    for tier, share in real_shares(sizes, tiers).items():
        assert abs(share - getattr(wanted, tier)) <= slack


@given(STAGES, shares(), st.sets(st.integers(0, 11)))
def test_stages_that_come_first_lie_on_the_device_whole_if_it_has_room_for_them(
    stages: list[list[int]], wanted: Shares, first: set[int]
) -> None:
    first = {number for number in first if number < len(stages)}
    placed = place_stages(stages, wanted, first)
    needed = sum(sum(stages[number]) for number in first)
    if needed <= wanted.device * sum(map(sum, stages)):
        assert all(tier is Tier.DEVICE for number in first for tier in placed[number])
    else:
        assert placed == place_stages(stages, wanted)


@given(STAGES, shares())
def test_a_tier_without_a_share_gets_nothing(stages: list[list[int]], wanted: Shares) -> None:
    _, tiers = flat(stages, place_stages(stages, wanted, {0}))
    for tier in Tier:
        assert getattr(wanted, tier.value) > 0 or tier not in tiers


@settings(max_examples=20)
@given(name=st.sampled_from(["opt-125m", "opt-1.3b", "opt-6.7b"]), disk=st.floats(0, 1), rest=st.floats(0, 1))
def test_what_passes_through_the_host_when_it_is_loaded_is_not_cut_small(name: str, disk: float, rest: float) -> None:
    """However small the staging slots are: there are at most so many pieces, or they are as large as a disk reads."""
    disk **= 9  # mostly small: then staging slots are, too
    plan = WeightsPlan.of(random_file(published(name)), Shares((1 - disk) * rest, (1 - disk) * (1 - rest), disk), 2)
    runs = [run.nbytes for stage in plan.stages for run in stage.homes[Tier.DEVICE].runs]
    slot = plan.staging_slot_bytes
    assert not (plan.loading_bytes and slot >= CHUNK_BYTES), "then slots do as well"
    place = plan.loading_bytes // LOADING_PLACES or min(CHUNK_BYTES, slot)
    pieces = sum(-(-nbytes // place) for nbytes in runs) - len(runs)
    assert pieces <= max(LOADING_PIECES, sum(runs) // CHUNK_BYTES)
