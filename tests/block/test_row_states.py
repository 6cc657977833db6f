"""What a pass has of rows: what they have seen and what is due, whatever the pass feeds of each of them."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.spec import POSITION_OFFSET
from flexref.backend.records import RecordLayout
from flexref.block.admission import Waiting
from flexref.block.block_rows import BlockRows
from flexref.block.group import Group
from flexref.block.rows import Fed, Row, RowLengths, TokenEvent
from flexref.tiers.cache_plan import CachePlan, GroupRoom, RowPass, RowPlace
from flexref.units import Tier

IDS = st.integers(4, 99)
PROMPTS = st.lists(st.lists(IDS, min_size=1, max_size=6).map(tuple), min_size=1, max_size=4)
ROOMY = 1000
"""More tokens than any pass here feeds, and than any cache here holds."""


def on_device(tokens: int) -> dict[Tier, int]:
    return {Tier.DEVICE: tokens, Tier.HOST: 0, Tier.DISK: 0}


def as_they_lie(rows: Sequence[RowPass]) -> list[int]:
    return sorted(range(len(rows)), key=lambda number: rows[number].place.start)


def group_of(rows: list[Row], new_tokens: int = ROOMY, chunk: int | None = None) -> Group:
    """A group on the device of all these rows, whose caches follow each other."""
    group = Group(0, GroupRoom(len(rows), on_device(ROOMY), on_device(new_tokens)), as_they_lie, chunk)
    start = 0
    for row in rows:
        row.place = RowPlace(Tier.DEVICE, start, row.lengths.capacity_tokens)
        start = row.place.end
        group.enter(row)
    group.look()
    return group


def started(prompt: tuple[int, ...], passes: int, number: int = 0) -> Row:
    """A row that has gone through so many passes."""
    row = Row(number, prompt, limit=9)
    for token in range(passes):
        row.push(token)
    return row


@given(
    st.lists(IDS, min_size=1, max_size=9).map(tuple),
    st.lists(IDS, min_size=1, max_size=6),
    st.data(),
)
def test_every_token_but_the_last_is_fed_once_and_in_order_however_prompts_are_cut(
    prompt: tuple[int, ...], chosen: list[int], data: st.DataObject
) -> None:
    begun_with = data.draw(st.integers(0, len(chosen) - 1))
    room, chunk = data.draw(st.integers(1, 12)), data.draw(st.none() | st.integers(1, 12))
    row, fed = Row(0, prompt, len(chosen), chosen[:begun_with]), list[int]()
    group = group_of([row], room, chunk)
    given_tokens, read = len(prompt) + begun_with, 0
    while row.finish_reason is None:
        (in_pass,), before = group.in_pass, len(row.tokens)
        due = len(prompt) + before - len(fed)
        most = min(due, room) if chunk is None or due == 1 else min(due, room, chunk)
        assert in_pass == RowPass(row.place, len(fed), most)
        np.testing.assert_array_equal(group.position_ids(), np.arange(len(fed), len(fed) + most) + POSITION_OFFSET)
        reads = len(fed) < given_tokens
        assert group.fed_in_pass == Fed(1, most if reads else 0, 0 if reads else most)
        read += group.fed_in_pass.prompt_tokens
        fed += group.token_ids().tolist()
        ready = most == due
        assert group.ready == ([0] if ready else [])
        assert group.last_tokens().tolist() == ([most - 1] if ready else [])
        assert group.lasts_longer() == (not ready or before + 1 < len(chosen))
        events = group.accept([chosen[before]] if ready else [], lambda row: None)
        assert events == ([TokenEvent(0, chosen[before], row.finish_reason)] if ready else [])
        assert row.seen == len(fed)
        assert not row.finish_reason or not group.lasts_longer()
        group.look()
    assert fed == [*prompt, *chosen[:-1]]
    assert len(fed) == row.lengths.capacity_tokens
    assert read == given_tokens
    assert (row.tokens, row.finish_reason) == (chosen, "length")


@given(PROMPTS, st.data())
def test_prompts_and_single_tokens_may_be_fed_in_one_pass(prompts: list[tuple[int, ...]], data: st.DataObject) -> None:
    passes = [data.draw(st.integers(0, 3)) for _ in prompts]
    rows = [started(*each, number) for number, each in enumerate(zip(prompts, passes, strict=True))]
    group = group_of(rows)
    sizes = [1 if taken else len(prompt) for prompt, taken in zip(prompts, passes, strict=True)]
    assert group.tokens == sum(sizes)
    of_prompts = sum(size for size, taken in zip(sizes, passes, strict=True) if not taken)
    assert group.fed_in_pass == Fed(len(rows), of_prompts, sum(sizes) - of_prompts)
    places = [
        position
        for prompt, taken in zip(prompts, passes, strict=True)
        for position in (range(len(prompt)) if not taken else [len(prompt) + taken - 1])
    ]
    np.testing.assert_array_equal(group.position_ids(), np.array(places) + POSITION_OFFSET)
    np.testing.assert_array_equal(group.last_tokens(), np.cumsum(sizes) - 1)
    np.testing.assert_array_equal(group.row_numbers(), np.repeat(np.arange(len(rows)), sizes))
    events = group.accept(range(len(rows)), lambda row: "stop" if row.number == 0 else None)
    assert events == [TokenEvent(row.number, row.number, "stop" if row.number == 0 else None) for row in rows]
    assert group.leave() == rows[:1]
    group.look()
    assert group.fed == group.rows == rows[1:]
    assert group.fed_in_pass == Fed(len(rows) - 1, 0, len(rows) - 1)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=5),
    st.none() | st.integers(1, 5),
    st.data(),
)
def test_of_prompts_a_pass_reads_what_there_is_room_for_and_rows_that_generate_never_wait(
    made: list[tuple[int, int]], chunk: int | None, data: st.DataObject
) -> None:
    room = data.draw(st.integers(len(made), 12))
    rows = [started((5,) * prompt, passes, number) for number, (prompt, passes) in enumerate(made)]
    group = group_of(rows, room, chunk)
    new = {row.number: of_row.new for row, of_row in zip(group.fed, group.in_pass, strict=True)}
    assert sum(new.values()) == group.tokens <= room
    generating = [row for row in rows if row.due_tokens == 1]
    assert all(new[row.number] == 1 for row in generating)
    left = room - len(generating)
    for row in rows:
        if row.due_tokens > 1:
            most = min(left, row.due_tokens, chunk or left)
            assert new.get(row.number, 0) == most, "those that entered first come first"
            left -= most
    assert [row.number for row in group.ready_rows] == [
        row.number for row in rows if new.get(row.number) == row.due_tokens
    ]


def test_a_row_is_fed_from_where_it_was_left_even_inside_its_prompt() -> None:
    row = Row(0, (5, 6, 7), limit=4, seen=2)
    assert (row.due_tokens, row.fed(1), row.is_reading) == (1, (7,), True)
    row = Row(0, (5, 6, 7), limit=4, tokens=[8, 9])  # seen nothing: its cache was lost, say
    assert (row.due_tokens, row.fed(5), row.fed(4), row.fed(2)) == (5, (5, 6, 7, 8, 9), (5, 6, 7, 8), (5, 6))
    assert (row.is_reading, row.given_tokens) == (True, 5)
    row.push(10)
    assert (row.due_tokens, row.fed(1), row.is_reading) == (1, (10,), False)
    assert row.lengths == RowLengths(3, 4), "what it may take is what it might have taken from its beginning"


def block(prompts: list[tuple[int, ...]], limits: list[int], places: int) -> BlockRows:
    """A block of one group, which has so many places."""
    room = GroupRoom(places, on_device(ROOMY), on_device(ROOMY))
    plan = CachePlan(RecordLayout(1, 1, "float32"), 1, (room,), slots=1)
    rows = [Row(number, *each) for number, each in enumerate(zip(prompts, limits[: len(prompts)], strict=True))]
    waiting = Waiting(rows, window=2)
    waiting.refill()
    return BlockRows(plan, waiting, prompt_chunk_tokens=2)


@given(PROMPTS, st.lists(st.integers(1, 4), min_size=4, max_size=4), st.integers(1, 3))
def test_skipped_passes_leave_rows_as_passes_do(prompts: list[tuple[int, ...]], limits: list[int], places: int) -> None:
    """And let others in, of which there are more than places."""

    skipped, run = (block(prompts, limits, places) for _ in range(2))
    while run.alive():
        run.end_pass(0, [0] * len(run.groups[0].ready), lambda row: None)
        run.waiting.refill()
        skipped.skip_pass()
        mine, theirs = ([(row.number, row.tokens, row.seen) for row in each.groups[0].rows] for each in (skipped, run))
        assert mine == theirs
        assert skipped.groups[0].in_pass == run.groups[0].in_pass
    assert skipped.admission.retired == run.admission.retired == len(prompts)


@given(
    PROMPTS,
    st.lists(st.integers(1, 6), min_size=4, max_size=4),
    st.integers(1, 3),
    st.sets(st.tuples(st.integers(0, 3), st.integers(1, 5))),
    st.lists(st.booleans(), min_size=1, max_size=9),
)
def test_what_was_foreseen_of_a_pass_is_what_is_found_whoever_ends_and_comes(
    prompts: list[tuple[int, ...]],
    limits: list[int],
    places: int,
    stops: set[tuple[int, int]],
    foresees: list[bool],
) -> None:
    """`stops`: (row, tokens) with which a row ends before its limit, which nobody foresees."""

    def judge(row: Row) -> str | None:
        return "stop" if (row.number, len(row.tokens)) in stops else None

    foreseeing, plain = (block(prompts, limits, places) for _ in range(2))
    passes = 0
    while plain.alive():
        mine, other = foreseeing.groups[0], plain.groups[0]
        assert (mine.in_pass, mine.tokens, [*mine.ready]) == (other.in_pass, other.tokens, other.ready)
        assert [row.number for row in mine.fed] == [row.number for row in other.fed]
        assert mine.fed_in_pass == other.fed_in_pass
        if other.decodes:
            parts = (other.token_ids(), other.position_ids(), other.last_tokens())
            found = mine.whole_pass()
            np.testing.assert_array_equal(found, np.concatenate(parts))
            assert found.dtype == np.int32
        there = [row.number for row in other.rows]
        foreseen = mine.foresee() if foresees[passes % len(foresees)] else None
        chosen = [10 * passes + number for number in range(len(other.ready))]
        assert foreseeing.end_pass(0, chosen, judge) == plain.end_pass(0, chosen, judge)
        if foreseen is not None and [row.number for row in other.rows] == there:
            assert mine.in_pass is foreseen.in_pass
        foreseeing.waiting.refill()
        plain.waiting.refill()
        passes += 1
    assert not foreseeing.alive()
