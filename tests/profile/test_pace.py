"""How the seconds of a profile are divided, and what becomes of figures that there was no time or no quiet for."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.profile.host import least_squares
from flexref.profile.pace import Pace
from flexref.profile.record import Record


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_a_part_does_not_use_is_left_for_those_after_it() -> None:
    clock = Clock()
    pace, seen = Pace(10.0, clock), []
    for item in pace.parts(("a", "b", "c"), (1, 3, 6)):
        seen.append((item, pace.left_s))
        clock.now += {"a": 1.0, "b": 0.0, "c": 2.0}[item]
    assert seen == [("a", 1.0), ("b", pytest.approx(3.0)), ("c", pytest.approx(9.0))]
    assert pace.left_s == pytest.approx(7.0)


def test_what_takes_too_long_takes_it_from_those_after_it() -> None:
    clock = Clock()
    pace, left = Pace(10.0, clock), []
    for _ in pace.parts(range(3)):
        for _ in pace.parts(range(2)):
            left.append(round(pace.left_s, 6))
            clock.now += 4.0
    assert left == [round(10 / 6, 6), 0.0, 0.5, 0.0, 0.0, 0.0]
    assert not pace.has(0.1)


def test_a_loop_that_is_left_gives_its_time_back() -> None:
    clock = Clock()
    pace = Pace(10.0, clock)
    for _ in pace.parts(range(5)):
        break
    assert pace.left_s == 10.0


def test_what_is_excused_is_no_part_of_the_bound() -> None:
    clock = Clock()
    pace, left = Pace(10.0, clock), []
    for _ in pace.parts(range(2)):
        clock.now += 4.0
        pace.excuse(3.0)
        pace.excuse(-1.0)
        left.append(pace.left_s)
    assert left == [4.0, 8.0]
    assert pace.left_s == 8.0


def test_without_a_bound_there_is_always_time() -> None:
    pace = Pace(math.inf, Clock())
    assert all(pace.has(1e9) for _ in pace.parts(range(3), (1, 2, 3)))


STEADY, SHAKY = [1.0, 1.01, 1.02], [2.0, 5.0, 9.0]


def test_a_steady_figure_is_its_median() -> None:
    record = Record()
    assert record.figure("curve", "1", STEADY, 1.0) == 1.01
    assert record.spreads == {"curve": {"1": pytest.approx(0.01, abs=1e-3)}}
    assert record.warnings == ()


def test_a_safe_bound_takes_the_place_of_what_is_unstable() -> None:
    record = Record()
    assert record.figure("no stable one before", "1", SHAKY, 1.0) == 9.0
    record.figure("curve", "1", STEADY, 1.0)
    assert record.figure("curve", "4", SHAKY, 4.0) == pytest.approx(4.04)  # in proportion
    assert record.figure("curve", "16", SHAKY, 16.0) == 9.0  # no repeat was slower
    assert record.figure("curve", "1.5", SHAKY, 1.5) == 2.0  # none was faster than this
    assert record.unstable == 4
    assert record.points == 5
    (warning, _) = record.warnings
    assert warning.endswith("spreads over 70% of their median at 4, where a safe bound stands for them")


def test_what_spreads_over_too_little_to_matter_makes_no_machine_busy() -> None:
    """A device's shortest calls spread over much of themselves always: they are not told of, and not counted."""
    record = Record()
    assert record.figure("curve", "1", [1e-7 * seconds for seconds in SHAKY], 1.0) == pytest.approx(5e-7)
    assert record.warnings == ()
    assert (record.unstable, record.points) == (0, 1)


def test_what_is_no_point_of_a_curve_stays_its_median() -> None:
    record = Record()
    assert record.figure("one submission", "the host", SHAKY) == 5.0
    record.cut("a", "7 bytes")
    record.cut("b")
    assert record.warnings == (
        "one submission: the middle half of the repeats spreads over 70% of their median at the host",
        "a: there was no time to measure more than 7 bytes; a safe bound stands for the rest",
        "b: there was no time to measure it; a safe bound stands for it",
    )


@given(st.integers(0, 1 << 32), st.integers(1, 8))
def test_least_squares_are_those_of_scipy(seed: int, equations: int) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    draw = np.random.default_rng(seed)
    table, values = draw.uniform(0, 1, (equations, 3)), draw.uniform(-1, 2, equations)
    found = least_squares(table, values)
    _, residual = optimize.nnls(table, values)
    assert found.min() >= 0
    assert np.linalg.norm(table @ found - values) == pytest.approx(residual, rel=1e-6, abs=1e-9)
