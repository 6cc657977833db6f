"""Rows that are alike are found in as few runs as there are, and pieces hold everything once."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from flexref.backend.pieces import EvenRun, HostSegments, Place, even_runs, pieces

ALIGNED = 4


@st.composite
def passes(draw: st.DrawFn) -> tuple[list[int], list[int], list[Place]]:
    """(past, new, places) of rows of which many lie evenly and are equally long."""
    past, new, places = list[int](), list[int](), list[Place]()
    memory, offset, step, length = 0, 0, 8, (3, 1)
    for _ in range(draw(st.integers(1, 16))):
        change = draw(st.sampled_from(("none", "none", "step", "step", "memory", "odd", "back", "length", "parts")))
        memory += change == "memory"
        step = {"step": draw(st.sampled_from((4, 12))), "odd": 6, "back": -8}.get(change, step)
        length = (draw(st.integers(0, 2)), draw(st.integers(1, 3))) if change == "length" else length
        offset += step
        past.append(length[0])
        new.append(length[1])
        places.append(None if change == "parts" else (memory, offset))
    return past, new, places


def lies(place: Place, before: Place) -> int | None:
    """Bytes from one place to the next, if rows there may be of one run."""
    if place is None or before is None or place[0] != before[0]:
        return None
    step = place[1] - before[1]
    return step if step > 0 and not step % ALIGNED else None


@given(given=passes(), most=st.sampled_from((0, 3, 40, 40)))
def test_runs_hold_every_row_once_and_no_row_that_is_unlike(
    given: tuple[list[int], list[int], list[Place]], most: int
) -> None:
    past, new, places = given
    segments = HostSegments().segments(past, new)
    runs = list(even_runs(segments, places, most, ALIGNED))
    assert [row for run in runs for row in range(run.row, run.row + run.count)] == list(range(len(new)))
    for run in runs:
        rows = range(run.row, run.row + run.count)
        assert {(past[row], new[row]) for row in rows} == {(run.past, run.new)}
        assert (run.first, run.last) == (segments[run.row][0], segments[rows[-1]][1])
        assert {lies(places[row], places[row - 1]) for row in rows[1:]} <= {run.gap}
        assert run.count == 1 or run.last - run.first <= most
    for run, then in pairwise(runs):  # each is as long as it may be
        step = lies(places[then.row], places[then.row - 1])
        longer = segments[then.row][1] - run.first
        alike = (then.past, then.new) == (run.past, run.new)
        assert not (alike and step is not None and longer <= most and run.gap in (0, step))


@given(new=st.integers(1, 20), past=st.integers(0, 5), count=st.integers(1, 3), most=st.integers(0, 25))
def test_a_long_row_is_cut_and_each_part_knows_those_before(new: int, past: int, count: int, most: int) -> None:
    run = EvenRun(2, count, 8, 7, 7 + count * new, past)
    parts = list(run.cut(most))
    if count > 1:
        assert parts == [run]
        return
    assert [token for part in parts for token in range(part.first, part.last)] == list(range(7, 7 + new))
    assert all(part.past == past + part.first - 7 and part.new <= max(1, most) for part in parts)


@given(rows=st.integers(0, 50), width=st.integers(0, 9), most=st.integers(0, 60), least=st.integers(1, 4))
def test_pieces_hold_every_row_once(rows: int, width: int, most: int, least: int) -> None:
    found = list(pieces((rows, width), most, least))
    assert [row for piece in found for row in range(piece.start, piece.stop)] == list(range(rows))
    for piece in found:
        assert piece.start % least == 0
        assert (piece.stop - piece.start) * width <= max(most, least * width)
