"""Attention on the host has room for so many tokens: a pass feeds no more of rows off the device that hold any."""

from hypothesis import given
from hypothesis import strategies as st

from flexref.backend.records import RecordLayout
from flexref.block.admission import Waiting
from flexref.block.block_rows import BlockRows
from flexref.block.rows import Row
from flexref.tiers.cache_plan import CachePlan, GroupRoom
from flexref.units import Tier


@given(prompts=st.lists(st.integers(1, 40), min_size=1, max_size=12), away=st.integers(3, 9), pieces=st.integers(3, 12))
def test_no_pass_feeds_more_of_rows_that_are_away_than_there_is_room_for(
    prompts: list[int], away: int, pieces: int
) -> None:
    tokens = {Tier.DEVICE: 20, Tier.HOST: 120, Tier.DISK: 0}
    room = GroupRoom(3, tokens, {Tier.DEVICE: 20, Tier.HOST: pieces, Tier.DISK: 0}, away_tokens=away)
    plan = CachePlan(RecordLayout(1, 4, "float32"), 1, (room,), True, 1)
    made = [Row(number, (5,) * length, 3) for number, length in enumerate(prompts)]
    waiting = Waiting(made, 20)
    waiting.refill()
    rows, passes = BlockRows(plan, waiting, None), 0
    while rows.alive():
        (group,) = rows.groups
        assert sum(row.new for row in group.in_pass if plan.is_away(row)) <= away
        rows.skip_pass()
        passes += 1
        assert passes < 2000, "rows that nothing is fed of wait for ever"
    assert all(len(row.tokens) == 3 for row in made)
