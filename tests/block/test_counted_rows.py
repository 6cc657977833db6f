"""Counted rows are the rows that they were made of, in order, whatever is asked of them."""

import pickle
from collections import Counter
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.block.counted_rows import CountedRows, LengthsSummary, Spread, kinds_of
from flexref.block.rows import AlikeRows, RowLengths, each_of

ROWS = st.lists(st.builds(RowLengths, st.integers(1, 3), st.integers(1, 2)), min_size=1, max_size=30)


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
