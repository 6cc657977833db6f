"""What a paused job tells to give: never what would throw away its work, or pause it again at once."""

import pytest

from flexref.batch_job.states import JobState
from flexref.batch_job.watching.disk_bound import DiskWriteBound, DiskWrites
from flexref.cli.batch.resume import resume_command
from flexref.errors import JobPaused

GIVEN = ["batch", "my requests.jsonl", "-o", "out.jsonl", "--model", "demo"]
SHOWN = "flexref batch 'my requests.jsonl' -o out.jsonl --model demo"


@pytest.mark.parametrize("at", range(1, len(GIVEN) + 1))
def test_a_job_that_was_begun_anew_is_not_begun_anew_again(at: int) -> None:
    if at not in (3, 5):  # the values of options
        assert resume_command("flexref", [*GIVEN[:at], "--force", *GIVEN[at:]], "SIGTERM") == SHOWN


@pytest.mark.parametrize("bound", [["--max-disk-writes-gib", "3"], ["--max-disk-writes-gib=3"]])
def test_a_bound_that_was_reached_is_left_out_and_one_that_was_not_stays(bound: list[str]) -> None:
    with pytest.raises(JobPaused) as pause:
        DiskWriteBound(3, DiskWrites(4 << 30)).passed(JobState(1.0))
    assert resume_command("flexref", [*GIVEN, *bound], str(pause.value)) == SHOWN
    assert resume_command("flexref", [*GIVEN, *bound], "SIGTERM") == f"{SHOWN} {' '.join(bound)}"
