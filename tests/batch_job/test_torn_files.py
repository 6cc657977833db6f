"""A job whose files are torn anywhere, or whose disk fails at any call, ends with the same files as any other."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from power_cut_kit import BROKEN, FULL, Disk, PowerCut, installed
from recorder_kit import HASTY, Job

from flexref.batch_job.journal.ledger import WritingPace
from flexref.batch_job.journal.reading import JournalReader, read_journal
from flexref.errors import StorageError

LAZY = WritingPace(sync_s=1e3, mark_s=1e9, compact_bytes=1 << 30)
"""Nothing is synced before somebody asks for it."""


def complete(job: Job, **options: bool) -> list[int]:
    """Run it to its end; the lines that it had to answer."""
    with job.open(**options) as recorder:
        missing = [number for number in job.numbers if not recorder.is_done(number)]
        for number in missing:
            recorder.add(job.answer(number))
        recorder.finish()
    assert job.found() == job.whole()
    return missing


def copied(job: Job, to: Path) -> Job:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(job.folder, to)
    return replace(job, folder=to)


@pytest.mark.parametrize("name", ["out.jsonl.journal", "out.jsonl", "err.jsonl"])
@pytest.mark.parametrize("pace", [HASTY, LAZY])
def test_a_file_that_is_torn_at_any_byte_of_its_end_is_mended(tmp_path: Path, name: str, pace: WritingPace) -> None:
    job = Job(tmp_path / "job", lines=9)
    job.folder.mkdir()
    with job.open(pace=pace) as recorder:
        for number in (1, 2, 5, 6):
            recorder.add(job.answer(number))
        recorder.keep_tokens(3, 0, [1, 2, 3])
        recorder.commit()
    whole = (job.folder / name).read_bytes()
    ends = {placed.offset for placed in JournalReader(job.files.journal)} if name.endswith("journal") else {0}
    header = sorted(ends)[:2][-1]
    for end in range(max(header, len(whole) - 350), len(whole)):
        torn = copied(job, tmp_path / "torn")
        os.truncate(torn.folder / name, end)
        with installed(Disk(torn.folder)):
            complete(torn)


def test_unsynced_records_may_reach_the_disk_in_any_order(tmp_path: Path) -> None:
    job = Job(tmp_path / "job", lines=9)
    job.folder.mkdir()
    recorder = job.open(pace=LAZY)
    synced = job.files.journal.stat().st_size
    for number in (1, 2, 3):
        recorder.add(job.answer(number))
    with recorder._turn:
        recorder._turn.wait_for(lambda: job.files.journal.stat().st_size >= synced + 3 * 70, timeout=30)
    killed = copied(job, tmp_path / "killed")
    recorder.close()
    whole = killed.files.journal.read_bytes()
    for begin in range(synced, len(whole), 7):
        holed = copied(killed, tmp_path / "holed")
        holed.files.journal.write_bytes(whole[:begin] + bytes(10) + whole[begin + 10 :])
        with installed(Disk(holed.folder)):
            assert set(complete(holed)) >= {4, 5, 6, 8, 9}


@pytest.mark.parametrize("failure", [PowerCut(), FULL, BROKEN, OSError(errno.EDQUOT, "Disk quota exceeded")])
def test_a_disk_that_fails_at_any_call_costs_nothing_that_was_synced(tmp_path: Path, failure: BaseException) -> None:
    call, done = 0, False
    while not done:
        call += 1
        job = Job(tmp_path / str(call), lines=9)
        job.folder.mkdir()
        with installed(Disk(job.folder)) as disk:
            disk.arm(call, failure)
            recorder = None
            try:
                recorder = job.open(pace=replace(HASTY, compact_bytes=1500))
            except (PowerCut, StorageError) as error:
                check_told(error, failure)
            if recorder is not None:
                durable = []
                try:
                    for number in job.numbers:
                        recorder.keep_tokens(number, 0, [number, 1])
                        recorder.add(job.answer(number))
                        recorder.commit()
                        durable.append(number)
                    recorder.finish()
                    recorder.close()
                    done = disk.calls_left is not None and disk.calls_left > 0
                except (PowerCut, StorageError) as error:
                    check_told(error, failure)
                    recorder.close()
            disk.arm(None)
            if isinstance(failure, PowerCut) and not done:
                generator = np.random.default_rng(call)
                disk.lose_power(lambda most, generator=generator: int(generator.integers(0, most + 1)))
            if recorder is not None:
                assert not set(durable) & set(complete(job))
            else:
                complete(job)
        shutil.rmtree(job.folder)
    assert call > 30


def check_told(error: BaseException, failure: BaseException) -> None:
    """What stopped a run is said in one line that names the file and what helps."""
    if isinstance(failure, OSError):
        assert isinstance(error, StorageError)
        assert str(failure.strerror) in str(error)
        assert ".jsonl" in str(error) or str(error).startswith("cannot sync /")
        assert "give the same command again" in str(error)
        assert "\n" not in str(error)


def test_a_journal_whose_header_was_torn_is_begun_anew(tmp_path: Path) -> None:
    job = Job(tmp_path / "job", lines=9)
    job.folder.mkdir()
    job.open().close()
    whole = job.files.journal.read_bytes()
    header = whole.index(b"\n") + 1
    for end in [*range(0, header, 9), header - 1]:
        torn = replace(job, folder=tmp_path / f"torn{end}")
        torn.folder.mkdir()
        torn.files.journal.write_bytes(whole[:end])
        assert complete(torn) == torn.numbers
        torn = replace(job, folder=tmp_path / f"zeros{end}")
        torn.folder.mkdir()
        torn.files.journal.write_bytes(bytes(end))
        assert complete(torn) == torn.numbers
    assert read_journal(torn.files.journal).finished
