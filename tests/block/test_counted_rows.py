"""Counted rows are the rows that they were made of, in order, whatever is asked of them."""

import pickle
from collections import Counter
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.block.counted_rows import CountedRows, LengthsSummary, Spread, kinds_of, rows_under
from flexref.block.rows import AlikeRows, RowLengths, each_of
from flexref.policy import Policy

LENGTHS = st.builds(RowLengths, st.integers(1, 3), st.integers(1, 2)) | st.builds(
    lambda prompt, new, prefix: RowLengths(64 + prompt, new, 0, 64, prefix),
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(1, 2),
)
ROWS = st.lists(LENGTHS, min_size=1, max_size=30)


@given(ROWS, st.data())
def test_rows_come_as_they_were_given(rows: list[RowLengths], data: st.DataObject) -> None:
    counted = CountedRows.of(rows)
    assert list(counted) == rows
    assert len(counted) == len(rows)
    assert [counted[place] for place in range(-len(rows), len(rows))] == rows + rows
    assert len(counted.counts) == sum(1 for _ in groupby(rows)), "neighbours that are equal are one run"
    some = data.draw(st.slices(len(rows)))
    assert list(counted[some]) == rows[some]
    if rows[some] and some.step in (None, 1):
        assert counted[some] == CountedRows.of(rows[some])
    with pytest.raises(IndexError):
        counted[len(rows)]


@given(ROWS)
def test_rows_are_counted_as_a_list_is(rows: list[RowLengths]) -> None:
    counted = CountedRows.of(rows)
    assert list(counted.kinds.items()) == list(Counter(rows).items()) == list(kinds_of(rows).items())
    assert kinds_of(counted) == counted.kinds
    assert list(each_of(counted)) == rows
    assert pickle.loads(pickle.dumps(counted)) == counted


def test_rows_are_equal_if_they_come_in_the_same_order() -> None:
    one, other = RowLengths(3, 1), RowLengths(1, 3)
    rows = CountedRows.of([one, one, other])
    assert rows == CountedRows.of_runs([3, 3, 1], [1, 1, 3], [1, 1, 1])
    assert hash(rows) == hash(CountedRows.of_runs([3, 1], [1, 3], [2, 1]))
    assert rows != CountedRows.of([one, other, one])
    assert rows != [one, one, other]


def test_a_job_of_any_size_is_summed_up_exactly() -> None:
    rows = CountedRows.of_runs([1 << 20, 1], [1, 1 << 20], [10**12, 10**12])
    tokens = 10**12 * ((1 << 20) + 1)
    spread = Spread(1, ((1 << 20) + 1) / 2, 1 << 20, tokens)
    assert rows.summary == LengthsSummary(2 * 10**12, 2, spread, spread)
    assert kinds_of(AlikeRows(RowLengths(2, 3), 10**12)) == {RowLengths(2, 3): 10**12}


@given(ROWS)
def test_under_a_policy_that_shares_nothing_every_row_has_its_whole_prompt(rows: list[RowLengths]) -> None:
    alone = [RowLengths(row.prompt_tokens, row.new_tokens) for row in rows]
    for policy in (Policy(share_prefixes=False), Policy(attention_on="host")):
        for given_rows in (rows, CountedRows.of(rows)):
            assert list(each_of(rows_under(given_rows, policy))) == alone
        assert rows_under(AlikeRows(rows[0], 9), policy) == AlikeRows(alone[0], 9)
    assert rows_under(rows, Policy()) is rows
