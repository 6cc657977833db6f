"""A bound on what a job writes to disk: reached, over all runs, the job pauses; what was written is what moved."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.batch_job.states import JobState
from flexref.batch_job.watching.disk_bound import DiskWriteBound, DiskWrites, predicted_pause, spilled_before
from flexref.errors import JobPaused
from flexref.units import GIB


@given(
    runs=st.lists(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), max_size=5), min_size=1, max_size=4),
    most=st.integers(1, 800),
)
def test_a_job_pauses_after_the_first_pass_that_reaches_the_bound(runs: list[list[tuple[int, int]]], most: int) -> None:
    """Bytes are hundredths of a GiB; a run begins with what the runs before it have written."""
    unit, before = GIB // 100, 0
    for passes in runs:
        recorded = spilled = 0
        writes = DiskWrites(before, lambda: recorded)  # noqa: B023
        bound = DiskWriteBound(most / 100, writes)
        for spill, record in passes:
            spilled, recorded = spilled + spill * unit, recorded + record * unit
            moved = {"host->disk": {"cache": spilled // 2}, "disk->host": {"cache": 9 * GIB}}
            state = JobState(1.0, link_bytes=moved, spilled_bytes=spilled)
            written = before + spilled + recorded
            assert writes.at(state) == written
            if written < most / 100 * GIB:
                bound.passed(state)
                continue
            with pytest.raises(JobPaused, match=f"--max-disk-writes-gib is {most / 100:g}: it goes on with a higher"):
                bound.passed(state)
        before += spilled + recorded


def test_what_earlier_runs_spilled_is_the_last_state_of_each_also_of_those_that_did_not_count_pages() -> None:
    moved = {"host->disk": {"cache": 3 * GIB, "activations": GIB}, "disk->host": {"weights": GIB}}
    old = ("state", {"link_bytes": moved})
    states = [("state", {"link_bytes": moved, "spilled_bytes": spilled * GIB}) for spilled in (5, 7)]
    assert spilled_before([("run", {}), old, ("run", {}), *states, ("run", {})]) == (4 + 7) * GIB


def test_a_prediction_says_where_the_bound_would_pause_the_job() -> None:
    nbytes = 4 * GIB
    assert predicted_pause(6, nbytes, GIB) is None
    assert predicted_pause(3, nbytes, GIB) == (
        "it will write about 4.00 GiB to disk: --max-disk-writes-gib 3 will pause it when 50% of what is left is done"
    )
    assert "when 0% of" in str(predicted_pause(3, 0, 4 * GIB))
