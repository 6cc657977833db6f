"""What a report says of a made-up job is what happened in it."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_kit import BEGAN, LINES_PER_STATE, PROMPT_PER_STATE, TOKENS_PER_STATE, MadeRun, figures, notes

from flexref.batch_job.report.figures import CostFigures, CountedLines, LinkFigures, TierFigures, figures_of
from flexref.batch_job.report.history import EVENTS_MOST, STATES_MOST, history_of
from flexref.batch_job.report.intervals import INTERVALS_MOST, TimeStretch
from flexref.batch_job.report.tally import Tally
from flexref.errors import BatchError


def test_all_runs_count_and_what_lies_between_them_does_not() -> None:
    found = figures([MadeRun(3), MadeRun(2, 100.0, "paused"), MadeRun(1, 7.0, "done")])
    assert (found.running_s, found.generated_tokens_computed) == (60.0, 6 * TOKENS_PER_STATE)
    assert (found.prompt_tokens_computed, found.lines_done) == (6 * PROMPT_PER_STATE, 6 * LINES_PER_STATE)
    assert found.tokens_per_s == TOKENS_PER_STATE / 10
    assert [run.stopped_before_s for run in found.runs] == [0.0, 100.0, 7.0]
    assert [run.ending for run in found.runs] == [None, "paused", "done"]
    assert [run.lines_done for run in found.runs] == [3 * LINES_PER_STATE, 2 * LINES_PER_STATE, LINES_PER_STATE]


def test_lines_of_a_run_are_those_that_the_journal_counts_and_not_what_its_latest_state_says() -> None:
    history = history_of(notes([MadeRun(3), MadeRun(2)]))
    history.runs[1] = replace(history.runs[1], begin=replace(history.runs[1].begin, lines_before=19))
    found = figures_of(history, Tally(), "out.jsonl", BEGAN, CountedLines(1000, 31, 2, finished=False))
    assert [run.lines_done for run in found.runs] == [19, 12]
    assert (found.lines_done, found.lines_failed) == (31, 2)


def test_links_and_tiers_are_those_of_all_runs() -> None:
    found = figures([MadeRun(2), MadeRun(1)])
    moved = {"weights": 60 * 10**9, "cache": 3 * 10**9}
    assert found.links == [LinkFigures("host->device", moved, 21.0, 3e9, 4e9)]
    assert found.tiers == [
        TierFigures("device", 1 << 30, 1 << 30, 1 << 31),
        TierFigures("host", 1 << 20, 1 << 20, None),
    ]


@pytest.mark.parametrize(
    ("runs", "later_s", "status"),
    [
        ([], 0, "not begun"),
        ([MadeRun(3)], 60, "running"),
        ([MadeRun(3)], 200, "silent"),
        ([MadeRun(3, 0, "paused")], 9999, "paused"),
        ([MadeRun(3, 0, "paused"), MadeRun(1, 5)], 5, "running"),
        ([MadeRun(3), MadeRun(1, 5, "done")], 5, "done"),
    ],
)
def test_the_state_of_a_job_is_that_of_its_latest_run(runs: list[MadeRun], later_s: float, status: str) -> None:
    assert figures(runs, later_s).status == status


def test_what_is_left_is_reckoned_at_the_pace_of_the_latest_run_only_while_it_runs() -> None:
    assert figures([MadeRun(4)], lines=100).seconds_left == 160.0
    assert figures([MadeRun(4, 0, "paused")], lines=100).seconds_left is None
    assert figures([MadeRun(4)], lines=None).seconds_left is None
    assert figures([MadeRun(0)], lines=100, predicted_s=77.0).seconds_left == 77.0


def test_a_prediction_stands_beside_what_its_whole_run_takes_at_this_pace() -> None:
    found = figures([MadeRun(4)], lines=40, predicted_s=100.0).prediction
    assert found is not None
    assert (found.share_done, found.at_this_pace_s, found.predicted_s) == (0.5, 80.0, 100.0)
    assert (found.predicted_tokens_per_s, found.measured_tokens_per_s) == (16.0, 20.0)
    assert figures([MadeRun(4)]).prediction is None
    done = figures([MadeRun(8, 0, "done")], lines=40, predicted_s=100.0).prediction
    assert done is not None
    assert (done.share_done, done.at_this_pace_s) == (1.0, 80.0)


def test_a_job_costs_what_its_running_hours_cost_over_the_tokens_of_its_output() -> None:
    tally = Tally(output_lengths=Counter({100: 10}))
    found = figures([MadeRun(60), MadeRun(40, 99999.0)], tally=tally)
    assert found.cost == CostFigures(
        pytest.approx(3.6), pytest.approx(1000 / 3600), pytest.approx(1.0), pytest.approx(1000.0)
    )
    assert figures([MadeRun(1)], usd_per_hour=None).cost is None


def test_the_occupancy_is_the_mean_over_the_running_time() -> None:
    assert figures([MadeRun(4)]).occupancy == pytest.approx(0.875)


@given(st.lists(st.integers(0, 700), max_size=6))
def test_rates_of_long_jobs_stay_exact_and_few(states: list[int]) -> None:
    found = figures([MadeRun(count, 5.0) for count in states])
    assert sum(step.seconds for step in found.intervals) == pytest.approx(10 * sum(states))
    assert all(step.generated_per_s == pytest.approx(TOKENS_PER_STATE / 10) for step in found.intervals)
    assert all(step.busy == pytest.approx({"weights in": 0.6, "compute": 0.25}) for step in found.intervals)
    assert all(step.link_bytes_per_s["host->device"] == pytest.approx(2.1e9) for step in found.intervals)
    assert len(found.intervals) <= INTERVALS_MOST + len(states)
    for run, count in enumerate(states):
        some = [step for step in found.intervals if step.run == run]
        assert (not some) == (count == 0)
        if some:
            assert TimeStretch.mean(some).seconds == pytest.approx(10 * count)


def test_states_and_events_of_a_job_of_months_take_no_more_memory() -> None:
    events = tuple(("fault", f"number {number}") for number in range(3 * EVENTS_MOST))
    history = history_of(notes([MadeRun(3 * STATES_MOST, events=events)]))
    states = history.runs[0].states
    assert STATES_MOST // 2 <= len(states) <= STATES_MOST + 1
    assert {after.at_s - before.at_s for before, after in pairwise(states)} == {40.0}
    assert history.runs[0].last.at_s == 30.0 * STATES_MOST
    assert [one.event.text for one in history.events] == [
        f"number {number}" for number in range(3 * EVENTS_MOST) if not EVENTS_MOST <= number < 2 * EVENTS_MOST
    ]
    assert (history.kinds, history.events_left_out) == ({"fault": 3 * EVENTS_MOST}, EVENTS_MOST)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("run", {}),
        ("run", {"model": 5, "time": BEGAN.isoformat()}),
        ("state", {"at_s": "soon", "time": BEGAN.isoformat()}),
        ("state", {"at_s": 1.0}),
        ("event", {"at_s": 1.0, "kind": "fault", "time": BEGAN.isoformat()}),
    ],
)
def test_a_note_that_is_not_ours_is_told_in_one_line(kind: str, values: dict[str, object]) -> None:
    with pytest.raises(BatchError, match=f"note of kind '{kind}'"):
        history_of([*notes([MadeRun(1)]), (kind, values)])


def test_the_first_of_many_runs_are_kept_as_well_as_the_latest() -> None:
    found = history_of(notes([MadeRun(200)] * 60))
    kept = [len(run.states) for run in found.runs]
    assert max(kept) - min(kept) <= 1
    assert sum(kept) <= STATES_MOST + 60


def test_notes_of_kinds_that_are_not_known_say_nothing() -> None:
    assert history_of([("later", {"a": 1}), *notes([MadeRun(1)])]).runs[0].seconds == 10.0
