"""What is said of how a machine was measured: how far repeats spread, and whether it was busy."""

from dataclasses import replace

import pytest

from flexref.machine.quality import Quality, age_in_words

QUIET = Quality(1e9, 4.0, 0.1, 0.0, 0.0, 10, 1, 0, {"a": {"1": 0.0, "2": 0.1}, "b": {"1": 0.2, "2": 0.3, "3": 0.4}})


def test_three_of_four_points_stay_within_the_spread() -> None:
    assert QUIET.spread == pytest.approx(0.3)
    assert replace(QUIET, spreads={}).spread == 0.0


def test_a_busy_machine_says_why() -> None:
    assert QUIET.busy == ()
    busy = replace(QUIET, load_before=2.0, others_share=0.5, stolen_share=0.2, unstable=6)
    assert busy.busy == (
        "2.0 programs wanted each processor before",
        "others took 50% of the processors' time",
        "other guests of the host took 20% of the processors' time",
        "repeats of 6 points of 10 disagree",
    )


def test_it_is_told_in_one_line() -> None:
    assert replace(QUIET, unstable=0).in_words == "quiet and steady"
    assert QUIET.in_words == "1 of 10 points unstable"
    assert replace(QUIET, others_share=0.5, cut=3).in_words == (
        "busy: others took 50% of the processors' time; 1 of 10 points unstable; 3 curves cut short"
    )


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1.0, "less than nothing"),
        (3.0, "less than a minute"),
        (61.0, "1 minute"),
        (7300.0, "2 hours"),
        (86400.0, "1 day"),
        (40 * 86400.0, "40 days"),
    ],
)
def test_an_age_in_words(seconds: float, words: str) -> None:
    assert age_in_words(seconds) == words
