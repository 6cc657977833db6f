"""A report of a job as its recorder left it: while it runs, and when it has ended."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from recorder_kit import Job
from report_kit import FACTS, MadeRun, notes

from flexref.batch_job.answers import LineAnswer
from flexref.batch_job.recorder import Recorder
from flexref.batch_job.report import read
from flexref.cli.main import COMMANDS, command_group, run

Report = Callable[..., tuple[int, str, str]]

USAGE = {"prompt_tokens": 11, "completion_tokens": 4}


def record(job: Job, recorder: Recorder, numbers: list[int]) -> None:
    """Answer some lines; every fifth fails."""
    for number in numbers:
        known, failed = job.answer(number), number % 5 == 0
        body = {"choices": [{"finish_reason": "stop"}], "usage": USAGE}
        answered = {"custom_id": f"r{number}", "response": {"status_code": 200, "body": body}, "error": None}
        refused = {"custom_id": f"r{number}", "response": None, "error": {"code": "bad", "message": "<b>no"}}
        data = json.dumps(refused if failed else answered).encode()
        recorder.add(LineAnswer(number, None, known.request_hash, failed, data))
    recorder.commit()


@pytest.fixture
def report(job: Job, capsys: pytest.CaptureFixture[str]) -> Report:
    """Runs `flexref report` on the job: (exit code, what it printed, what it complained)."""

    def reported(*arguments: str) -> tuple[int, str, str]:
        code = run(command_group(COMMANDS), ["report", str(job.files.output), *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return reported


@pytest.fixture(params=[True, False], ids=["errors apart", "errors inside"])
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Job:
    return Job(tmp_path, separate=request.param)


def test_a_job_that_runs_and_one_that_is_done_are_read(job: Job, report: Report, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    with job.open() as recorder:
        for kind, values in notes([MadeRun(3, events=(("fault", "a disk failed"),))], lines=len(job.numbers)):
            recorder.note(kind, values)
        record(job, recorder, job.numbers[:9])
        found = json.loads(report("--json")[1])
        assert (found["lines_done"], found["lines_failed"], found["lines"]) == (9, 2, len(job.numbers))
        assert found["status"] == "running"  # what was made up is long ago, but this process holds the journal
        record(job, recorder, job.numbers[9:])
        recorder.note("end", {"ending": "done", "time": "2026-11-26T09:00:00+00:00"})
        recorder.finish()
    code, said, _ = report("-o", str(page))
    failed = sum(number % 5 == 0 for number in job.numbers)
    assert said == f"{page}: done, {len(job.numbers)} of {len(job.numbers)} lines done, {failed} failed\n"
    assert code == 0
    text = page.read_text(encoding="utf-8")
    for words in ("a disk failed", str(FACTS["model"]), "&lt;b&gt;no", "r5", f"{(len(job.numbers) - failed) * 11}"):
        assert words in text
    found = json.loads(report("--json")[1])
    assert found["tally"]["prompt_lengths"] == {"11": len(job.numbers) - failed}
    assert found["tally"]["failed"]["bad"]["count"] == failed
    assert found["cost"]["usd_per_hour"] == FACTS["usd_per_hour"]
    found = json.loads(report("--json", "--price-per-hour", "12")[1])
    assert found["cost"]["usd"] == pytest.approx(12 * 30 / 3600)
    assert found["made_at"].startswith("20")


@pytest.mark.parametrize(
    ("host", "dead", "status"), [(None, True, "killed"), (None, False, "running"), ("elsewhere", True, "silent")]
)
def test_a_job_that_said_nothing_more_is_known_by_its_process_where_it_ran(
    job: Job, report: Report, monkeypatch: pytest.MonkeyPatch, host: str | None, dead: bool, status: str
) -> None:
    with job.open() as recorder:
        for kind, values in notes([MadeRun(3)], lines=len(job.numbers)):
            recorder.note(kind, values)
    if dead:
        monkeypatch.setattr(read, "pid_exists", lambda pid: False)
    if host is not None:
        monkeypatch.setattr(read, "node", lambda: host)
    assert json.loads(report("--json")[1])["status"] == status


def test_a_job_that_was_killed_before_it_said_anything_is_read(job: Job, report: Report, tmp_path: Path) -> None:
    job.open().close()
    (tmp_path / "out.jsonl").unlink(missing_ok=True)
    found = json.loads(report("--json")[1])
    assert (found["status"], found["lines_done"], found["runs"]) == ("not begun", 0, [])


def test_all_files_of_the_job_are_safe_from_its_report(job: Job, report: Report) -> None:
    job.open().close()
    for path in (job.files.output, job.files.journal, job.files.errors or job.files.output):
        before = path.read_bytes()
        code, _, complaint = report("-o", str(path), "--force")
        assert (code, "this command reads it" in complaint) == (1, True)
        assert path.read_bytes() == before


def test_a_page_that_is_there_is_replaced_only_if_that_is_asked_for(job: Job, report: Report, tmp_path: Path) -> None:
    job.open().close()
    page = tmp_path / "report.html"
    page.write_text("mine")
    code, _, complaint = report("-o", str(page))
    assert (code, "it is there already" in complaint) == (1, True)
    assert page.read_text() == "mine"
    assert report("-o", str(page), "--force")[0] == 0
    assert page.read_text().startswith("<!doctype html>")


def test_errors_that_were_moved_are_named(job: Job, report: Report, tmp_path: Path) -> None:
    with job.open() as recorder:
        record(job, recorder, job.numbers)
        recorder.finish()
    if job.files.errors is not None:
        job.files.errors.rename(tmp_path / "moved.jsonl")
        assert json.loads(report("--json")[1])["tally"]["failed"] == {}
        moved = json.loads(report("--json", "--errors", str(tmp_path / "moved.jsonl"))[1])
        assert moved["tally"]["failed"]["bad"]["count"] == moved["lines_failed"] > 0
    code, _, complaint = report("--json", "--errors", str(tmp_path / "none.jsonl"))
    assert (code, "cannot read" in complaint) == (1, True)


def test_what_has_no_journal_is_told_so(job: Job, report: Report) -> None:
    job.files.output.write_text("{}\n")
    code, _, complaint = report("--json")
    assert (code, f"there is no journal {job.files.journal}" in complaint) == (1, True)


def test_nothing_is_done_if_nothing_is_asked_for(job: Job, report: Report) -> None:
    code, _, complaint = report()
    assert (code, "give -o FILE.html, --json or both" in complaint) == (2, True)
