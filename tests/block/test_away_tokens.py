"""Attention on the host has room for so many tokens: a pass feeds no more of rows off the device that hold any."""

from hypothesis import given
from hypothesis import strategies as st

from flexref.backend.records import RecordLayout
from flexref.block.admission import Waiting
from flexref.block.block_rows import BlockRows
from flexref.block.rows import Row
from flexref.tiers.cache_plan import CachePlan, GroupRoom, InPlace
from flexref.units import Tier


@given(
    prompts=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    away=st.integers(3, 9),
    pieces=st.integers(3, 12),
    crossing=st.sampled_from((0, 42, 70)),
)
def test_no_pass_feeds_more_of_rows_that_are_away_than_there_is_room_for(
    prompts: list[int], away: int, pieces: int, crossing: int
) -> None:
    tokens = {Tier.DEVICE: 20, Tier.HOST: 120, Tier.DISK: 0}
    nothing = dict.fromkeys(Tier, 0)
    in_place = InPlace({**nothing, Tier.HOST: 120 - crossing}, {**nothing, Tier.HOST: pieces}, away)
    new_tokens = {Tier.DEVICE: 20, Tier.HOST: pieces + (3 if crossing else 0), Tier.DISK: 0}
    room = GroupRoom(3, tokens, new_tokens, in_place=in_place)
    plan = CachePlan(RecordLayout(1, 4, "float32"), 1, (room,), 1)
    made = [Row(number, (5,) * length, 3) for number, length in enumerate(prompts)]
    waiting = Waiting(made, 20)
    waiting.refill()
    rows, passes = BlockRows(plan, waiting, None), 0
    while rows.alive():
        (group,) = rows.groups
        assert sum(row.new for row in group.in_pass if row.is_away) <= away
        first_pass = [row for row in group.in_pass if row.place.in_place and not row.past]
        assert sum(row.new for row in first_pass) <= pieces
        assert all(row.place.start >= crossing for row in group.in_pass if row.place.in_place)
        rows.skip_pass()
        passes += 1
        assert passes < 2000, "rows that nothing is fed of wait for ever"
    assert all(len(row.tokens) == 3 for row in made)
