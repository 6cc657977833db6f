"""Axes and bars of a report's charts."""

import re

from hypothesis import given
from hypothesis import strategies as st
from report_kit import MadeRun, figures

from flexref.batch_job.report.axes import STOPS_SHARE, TimeAxis, ValueWords, round_up, time_step, value_ticks
from flexref.batch_job.report.charts import OverTime
from flexref.batch_job.report.histogram import BARS_MOST, histogram, median

RUNS = st.lists(st.builds(MadeRun, st.integers(0, 9), st.floats(0, 1e6), st.sampled_from([None, "done"])), max_size=9)


@given(st.floats(1e-6, 1e12))
def test_ticks_are_round_few_and_hold_every_value(most: float) -> None:
    top, ticks = value_ticks(most, ValueWords())
    assert top >= most * (1 - 1e-9)
    assert 2 <= len(ticks) <= 6
    assert (ticks[0].at, ticks[-1].at) == (0, 1)


@given(st.floats(1e-6, 1e12))
def test_round_numbers_are_the_next_ones(value: float) -> None:
    found = round_up(value)
    assert value * (1 - 1e-9) <= found <= 2.5 * value * (1 + 1e-9)
    assert f"{found:e}"[0] in "125"


@given(st.floats(0.01, 1e8))
def test_an_axis_of_time_has_few_ticks(seconds: float) -> None:
    assert seconds / time_step(seconds) <= 5 * (1 + 1e-9)


@given(RUNS)
def test_time_goes_on_and_stops_never_take_more_than_their_share(runs: list[MadeRun]) -> None:
    job = figures(runs)
    axis = TimeAxis(job.runs)
    places = [axis.at(number, part * run.seconds) for number, run in enumerate(job.runs) for part in (0, 0.5, 1)]
    assert places == sorted(places)
    assert all(0 <= place <= 1 for place in places)
    assert sum(stop.width for stop in axis.stops) <= STOPS_SHARE + 1e-9 or not job.running_s
    ticks = [tick.at for tick in axis.ticks()]
    assert ticks == sorted(ticks)
    assert len(ticks) <= 6


def test_a_short_stop_is_as_long_as_it_was_and_a_long_one_is_shortened() -> None:
    (short,) = TimeAxis(figures([MadeRun(5), MadeRun(5, 2.0)]).runs).stops
    assert (round(short.at * 102, 6), round(short.width * 102, 6)) == (50, 2)
    (long,) = TimeAxis(figures([MadeRun(5), MadeRun(5, 1e6)]).runs).stops
    assert (round(long.at * 115, 6), round(long.width * 115, 6), long.seconds) == (50, 15, 1e6)


@given(RUNS)
def test_curves_stay_inside_their_chart_and_break_where_the_job_stood_still(runs: list[MadeRun]) -> None:
    job = figures(runs)
    charts = OverTime(job).charts()
    assert bool(charts) == any(run.states for run in runs)
    for chart in charts:
        for curve in chart.curves:
            assert curve.path.count("M") == sum(run.states > 0 for run in runs)
            across = [float(x) for x in re.findall(r"[MLH]([\d.]+)", curve.path)]
            up = [float(y) for y in re.findall(r"[ V]([\d.]+)", curve.path)]
            assert all(0 <= x <= 1000 for x in across)
            assert across == sorted(across)
            assert all(0 <= y <= 100 for y in up)


@given(st.dictionaries(st.integers(0, 4000), st.integers(1, 1000), max_size=60))
def test_every_line_is_in_one_bar(lengths: dict[int, int]) -> None:
    chart = histogram("lengths", "Lengths", lengths)
    assert (chart is None) == (not lengths)
    if chart is not None:
        found = [
            int(match[1].replace(",", "")) for bar in chart.bars if (match := re.search(r": ([\d,]+) lines", bar.words))
        ]
        assert sum(found) == sum(lengths.values())
        assert len(chart.bars) <= BARS_MOST + 1
        assert all(0 < bar.height <= 1 and 0 <= bar.at < 1 for bar in chart.bars)
        every = sorted(length for length, count in lengths.items() for _ in range(count))
        assert median(lengths) == every[(len(every) - 1) // 2]
