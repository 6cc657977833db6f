"""What a job does on disks that hold back or turn over bytes, and with files that were put in the place of its own."""

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from power_cut_kit import BROKEN, Disk, installed
from recorder_kit import HASTY, IDENTITY, Job

from flexref.batch_job.journal.ledger import WritingPace
from flexref.batch_job.journal.line_facts import ExpectedLines, LineFacts
from flexref.batch_job.journal.reading import JournalReader
from flexref.errors import BatchError, StorageError

LAZY = WritingPace(sync_s=1e3, mark_s=1e9, compact_bytes=1 << 30)
"""Nothing is synced before somebody asks for it."""


def half_done(job: Job, pace: WritingPace = HASTY) -> None:
    """The job as a run leaves it that was broken off after ten lines."""
    with job.open(pace=pace) as recorder:
        for number in job.numbers[:10]:
            recorder.add(job.answer(number))


def test_what_a_failed_sync_left_in_memory_alone_is_written_again_before_it_counts(tmp_path: Path) -> None:
    job = Job(tmp_path)
    with installed(Disk(tmp_path)) as disk:
        recorder = job.open(pace=LAZY)
        recorder.add(job.answer(1))
        sync = recorder._ledger.journal.sync

        def fails() -> None:
            disk.arm(1, BROKEN)
            sync()

        recorder._ledger.journal.sync = fails  # type: ignore[method-assign]
        with pytest.raises(StorageError, match="cannot sync"):
            recorder.commit()
        recorder.close()
        disk.arm(None)
        with suppress(StorageError), job.open(pace=LAZY) as recorder:  # whose file is shortened by the power cut
            assert recorder.is_done(1)
            recorder.add(job.answer(2))
            recorder.commit()
            disk.lose_power(lambda most: 0)
        with job.open(pace=LAZY) as recorder:
            assert [number for number in job.numbers if recorder.is_done(number)] == [1, 2]


def test_arithmetic_that_was_accepted_outlasts_a_compaction(tmp_path: Path) -> None:
    job = Job(tmp_path)
    half_done(job)
    newer = replace(IDENTITY, arithmetic={"numpy": "2.3"})
    with job.open(newer, accept_arithmetic=True, pace=replace(HASTY, compact_bytes=1)) as recorder:
        recorder.add(job.answer(job.numbers[10]))
    job.open(newer).close()
    with pytest.raises(BatchError, match=r"arithmetic, numpy: the job was begun with 2\.3, now it is 2\.2"):
        job.open()


@pytest.mark.parametrize("failed_before", [False, True])
def test_errors_by_another_name_are_not_written_over_another_file(tmp_path: Path, failed_before: bool) -> None:
    job = Job(tmp_path)
    with job.open() as recorder:
        for number in (1, 2, 3, 4, *([5] if failed_before else [])):
            recorder.add(job.answer(number))
    mine = tmp_path / "mine.txt"
    mine.write_text("mine\n")
    other = replace(job.files, errors=mine)
    with pytest.raises(StorageError, match=r"mine\.txt: it is there already, and the errors of this job lie in .*err"):
        job.open(files=other)
    assert mine.read_text() == "mine\n"
    job.open(files=other, force=True).close()


def test_errors_that_were_moved_are_found_by_what_is_in_them(tmp_path: Path) -> None:
    job = Job(tmp_path)
    half_done(job)
    assert job.files.errors is not None
    moved = job.files.errors.rename(tmp_path / "moved.jsonl")
    with job.open(files=replace(job.files, errors=moved)) as recorder:
        assert recorder.notices == ()
        assert recorder.done_lines == 10


@pytest.mark.parametrize("left", [bytes(100), b""])
def test_an_output_whose_journal_was_wiped_is_left_alone(tmp_path: Path, left: bytes) -> None:
    job = Job(tmp_path)
    half_done(job)
    found = job.found()
    job.files.journal.write_bytes(left)
    with pytest.raises(StorageError, match=r"out\.jsonl: it is there already, and no journal .* says that it is"):
        job.open()
    assert job.found() == found


def test_a_journal_that_cannot_be_read_to_its_end_is_not_written_anew(tmp_path: Path) -> None:
    job = Job(tmp_path)
    recorder = job.open(pace=LAZY)
    for number in (9, 10):
        recorder.add(job.answer(number))
    recorder.commit()
    data = bytearray(job.files.journal.read_bytes())
    turned = data.rindex(b'"number":9')
    data[turned] ^= 1
    with job.files.journal.open("r+b") as file:  # in place, as a disk does it
        file.write(data)
    with pytest.raises(StorageError, match=r"out\.jsonl\.journal is damaged at byte \d+"):
        recorder._ledger.compact()
    recorder.close()
    assert len([*JournalReader(job.files.journal)]) < 5
    assert job.files.journal.read_bytes()[: len(data)] == data


def test_the_folder_that_a_link_leads_to_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "far").mkdir()
    job = Job(tmp_path)
    job.files.output.symlink_to(tmp_path / "far" / "answers.jsonl")
    seen = []

    def sync_folder(folder: Path) -> None:
        seen.extend(sorted(os.path.realpath(entry) for entry in os.scandir(folder)))

    monkeypatch.setattr("flexref.batch_job.journal.growing_file.sync_folder", sync_folder)
    job.open(force=True).close()
    assert os.path.realpath(tmp_path / "far" / "answers.jsonl") in seen
    assert (tmp_path / "far" / "answers.jsonl").exists()


@pytest.mark.parametrize("name", ["output", "errors", "inputs"])
def test_names_that_a_journal_cannot_tell_are_refused(tmp_path: Path, name: str) -> None:
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    files = replace(Job(tmp_path).files, **{name: (strange,) if name == "inputs" else strange})
    with pytest.raises(StorageError, match=r"/\\xff: its name is not UTF-8"):
        files.check()


@given(st.lists(st.booleans(), max_size=30), st.integers(0, 30))
def test_the_next_line_is_the_next_one_that_is_expected(filled: list[bool], line: int) -> None:
    facts = LineFacts(len(filled))
    expected = ExpectedLines(np.array(filled, bool), np.zeros(len(filled), np.uint64))
    facts.expect(expected)
    for number in list(expected)[::2]:
        facts.put(number, number % 3 == 0, 1)
    assert facts.next_expected(line) == next((number for number in expected if number > line), None)


def test_an_answer_that_a_journal_could_not_be_read_with_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("flexref.batch_job.recorder", "flexref.batch_job.journal.reading"):
        monkeypatch.setattr(f"{module}.LONGEST_RECORD_BYTES", 800, raising=False)
    job = Job(tmp_path)
    long = replace(job.answer(2), data=b'"%s"' % (b"x" * 800))
    with job.open() as recorder:
        recorder.add(job.answer(1))
        with pytest.raises(BatchError, match=r"the answer to line 2 has 802 bytes, more than a journal's records may"):
            recorder.add(long)
    with job.open() as recorder:
        assert [number for number in job.numbers if recorder.is_done(number)] == [1]


def test_what_a_killed_compaction_left_is_removed_by_the_next_run(tmp_path: Path) -> None:
    job = Job(tmp_path)
    half_done(job)
    left = tmp_path / ".out.jsonl.journal.0123abcd.partial"
    left.write_bytes(b"half a journal")
    job.open(pace=LAZY).close()
    assert not left.exists()
