"""What a pass has of rows: what they have seen and what is due, whatever the pass feeds of each of them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.spec import POSITION_OFFSET
from flexref.block.group import Group
from flexref.block.rows import Fed, Row, TokenEvent

IDS = st.integers(4, 99)
PROMPTS = st.lists(st.lists(IDS, min_size=1, max_size=6).map(tuple), min_size=1, max_size=4)


def started(prompt: tuple[int, ...], passes: int, number: int = 0) -> Row:
    """A row that has gone through so many passes."""
    row = Row(number, prompt, limit=9)
    for token in range(passes):
        row.push(token)
    return row


@given(st.lists(IDS, min_size=1, max_size=6).map(tuple), st.lists(IDS, min_size=1, max_size=6))
def test_every_token_but_the_last_is_fed_once_and_in_order(prompt: tuple[int, ...], chosen: list[int]) -> None:
    row, fed = Row(0, prompt, limit=len(chosen)), []
    for token in chosen:
        in_pass = row.in_pass(3)
        assert (in_pass.place, in_pass.past, in_pass.new) == (3, len(fed), len(row.due))
        assert row.due_prompt_tokens == (0 if fed else len(prompt))
        fed += row.due
        row.push(token)
        assert row.seen == len(fed)
    assert fed == [*prompt, *chosen[:-1]]
    assert len(fed) == row.lengths.capacity_tokens


@given(PROMPTS, st.data())
def test_prompts_and_single_tokens_may_be_fed_in_one_pass(prompts: list[tuple[int, ...]], data: st.DataObject) -> None:
    passes = [data.draw(st.integers(0, 3)) for _ in prompts]
    rows = [started(*each, number) for number, each in enumerate(zip(prompts, passes, strict=True))]
    group = Group(rows)
    sizes = [1 if taken else len(prompt) for prompt, taken in zip(prompts, passes, strict=True)]
    assert group.tokens == sum(sizes)
    of_prompts = sum(size for size, taken in zip(sizes, passes, strict=True) if not taken)
    assert group.fed == Fed(of_prompts, sum(sizes) - of_prompts)
    places = [
        position
        for prompt, taken in zip(prompts, passes, strict=True)
        for position in (range(len(prompt)) if not taken else [len(prompt) + taken - 1])
    ]
    np.testing.assert_array_equal(group.position_ids(), np.array(places) + POSITION_OFFSET)
    np.testing.assert_array_equal(group.last_tokens(), np.cumsum(sizes) - 1)
    np.testing.assert_array_equal(group.row_numbers(), np.repeat(np.arange(len(rows)), sizes))
    events = group.accept(np.arange(len(rows)), lambda row: "stop" if row.number == 0 else None)
    assert events == [TokenEvent(row.number, row.number, "stop" if row.number == 0 else None) for row in rows]
    assert [place for place, _ in group.alive] == list(range(1, len(rows)))
    assert group.fed == Fed(0, len(rows) - 1)


def test_a_row_is_fed_from_where_it_was_left_even_inside_its_prompt() -> None:
    row = Row(0, (5, 6, 7), limit=4, seen=2)
    assert (row.due, row.due_prompt_tokens, row.in_pass(0).past, row.in_pass(0).new) == ((7,), 1, 2, 1)
    row = Row(0, (5, 6, 7), limit=4, tokens=[8, 9])  # seen nothing: its cache was lost, say
    assert (row.due, row.due_prompt_tokens, row.in_pass(0).new) == ((5, 6, 7, 8, 9), 3, 5)


def test_skipped_passes_leave_a_row_as_passes_do() -> None:
    row, other = started((5, 6, 7), 1), started((5, 6, 7), 4)
    Group([row]).skip(3)
    assert (len(row.tokens), row.seen, row.in_pass(0)) == (len(other.tokens), other.seen, other.in_pass(0))
