"""Stop strings against a plain search in the whole text, however the text is cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.errors import PromptError
from flexref.text.stop import StopMatcher

# Two letters make every overlap between stop strings, and between a stop string and itself, common.
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=3)
PIECES = st.lists(st.text("ab", max_size=5), max_size=8) | st.lists(st.text("abc", max_size=3), max_size=12)


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """(text before the earliest stop string, that stop string): of those that start together the shortest."""
    hits = [(text.find(stop), len(stop), stop) for stop in stops if stop in text]
    if not hits:
        return text, None
    start, _, stop = min(hits)
    return text[:start], stop


@given(stops=STOPS, pieces=PIECES)
def test_the_stream_is_cut_where_a_search_in_the_whole_text_says(stops: list[str], pieces: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = "".join([matcher.push(piece) for piece in pieces] + [matcher.finish()])
    assert (shown, matcher.matched) == expected("".join(pieces), stops)


@given(stops=STOPS, pieces=PIECES)
def test_only_the_beginning_of_a_stop_string_is_held_back(stops: list[str], pieces: list[str]) -> None:
    matcher, pushed, shown = StopMatcher(stops), "", ""
    for piece in pieces:
        pushed += piece
        shown += matcher.push(piece)
        if matcher.matched is None:
            held = pushed.removeprefix(shown)
            assert pushed == shown + held
            assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


@given(stops=STOPS, pieces=PIECES)
def test_nothing_comes_after_a_match(stops: list[str], pieces: list[str]) -> None:
    matcher = StopMatcher(stops)
    for piece in pieces:
        matched_before = matcher.matched
        text = matcher.push(piece)
        if matched_before is not None:
            assert (text, matcher.matched) == ("", matched_before)
    matched = matcher.matched
    if matched is not None:
        assert (matcher.finish(), matcher.matched) == ("", matched)


def test_a_stop_string_spread_over_three_pieces_is_found() -> None:
    matcher = StopMatcher(["\nThe end"])
    assert [matcher.push(piece) for piece in ("so it went.", "\nT", "he", " end of")] == ["so it went.", "", "", ""]
    assert matcher.matched == "\nThe end"


def test_an_earlier_start_that_fails_lets_the_later_stop_win() -> None:
    matcher = StopMatcher(["abcd", "bc"])
    assert (matcher.push("abc"), matcher.matched) == ("", None)
    assert (matcher.push("x"), matcher.matched) == ("a", "bc")


def test_of_two_that_start_together_the_shorter_wins_in_whatever_pieces_they_come() -> None:
    for pieces in (["xab"], ["xa", "b"]):
        matcher = StopMatcher(["ab", "a"])
        assert ("".join(matcher.push(piece) for piece in pieces), matcher.matched) == ("x", "a")


def test_without_stop_strings_everything_passes_at_once() -> None:
    matcher = StopMatcher([])
    assert (matcher.push("anything"), matcher.finish(), matcher.matched) == ("anything", "", None)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(PromptError, match="empty"):
        StopMatcher(["x", ""])
