"""Places that are lent and given back, rows that wait for them, and the rooms that are cut for a job's rows."""

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.block.admission import Waiting, longest_first
from flexref.block.places import GroupPlaces, TierPlaces
from flexref.block.rooms import BlockRooms
from flexref.block.rows import AlikeRows, Row, RowLengths
from flexref.policy import Policy
from flexref.testing import strategies as own
from flexref.tiers.cache_plan import GroupRoom, RowPlace
from flexref.units import Tier

LENGTHS = st.builds(RowLengths, st.integers(1, 12), st.integers(1, 6))
KINDS = st.lists(LENGTHS, min_size=1, max_size=4)

# Places


@given(st.integers(0, 20), st.integers(0, 4), st.lists(st.integers(-9, 9), max_size=30))
def test_places_never_overlap_and_all_come_back(tokens: int, rows: int, asked: list[int]) -> None:
    """A positive number asks for so many tokens, another one gives the oldest place, or a later one, back."""
    places, lent = TierPlaces(Tier.HOST, tokens, rows), list[RowPlace]()
    for number in asked:
        if number > 0:
            longest, place = places.longest, places.take(number)
            assert (place is not None) == (number <= longest)
            if place is not None:
                assert (place.home, place.capacity_tokens) == (Tier.HOST, number)
                lent.append(place)
        elif lent:
            places.give_back(lent.pop(number % len(lent)))
        spans = Counter(record for place in lent for record in range(place.start, place.end))
        assert all(count == 1 and 0 <= record < tokens for record, count in spans.items())
        free = [record not in spans for record in range(tokens)]
        runs = "".join(" x"[here] for here in free).split()
        assert places.longest == (max(map(len, runs), default=0) if len(lent) < rows else 0)
    for place in lent:
        places.give_back(place)
    assert places.longest == (tokens if rows else 0), "runs that touch are one again"
    assert places.rows_left == rows


def test_the_shortest_run_that_is_long_enough_is_taken() -> None:
    places = TierPlaces(Tier.DEVICE, 12, 9)
    lent = [places.take(tokens) for tokens in (2, 1, 4, 1, 4)]
    for number in (0, 2):
        place = lent[number]
        assert place is not None
        places.give_back(place)
    assert places.take(2) == RowPlace(Tier.DEVICE, 0, 2)
    assert places.take(2) == RowPlace(Tier.DEVICE, 3, 2)


def test_what_is_free_is_not_given_back() -> None:
    places = TierPlaces(Tier.DEVICE, 6, 2)
    place = places.take(3)
    assert place is not None
    places.give_back(place)
    for wrong in (place, RowPlace(Tier.DEVICE, 2, 2)):
        with pytest.raises(ValueError, match="was given back, and some of it is free"):
            places.give_back(wrong)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=3),
    st.integers(1, 5),
    st.lists(st.integers(1, 9), max_size=9),
)
def test_a_group_has_no_more_rows_on_a_tier_than_a_pass_can_feed(
    made: list[tuple[int, int]], rows: int, asked: list[int]
) -> None:
    """Each row gets a token in every pass, if it only generates: that many tokens of the tier a pass has room for."""
    room = GroupRoom(
        rows,
        {tier: tokens for tier, (tokens, _) in zip(Tier, made, strict=True)},
        {tier: new for tier, (_, new) in zip(Tier, made, strict=True)},
    )
    places = GroupPlaces(room)
    lent = [place for tokens in asked if (place := places.take(tokens)) is not None]
    here = Counter(place.home for place in lent)
    assert len(lent) == rows - places.rows_left <= rows
    assert all(here[tier] <= room.new_tokens[tier] for tier in Tier)
    for place in lent:
        places.give_back(place)
    assert list(places.free_runs()) == [(tier, 0, room.tokens[tier]) for tier in Tier if room.tokens[tier]]


# Who waits


def rows_of(lengths: list[RowLengths]) -> list[Row]:
    return [Row(number, (0,) * each.prompt_tokens, each.new_tokens) for number, each in enumerate(lengths)]


@given(st.lists(LENGTHS, max_size=40), st.integers(1, 6), st.data())
def test_nobody_is_overtaken_by_more_rows_than_the_window_has(
    lengths: list[RowLengths], window: int, data: st.DataObject
) -> None:
    rows, taken = rows_of(lengths), 0

    def stream() -> Iterator[Row]:
        nonlocal taken
        for row in rows:
            taken += 1
            yield row

    waiting, entered = Waiting(stream(), window), list[int]()
    while not waiting.come_to_an_end:
        waiting.refill()
        assert len(waiting) == min(window, len(rows) - len(entered)), "as many are looked at as there may be"
        assert taken == len(waiting) + len(entered)
        most = data.draw(st.sampled_from([3, 8, 99]))
        before = waiting.rows
        row = waiting.take(lambda row: row.lengths.capacity_tokens <= most)  # noqa: B023
        oldest = before[0] if before else None
        if row is not None:
            assert row.lengths.capacity_tokens <= most
            entered.append(row.number)
            fitting = [each for each in before if each.lengths.capacity_tokens <= most]
            assert row is oldest or row is min(fitting, key=lambda each: (*longest_first(each.lengths), each.number))
        if most == 99 and oldest is not None:
            assert row is not None, "if all fit one enters"
        for waits in waiting.rows:
            assert sum(number > waits.number for number in entered) <= window
    assert sorted(entered) == list(range(len(rows)))


@given(st.lists(LENGTHS, max_size=12), st.integers(1, 4))
def test_rows_in_order_enter_as_they_came(lengths: list[RowLengths], window: int) -> None:
    waiting, entered = Waiting(rows_of(lengths), window, in_order=True), list[int]()
    while not waiting.come_to_an_end:
        waiting.refill()
        oldest = waiting.rows[:1]
        if oldest:
            too_few = oldest[0].lengths.capacity_tokens - 1
            assert waiting.take(lambda row: row.lengths.capacity_tokens <= too_few) is None  # noqa: B023
        entered += [row.number for row in [waiting.take(lambda row: True)] if row is not None]
    assert entered == list(range(len(lengths)))


@pytest.mark.parametrize("given", [0, 1, 3, 5])
def test_what_an_iterator_raises_is_raised_once_and_what_it_had_given_waits(given: int) -> None:
    def stream() -> Iterator[Row]:
        yield from rows_of([RowLengths(1, 1)] * given)
        raise ZeroDivisionError

    waiting, entered = Waiting(stream(), 2), 0
    for _ in range(given - 1):  # the window has two: what comes after those is not asked for yet
        waiting.refill()
        entered += waiting.take(lambda row: True) is not None
    with pytest.raises(ZeroDivisionError):
        waiting.refill()
    waiting.refill()
    assert len(waiting) == given - entered
    assert waiting.come_to_an_end == (given == entered)


# Rooms


@given(KINDS, st.integers(1, 12), own.policies(), st.none() | st.integers(1, 4), st.booleans())
def test_every_row_of_a_job_fits_some_group_alone_and_all_go_through(
    kinds: list[RowLengths], count: int, policy: Policy, chunk: int | None, scored: bool
) -> None:
    rows = [kinds[number % len(kinds)] for number in range(count)]
    if scored:
        rows = [RowLengths(row.prompt_tokens, 1, row.prompt_tokens) for row in rows]
    rooms = BlockRooms.of(rows, policy.changed(prompt_chunk_tokens=chunk))
    assert sum(room.rows for room in rooms.groups) == min(count, policy.rows_per_block)
    assert all(room.rows <= policy.rows_per_group for room in rooms.groups)
    assert len(rooms.groups) <= policy.groups_per_block
    for row in rows:
        assert any(GroupPlaces(room).take(row.capacity_tokens) is not None for room in rooms.groups)
    for room in rooms.groups:
        for tier in Tier:
            assert room.tokens[tier] == 0 or room.new_tokens[tier] > 0, "a row there could never go on"
            if chunk is not None and not scored:
                assert room.new_tokens[tier] <= chunk * room.rows
    assert rooms.scores == scored
    if scored:
        assert all(room.new_tokens == room.tokens for room in rooms.groups), "rows are fed whole"
        assert all(not room.tokens[tier] for room in rooms.groups for tier in (Tier.HOST, Tier.DISK))


def one_of_each(rooms: BlockRooms, policy: Policy) -> None:
    """Whole prompts are read at once: attention runs on the host for one token of every row, if it ever does."""
    for room in rooms.groups:
        within = room.in_place
        off_device = within.new_tokens[Tier.HOST] + within.new_tokens[Tier.DISK]
        assert within.away_tokens == min(room.rows, off_device)
        assert not within.tokens[Tier.DEVICE]
        for part, whole in ((within.tokens, room.tokens), (within.new_tokens, room.new_tokens)):
            for tier in (Tier.HOST, Tier.DISK):
                assert part[tier] <= whole[tier]
                assert policy.shares_attention < 1 or part[tier] == whole[tier]
                assert policy.shares_attention > 0 or not part[tier]


@given(LENGTHS, st.integers(1, 30), own.policies())
def test_equal_rows_get_exactly_what_they_need(row: RowLengths, count: int, policy: Policy) -> None:
    rooms = BlockRooms.of([row] * count, policy)
    assert rooms == BlockRooms.of(AlikeRows(row, count), policy)
    for room in rooms.groups:
        assert sum(room.tokens.values()) == room.rows * row.capacity_tokens
        assert sum(room.new_tokens.values()) == room.rows * row.prompt_tokens
        assert all(room.tokens[tier] % row.capacity_tokens == 0 for tier in Tier)
        places = GroupPlaces(room)
        assert all(places.take(row.capacity_tokens) is not None for _ in range(room.rows)), "all are in at once"
    one_of_each(rooms, policy)
    assert rooms.single_pass == (row.new_tokens == 1 and count <= policy.rows_per_block)


@given(KINDS, own.policies())
def test_rows_that_all_have_places_take_what_they_need_and_no_more(kinds: list[RowLengths], policy: Policy) -> None:
    rows = kinds[: policy.rows_per_block]
    rooms = BlockRooms.of(rows, policy)
    tokens = sum(sum(room.tokens.values()) for room in rooms.groups)
    assert tokens == sum(row.capacity_tokens for row in rows)
    one_of_each(rooms, policy)
