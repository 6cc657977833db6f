"""A job's answers are durable when they count, and its files come out the same, however it was broken off."""

import fcntl
import io
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorder_kit import HASTY, IDENTITY, Job

from flexref.batch_job.journal.growing_file import GrowingFile
from flexref.batch_job.journal.ledger import WritingPace
from flexref.batch_job.journal.line_facts import ExpectedLines
from flexref.batch_job.journal.reading import (
    JournalNote,
    JournalReader,
    LineFact,
    journal_path,
    read_journal,
    read_notes,
)
from flexref.batch_job.journal.records import AnyRecord, SyncedRecord, decoded, encoded
from flexref.batch_job.recorder import Recorder
from flexref.batch_job.shard import Shard
from flexref.batch_job.stream_recorder import StreamRecorder
from flexref.errors import BatchError, StorageError


@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("pace", [HASTY, WritingPace()])
def test_answers_that_come_in_any_order_are_written_in_the_order_of_the_input(
    tmp_path: Path, separate: bool, pace: WritingPace
) -> None:
    job = Job(tmp_path, separate=separate)
    with job.open(pace=pace) as recorder:
        for number in np.random.default_rng(1).permutation(job.numbers):
            recorder.add(job.answer(int(number)))
        recorder.finish()
        assert recorder.done_lines == len(job.numbers)
        assert recorder.failed_lines == 4
        assert recorder.runs_before == 0
    assert job.found() == job.whole()


def test_a_job_does_not_end_before_what_was_handed_over_last_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tmp_path)
    with job.open() as recorder:
        at_work, go_on, sync = threading.Event(), threading.Event(), recorder._ledger.sync

        def slow() -> None:
            if not go_on.is_set():
                at_work.set()
                go_on.wait(30)
            sync()

        monkeypatch.setattr(recorder._ledger, "sync", slow)
        recorder.add(job.answer(job.numbers[0]))
        assert at_work.wait(30)
        for number in job.numbers[1:]:
            recorder.add(job.answer(number))
        commit = recorder.commit

        def commit_later() -> None:
            go_on.set()
            commit()

        monkeypatch.setattr(recorder, "commit", commit_later)
        recorder.finish()
    assert job.found() == job.whole()


def test_a_job_without_lines_has_empty_files(tmp_path: Path) -> None:
    job = Job(tmp_path, lines=0)
    with job.open() as recorder:
        recorder.finish()
    assert job.found() == (b"", b"")


def test_what_was_committed_is_done_in_the_next_run_and_the_rest_is_not(tmp_path: Path) -> None:
    job = Job(tmp_path)
    with job.open() as recorder:
        for number in (1, 2, 9, 5):
            recorder.add(job.answer(number))
        recorder.keep_tokens(3, 0, [4])
        recorder.keep_tokens(3, 0, [4, 5])
        recorder.keep_tokens(3, 1, [6])
        recorder.keep_tokens(9, 0, [7])
        recorder.commit()
        assert recorder.done_lines == 4
    for _ in range(2):
        with job.open() as recorder:
            assert [number for number in job.numbers if recorder.is_done(number)] == [1, 2, 5, 9]
            assert recorder.tokens_of(3) == {0: (4, 5), 1: (6,)}
            assert recorder.tokens_of(9) == {}
            assert recorder.notices == ()
    with job.open() as recorder:
        assert recorder.runs_before == 3
        for number in job.numbers:
            recorder.add(job.answer(number))
        assert recorder.tokens_of(3) == {}
        recorder.finish()
    assert job.found() == job.whole()


def test_a_finished_job_is_done_and_finishing_it_again_changes_nothing(tmp_path: Path) -> None:
    job = Job(tmp_path)
    with job.open() as recorder:
        for number in job.numbers:
            recorder.add(job.answer(number))
        recorder.finish()
    assert read_journal(job.files.journal).finished
    with job.open() as recorder:
        assert recorder.done_lines == len(job.numbers)
        recorder.finish()
    assert job.found() == job.whole()


def test_a_job_cannot_finish_while_a_line_has_no_answer(tmp_path: Path) -> None:
    job = Job(tmp_path)
    recorder = job.open()
    for number in job.numbers[:-1]:
        recorder.add(job.answer(number))
    with pytest.raises(BatchError, match="line 20 of the input has no answer"):
        recorder.finish()
    recorder.close()
    assert not read_journal(job.files.journal).finished


def test_a_line_that_is_another_one_than_before_is_refused(tmp_path: Path) -> None:
    job = Job(tmp_path)
    with job.open() as recorder:
        with pytest.raises(BatchError, match="line 7 of the input is none of those"):
            recorder.add(job.answer(7))
        with pytest.raises(BatchError, match="line 21 of the input is none of those"):
            recorder.expect(21)
        with pytest.raises(BatchError, match="line 3 of the input was changed"):
            recorder.add(replace(job.answer(3), request_hash=1))
        with pytest.raises(ValueError, match="line feed"):
            recorder.add(replace(job.answer(3), data=b'{"a":\n1}'))


def test_another_job_is_refused_with_all_that_differs(tmp_path: Path) -> None:
    job = Job(tmp_path)
    with job.open() as recorder:
        recorder.add(job.answer(2))
    other = replace(IDENTITY, settings={"temperature": 0.7, "seed": 0}, model={"name": "large"})
    with pytest.raises(BatchError) as told:
        job.open(other)
    assert "the model's name: the job was begun with tiny, now it is large" in str(told.value)
    assert "setting temperature: the job was begun with 1.0, now it is 0.7" in str(told.value)
    assert "seed" not in str(told.value)
    with pytest.raises(
        BatchError, match=r"setting failed lines: the job was begun with in a file of their own, now .*"
    ):
        replace(job, separate=False).open()
    with job.open() as recorder:
        assert recorder.done_lines == 1
    with job.open(other, force=True) as recorder:
        assert recorder.done_lines == 0
        assert recorder.runs_before == 0


@pytest.mark.parametrize("compacted", [True, False])
def test_a_changed_input_is_refused_with_the_first_line_that_the_journal_knows_otherwise(
    tmp_path: Path, compacted: bool
) -> None:
    job = Job(tmp_path)
    with job.open(pace=replace(HASTY, compact_bytes=1 if compacted else 1 << 30)) as recorder:
        for number in (1, 2, 3, 4, 5, 6, 8):
            recorder.add(job.answer(number))
        recorder.commit()
    assert job.found()[0].count(b"\n") == 6
    changed = job.expected
    changed.hashes[[1, 3, 9]] += np.uint64(1)
    other = replace(IDENTITY, input={"lines": 9, "digest": "bb"})
    with pytest.raises(
        BatchError, match=r": line 2 of the input is another one; the input's digest: the job was begun w"
    ):
        job.open(other, expected=changed)


def test_other_arithmetic_is_refused_unless_it_is_accepted_and_then_it_is_the_jobs(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.open().close()
    newer = replace(IDENTITY, arithmetic={"numpy": "2.3"})
    told = r"arithmetic, numpy: the job was begun with 2\.2, now it is 2\.3; give --accept-changed-machine to go on"
    with pytest.raises(BatchError, match=told):
        job.open(newer)
    with job.open(newer, accept_arithmetic=True) as recorder:
        assert "last bits" in recorder.notices[0]
    with job.open(newer) as recorder:
        assert recorder.notices == ()


def test_a_second_process_is_refused_with_the_holders_number_and_the_lock_dies_with_it(tmp_path: Path) -> None:
    job = Job(tmp_path)
    with job.open():
        with pytest.raises(StorageError, match=rf"out.jsonl is being written by process {os.getpid()} on "):
            job.open()
        code = "import recorder_kit, pathlib, sys; recorder_kit.Job(pathlib.Path(sys.argv[1])).open()"
        folder = str(Path(__file__).parent)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])}
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=environment, check=False
        )
        assert f"is being written by process {os.getpid()} on " in done.stderr.splitlines()[-1]
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print(1, flush=True); input()", str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"1\n"
        with pytest.raises(StorageError, match=rf"process {holder.pid} on "):
            job.open()
        holder.kill()
    job.open().close()


def test_the_lock_outlasts_a_compaction(tmp_path: Path) -> None:
    job = Job(tmp_path)
    with job.open(pace=replace(HASTY, compact_bytes=1)) as recorder:
        before = os.stat(job.files.journal).st_ino
        recorder.add(job.answer(1))
        recorder.commit()
        assert os.stat(job.files.journal).st_ino != before
        with pytest.raises(StorageError, match="is being written by process"):
            job.open()


def test_files_that_are_one_by_another_name_are_refused(tmp_path: Path) -> None:
    job = Job(tmp_path)
    files = job.files
    for other in (replace(files, errors=files.output), replace(files, errors=files.journal)):
        with pytest.raises(StorageError, match="of this job"):
            other.check()
    for wrong, why in ((tmp_path, "a folder"), (Path("/dev/null"), "a device"), (tmp_path / "no" / "a", "no folder")):
        with pytest.raises(StorageError, match=why):
            replace(files, output=wrong).check()
    text = tmp_path / "in.jsonl"
    text.write_text("1\n")
    (tmp_path / "link").symlink_to(text)
    os.link(text, tmp_path / "hard")
    for name in ("in.jsonl", "link", "hard"):
        with pytest.raises(StorageError, match=r"would be the errors, and is the input of this job"):
            replace(files, errors=tmp_path / name, inputs=(text,)).check()
    assert journal_path(tmp_path / "link") == journal_path(text)


def test_an_output_of_no_job_is_refused_and_replaced_by_force(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.files.output.write_text("mine\n")
    with pytest.raises(StorageError, match=r"out\.jsonl: it is there already, and no journal .* --force replaces it"):
        job.open()
    assert job.files.output.read_text() == "mine\n"
    assert not job.files.journal.exists()
    with job.open(force=True) as recorder:
        recorder.add(job.answer(1))
    assert job.files.output.read_bytes() == job.answer(1).data + b"\n"
    with job.open() as recorder:
        assert recorder.is_done(1)


def test_two_jobs_cannot_write_one_file(tmp_path: Path) -> None:
    job = Job(tmp_path)
    assert job.files.errors is not None
    with job.open():
        with pytest.raises(StorageError, match=r"err.jsonl is being written by another job"):
            job.open(files=replace(job.files, output=tmp_path / "other.jsonl"), force=True)
        os.link(job.files.output, tmp_path / "hard.jsonl")
        with pytest.raises(StorageError, match=r"hard.jsonl is being written by another job"):
            job.open(files=replace(job.files, output=tmp_path / "hard.jsonl", errors=tmp_path / "e"), force=True)


def half_done(job: Job, pace: WritingPace = HASTY) -> None:
    """The job as a run leaves it that was broken off after ten lines."""
    with job.open(pace=pace) as recorder:
        for number in job.numbers[:10]:
            recorder.add(job.answer(number))


def add_one_by_one(recorder: Recorder, job: Job) -> None:
    for number in job.numbers:
        recorder.add(job.answer(number))
        recorder.commit()


def complete(job: Job, **options: Any) -> int:
    """Run it to its end; how many lines that took."""
    with job.open(**options) as recorder:
        missing = [number for number in job.numbers if not recorder.is_done(number)]
        for number in missing:
            recorder.add(job.answer(number))
        recorder.finish()
    assert job.found() == job.whole()
    return len(missing)


@pytest.mark.parametrize("lost", ["out.jsonl", "err.jsonl"])
@pytest.mark.parametrize("compacted", [True, False])
def test_an_output_that_is_gone_is_written_again_as_far_as_the_journal_has_it(
    tmp_path: Path, lost: str, compacted: bool
) -> None:
    job = Job(tmp_path)
    half_done(job, replace(HASTY, compact_bytes=1 if compacted else 1 << 30))
    (tmp_path / lost).unlink()
    of_those = {"out.jsonl": 8, "err.jsonl": 2}[lost]
    with job.open() as recorder:
        assert recorder.done_lines == (10 - of_those if compacted else 10)
        assert recorder.notices[0] == f"{tmp_path / lost} had lost its end, or was removed: it is written again"
        assert len(recorder.notices) == 1 + compacted
    complete(job, pace=replace(HASTY, compact_bytes=1 << 30))
    with job.open() as recorder:  # its marks of before the loss are true again
        assert recorder.notices == ()
        assert recorder.done_lines == len(job.numbers)


@pytest.mark.parametrize("place", [5, -5])
def test_a_changed_output_is_refused_and_mended_by_force(tmp_path: Path, place: int) -> None:
    job = Job(tmp_path)
    with job.open() as recorder:
        for number in job.numbers[:10]:
            recorder.add(job.answer(number))
            recorder.commit()
    data = bytearray(job.files.output.read_bytes())
    data[place] ^= 1
    job.files.output.write_bytes(data)
    with pytest.raises(
        BatchError, match=r"out\.jsonl was changed: its first \d+ bytes are not those that the job wrote"
    ):
        job.open()
    assert job.files.output.read_bytes() == data
    complete(job, force=True)
    job.open().close()


def test_what_lies_beyond_the_latest_mark_is_written_again(tmp_path: Path) -> None:
    job = Job(tmp_path)
    half_done(job)
    with job.files.output.open("ab") as file:
        file.write(b'{"torn')
    assert complete(job) == 8
    with job.files.output.open("ab") as file:
        file.write(b"more")
    with pytest.raises(BatchError, match=r"out\.jsonl was changed: it has \d+ bytes, the finished job wrote \d+"):
        job.open()


def test_a_journal_that_is_damaged_in_what_was_synced_is_refused(tmp_path: Path) -> None:
    job = Job(tmp_path)
    for _ in range(2):
        half_done(job, WritingPace())
    data = bytearray(job.files.journal.read_bytes())
    at = data.index(b'"number":3')
    data[at] ^= 1
    job.files.journal.write_bytes(data)
    with pytest.raises(
        BatchError, match=r"out\.jsonl\.journal is damaged at byte \d+, in the midst of what was synced"
    ):
        job.open()
    with pytest.raises(BatchError, match="is damaged at byte"):
        list(read_notes(job.files.journal))
    assert complete(job, force=True) == 18


@pytest.mark.parametrize("content", [b"mine\n", b"mine", b'{"kind":"header"}\n', b"0" * 17])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path, content: bytes) -> None:
    job = Job(tmp_path)
    job.files.journal.write_bytes(content)
    with pytest.raises(BatchError, match=r"out\.jsonl\.journal is no journal of flexref batch"):
        job.open()
    assert job.files.journal.read_bytes() == content


def test_a_job_whose_files_are_removed_while_it_runs_says_so(tmp_path: Path) -> None:
    for name in ("out.jsonl", "err.jsonl", "out.jsonl.journal"):
        folder = tmp_path / name.partition(".")[0] / name
        folder.mkdir(parents=True)
        job = Job(folder)
        half_done(job)
        recorder = job.open()
        (folder / name).unlink()
        with pytest.raises(StorageError, match=rf"{name} was removed or replaced while the job ran; what was synced "):
            add_one_by_one(recorder, job)
        recorder.close()
        if name == "out.jsonl.journal":
            with pytest.raises(StorageError, match="no journal"):
                job.open()
        else:
            complete(job)


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.journal"])
def test_a_job_whose_file_is_shortened_while_it_runs_ends_and_leaves_no_hole(tmp_path: Path, name: str) -> None:
    job = Job(tmp_path)
    half_done(job)
    recorder = job.open()
    os.truncate(tmp_path / name, 10)
    with pytest.raises(StorageError, match=rf"{name} was shortened while the job ran: .*now it has 10; "):
        add_one_by_one(recorder, job)
    recorder.close()
    assert (tmp_path / name).stat().st_size == 10


@pytest.mark.parametrize("name", ["out.jsonl", "err.jsonl"])
def test_a_job_does_not_finish_when_a_file_of_it_is_gone_that_was_whole(tmp_path: Path, name: str) -> None:
    job = Job(tmp_path)
    recorder = job.open()
    for number in job.numbers:
        recorder.add(job.answer(number))
    recorder.commit()
    (tmp_path / name).rename(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match=rf"{name} was removed or replaced while the job ran"):
        recorder.finish()
    recorder.close()


def test_notes_are_kept_in_order_and_older_states_thin_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexref.batch_job.journal.compaction.LATEST_STATES", 10)
    job = Job(tmp_path)
    for run in range(3):
        with job.open(pace=replace(HASTY, compact_bytes=1)) as recorder:
            recorder.note("run", {"run": run})
            for at in range(20):
                recorder.note("state", {"run": run, "at": at, "nested": {"a": [1.5, None]}})
            recorder.add(job.answer(run + 1))
            recorder.commit()
            recorder.note("event", {"text": "é"})
    notes = list(read_notes(job.files.journal))
    assert [note for note in notes if note.kind == "run"] == [JournalNote("run", {"run": run}) for run in range(3)]
    assert notes[-1] == JournalNote("event", {"text": "é"})
    states = [(note.values["run"], note.values["at"]) for note in notes if note.kind == "state"]
    assert states == sorted(set(states))
    assert states[-10:] == [(2, at) for at in range(10, 20)]
    assert 12 <= len(states) < 40


@given(st.data())
def test_a_journal_is_read_while_its_job_runs(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    job = Job(tmp_path_factory.mktemp("job"))
    compact_bytes = data.draw(st.sampled_from([1, 500, 1 << 30]))
    with job.open(pace=replace(HASTY, compact_bytes=compact_bytes)) as recorder:
        numbers = data.draw(st.permutations(job.numbers))[: data.draw(st.integers(0, 18))]
        for number in numbers:
            recorder.add(job.answer(number))
        recorder.note("event", {"text": "here"})
        recorder.commit()
        contents = read_journal(job.files.journal)
        assert list(contents.answered()) == [LineFact(number, number % 5 == 0) for number in sorted(numbers)]
        assert (contents.expected, contents.done) == (18, len(numbers))
        assert contents.identity.model == IDENTITY.model
        assert list(read_notes(job.files.journal)) == [JournalNote("event", {"text": "here"})]


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 4), st.integers(1, 5))
def test_expected_lines_are_those_that_are_filled_and_the_shards(filled: list[bool], count: int, chunk: int) -> None:
    shards = [Shard(index, count, chunk) for index in range(count)]
    for shard in shards:
        expected = ExpectedLines(np.array(filled, bool), np.zeros(len(filled), np.uint64), shard)
        numbers = [number for number in shard.numbers(len(filled)) if filled[number - 1]]
        assert list(expected) == numbers
        assert len(expected) == len(numbers)
        assert [number for number in range(-1, len(filled) + 3) if number in expected] == numbers


@given(st.permutations(range(1, 9)), st.booleans())
def test_a_stream_has_the_order_of_the_input(order: list[int], separate: bool) -> None:
    job = Job(Path(), lines=8, separate=separate)
    output, errors = io.BytesIO(), io.BytesIO() if separate else None
    with StreamRecorder(output, errors) as recorder:
        for number in range(1, 9):
            if number != 7:
                recorder.expect(number)
        for number in order:
            if number != 7:
                recorder.add(job.answer(number))
        recorder.finish()
        assert (recorder.done_lines, recorder.failed_lines) == (7, 1)
    assert (output.getvalue(), errors.getvalue() if errors else b"") == job.whole()


def test_what_was_written_is_counted_over_all_runs_and_compactions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    pwrite = os.pwrite

    def counted(*arguments: Any) -> int:
        nonlocal written
        count = pwrite(*arguments)
        written += count
        return count

    monkeypatch.setattr("os.pwrite", counted)
    job = Job(tmp_path)
    for number in (1, 2, 8, 3, 4):
        with job.open(pace=replace(HASTY, compact_bytes=400)) as recorder:
            assert recorder.written_bytes == written
            recorder.add(job.answer(number))
            recorder.commit()
            recorder.note("event", {"text": "torn"})
        with job.files.output.open("ab") as file:  # it will be cut off again
            written += file.write(b"torn")
    assert written > 3000


def test_an_answer_that_comes_twice_is_counted_once(tmp_path: Path) -> None:
    job = Job(tmp_path)
    with job.open() as recorder:
        for _ in range(2):
            recorder.add(job.answer(1))
            recorder._added[1] = False  # as Ctrl-C may leave it, right after the answer was handed over
        recorder.commit()
        assert recorder.done_lines == 1
    assert job.found()[0] == job.answer(1).data + b"\n"


def test_a_record_that_is_being_written_while_a_journal_is_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tmp_path)
    half_done(job)
    whole = job.files.journal.read_bytes()
    rest = whole[-9:] + encoded(SyncedRecord(len(whole)))
    job.files.journal.write_bytes(whole[:-9])
    known = list(JournalReader(job.files.journal))

    def written_meanwhile(line: bytes, where: str) -> AnyRecord | None:
        if not line.endswith(b"\n"):
            with job.files.journal.open("ab") as file:
                file.write(rest)
        return decoded(line, where)

    monkeypatch.setattr("flexref.batch_job.journal.reading.decoded", written_meanwhile)
    assert list(JournalReader(job.files.journal)) == known
    assert len(list(JournalReader(job.files.journal))) == len(known) + 2


def test_states_of_a_job_that_runs_for_weeks_are_thinned_out_without_many_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("compaction", "ledger"):
        monkeypatch.setattr(f"flexref.batch_job.journal.{module}.LATEST_STATES", 10)
    job = Job(tmp_path)
    with job.open(pace=replace(HASTY, compact_bytes=3000)) as recorder:
        for at in range(500):
            recorder.note("state", {"at": at, "padding": "x" * 100})
            recorder.commit()
            assert job.files.journal.stat().st_size < 20000
    states = [note.values["at"] for note in read_notes(job.files.journal)]
    assert states == sorted(set(states))
    assert states[0] == 0
    assert states[-10:] == [*range(490, 500)]


def test_a_journal_says_at_once_that_answers_of_a_finished_job_are_lost(tmp_path: Path) -> None:
    job = Job(tmp_path)
    with job.open(pace=replace(HASTY, compact_bytes=1)) as recorder:
        add_one_by_one(recorder, job)
        recorder.finish()
    job.files.output.unlink()
    with job.open() as recorder:
        contents = read_journal(job.files.journal)
        assert (contents.done, contents.failed, contents.finished) == (4, 4, False)
        assert recorder.done_lines == 4
    assert complete(job) == 14
    assert read_journal(job.files.journal).finished


def test_a_finished_journal_stays_finished_when_it_is_written_anew(tmp_path: Path) -> None:
    job = Job(tmp_path)
    complete(job, pace=replace(HASTY, compact_bytes=1 << 30))
    assert b'"kind":"answer"' in job.files.journal.read_bytes()
    job.open(pace=replace(HASTY, compact_bytes=1)).close()
    assert b'"kind":"answer"' not in job.files.journal.read_bytes()
    assert read_journal(job.files.journal).finished
    assert read_journal(job.files.journal).done == len(job.numbers)


def test_a_file_that_was_replaced_before_it_was_locked_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"old")
    flock = fcntl.flock

    def replaced_first(descriptor: int, how: int) -> None:
        monkeypatch.setattr("fcntl.flock", flock)
        (tmp_path / "new").write_bytes(b"newer")
        (tmp_path / "new").replace(path)
        flock(descriptor, how)

    monkeypatch.setattr("fcntl.flock", replaced_first)
    file = GrowingFile(path)
    assert file.read(0, 9) == b"newer"
    assert file.length == 5
    file.close()
