"""The room for rows that differ, as the linear program counts it, beside the room that a block is cut to."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.published import size_named
from flexref.block.counted_rows import CountedRows
from flexref.block.rooms import BlockRooms
from flexref.block.rows import RowLengths
from flexref.machine.plain import plain_machine
from flexref.planner.situation import Situation
from flexref.policy import Policy
from flexref.storage.random_weights import random_file
from flexref.units import Tier

LENGTHS = st.builds(RowLengths, st.integers(1, 60), st.integers(1, 30))


def situation_of(rows: CountedRows) -> Situation:
    spec = size_named("tiny")
    assert spec is not None
    return Situation(random_file(spec), plain_machine(), rows, Policy())


@given(st.lists(LENGTHS, min_size=2, max_size=60), st.integers(1, 8), st.integers(1, 4))
def test_no_block_has_more_room_than_is_counted_but_for_a_token_a_row(
    rows: list[RowLengths], rows_per_group: int, groups: int
) -> None:
    counted = CountedRows.of(rows)
    found = situation_of(counted).task.rooms
    if found is None:
        assert len(set(rows)) == 1
        return
    policy = Policy(rows_per_group=rows_per_group, groups_per_block=groups)
    block = BlockRooms.of(counted, policy)
    held = float(sum(room.rows for room in block.groups))
    largest = np.array([float(max(room.rows for room in block.groups))])
    for each, name in ((found.capacity_tokens, "tokens"), (found.prompt_tokens, "new_tokens")):
        real = sum(getattr(room, name)[tier] for room in block.groups for tier in Tier)
        counted_tokens = held * each(largest, np.array([held]))[0]
        if held == len(rows):
            assert counted_tokens >= real - 1e-6
        else:
            assert real <= counted_tokens + held + len(block.groups) * 90


def test_a_large_block_has_the_room_that_is_counted() -> None:
    draw = np.random.default_rng(0)
    rows = CountedRows.of_runs(draw.integers(16, 513, 2000), draw.integers(1, 129, 2000), np.ones(2000))
    found = situation_of(rows).task.rooms
    assert found is not None
    block = BlockRooms.of(rows, Policy(rows_per_group=64, groups_per_block=4))
    real = sum(room.tokens[Tier.DEVICE] for room in block.groups)
    each = found.capacity_tokens(np.array([64.0]), np.array([256.0]))[0]
    assert real == pytest.approx(256 * each, rel=0.005)
    assert each < 0.65 * max(row.capacity_tokens for row in rows.kinds)
