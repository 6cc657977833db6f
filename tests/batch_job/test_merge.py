"""Outputs of shards are joined to what one process would have written, and nothing that does not fit together is."""

import errno
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorder_kit import HASTY, IDENTITY
from xxhash import xxh3_64_intdigest

from flexref.batch_job.answers import LineAnswer
from flexref.batch_job.identity import Identity
from flexref.batch_job.job_files import JobFiles
from flexref.batch_job.journal.line_facts import ExpectedLines
from flexref.batch_job.journal.reading import journal_path
from flexref.batch_job.merge import merge, read_shards
from flexref.batch_job.recorder import Recorder
from flexref.batch_job.shard import WHOLE, Shard
from flexref.cli.main import COMMANDS, command_group, run
from flexref.errors import BatchError, FlexrefError


@dataclass(frozen=True)
class Sharded:
    """A job over lines of which `kinds` says what they are: `.` blank, `o` answered, `x` failed."""

    folder: Path
    kinds: str
    count: int
    chunk_lines: int
    apart: bool = True

    @property
    def shards(self) -> list[Shard]:
        return [Shard(index, self.count, self.chunk_lines) for index in range(self.count)]

    def files(self, name: str) -> JobFiles:
        return JobFiles(self.folder / f"{name}.out", self.folder / f"{name}.err" if self.apart else None)

    def run(self, name: str, shard: Shard = WHOLE, identity: Identity = IDENTITY, *, lines: int | None = None) -> Path:
        """Answer a shard's lines, or the first few of them; where its output lies."""
        hashes = np.array([xxh3_64_intdigest(b"%d" % number) for number in range(1, len(self.kinds) + 1)], np.uint64)
        filled = np.array([kind != "." for kind in self.kinds], bool)
        expected = ExpectedLines(filled, hashes, shard)
        own = replace(identity, settings={**identity.settings, "shard": shard.in_words})
        with Recorder.open(self.files(name), own, expected, pace=HASTY) as recorder:
            for number in list(expected)[:lines]:
                data = b'{"line": %d, "text": "%s"}' % (number, b"x" * (number % 7))
                recorder.add(
                    LineAnswer(number, None, int(hashes[number - 1]), self.kinds[number - 1] == "x", data, 1, 1)
                )
            if lines is None:
                recorder.finish()
        return self.files(name).output

    def run_all(self) -> list[Path]:
        return [self.run(f"shard {shard.index}", shard) for shard in self.shards]

    def merged(self, outputs: list[Path], *, accept_arithmetic: bool = False) -> tuple[int, int]:
        files = self.files("merged")
        return merge(read_shards(outputs, accept_arithmetic=accept_arithmetic), files.output, files.errors)

    def found(self, name: str) -> list[bytes]:
        files = self.files(name)
        return [path.read_bytes() for path in (files.output, files.errors) if path is not None]

    def nothing_was_written(self) -> bool:
        return not any("merged" in path.name for path in self.folder.iterdir())


@given(
    st.text("..ooooox", max_size=60),
    st.integers(1, 4),
    st.integers(1, 9),
    st.booleans(),
    st.randoms(use_true_random=False),
)
@settings(max_examples=15, deadline=None)
def test_joined_outputs_are_those_of_one_process(
    kinds: str, count: int, chunk: int, apart: bool, chance: object
) -> None:
    with TemporaryDirectory() as folder:
        job = Sharded(Path(folder), kinds, count, chunk, apart)
        job.run("whole")
        outputs = job.run_all()
        chance.shuffle(outputs)  # type: ignore[attr-defined]
        assert job.merged(outputs) == (len(kinds) - kinds.count("."), kinds.count("x"))
        assert job.found("merged") == job.found("whole")


@pytest.fixture
def job(tmp_path: Path) -> Sharded:
    return Sharded(tmp_path, "ooxo.xxxoooo.ooxoooo", 3, 3)


def refused(job: Sharded, outputs: list[Path], said: str) -> None:
    """Merging them is refused in one line that says so, and nothing is written."""
    with pytest.raises(FlexrefError, match=said) as error:
        job.merged(outputs)
    assert "\n" not in str(error.value)
    assert job.nothing_was_written()


def test_a_shard_that_is_missing_is_named_with_its_lines(job: Sharded) -> None:
    outputs = job.run_all()
    refused(job, outputs[:1] + outputs[2:], "shard 1 of 3 is missing: it has the lines 4 to 6, 13 to 15$")


def test_a_shard_that_is_not_finished_is_named_and_up_to_where_it_is_whole(job: Sharded) -> None:
    outputs = [*job.run_all()[:2], job.run("half", job.shards[2], lines=3)]
    refused(job, outputs, r"half.out, shard 2 of 3, is not finished: it is whole up to line \d+; run it to its end$")


def test_a_shard_that_is_there_twice_is_named(job: Sharded) -> None:
    outputs = job.run_all()
    refused(
        job, [*outputs, job.run("again", job.shards[1])], "again.out, shard 1 of 3, is there already: .*shard 1.out$"
    )


def test_shards_of_two_jobs_are_told_apart_by_what_differs(job: Sharded) -> None:
    outputs = job.run_all()[:2]
    other = replace(IDENTITY, settings={**IDENTITY.settings, "temperature": 0.7})
    refused(job, [*outputs, job.run("other", job.shards[2], other)], "other.out is of another job than .*temperature: ")


def test_shards_that_divide_the_input_otherwise_do_not_fit_together(job: Sharded) -> None:
    outputs = job.run_all()[:2]
    refused(
        job, [*outputs, job.run("other", Shard(2, 3, 4))], "the input was divided otherwise: 0/3 in chunks of 3 lines"
    )


def test_shards_of_other_machines_are_joined_if_that_is_accepted(job: Sharded) -> None:
    other = replace(IDENTITY, arithmetic={"numpy": "3.0"})
    outputs = [*job.run_all()[:2], job.run("other", job.shards[2], other)]
    refused(job, outputs, "arithmetic, numpy: ")
    job.run("whole")
    job.merged(outputs, accept_arithmetic=True)
    assert job.found("merged") == job.found("whole")


def spoilt(data: bytes) -> Iterator[bytes]:
    """Files that are not what was written."""
    yield data[:-1]
    yield data + b"{}\n"
    yield data.replace(b"line", b"LINE", 1)
    yield data[: data.index(b"\n") + 1]
    yield b""


def test_outputs_that_do_not_match_their_journals_are_named(job: Sharded) -> None:
    outputs = job.run_all()
    for path in (job.files("shard 1").output, job.files("shard 1").errors):
        assert path is not None
        whole = path.read_bytes()
        for data in spoilt(whole):
            if data != whole:
                path.write_bytes(data)
                refused(job, outputs, f"{path.name} does not match its journal: ")
        path.unlink()
        refused(job, outputs, f"cannot read .*{path.name}: No such file")
        path.write_bytes(whole)
    job.merged(outputs)


def test_an_output_without_a_journal_or_with_a_torn_one_is_none(job: Sharded) -> None:
    outputs = job.run_all()
    journal = journal_path(outputs[0])
    whole = journal.read_bytes()
    journal.unlink()
    refused(job, outputs, "cannot read .*shard 0.out.journal")
    for length in range(0, len(whole), 97):
        journal.write_bytes(whole[:length])
        with suppress(BatchError):
            job.merged(outputs)
        if not job.nothing_was_written():
            break
    # only what is cut off after the job had finished makes no difference
    assert b'"finished"' in whole[:length] or job.nothing_was_written()


def test_failed_lines_go_where_they_lie_or_nowhere(job: Sharded) -> None:
    outputs = job.run_all()
    with pytest.raises(BatchError, match="failed lines lie in files of their own: give --errors"):
        merge(read_shards(outputs), job.folder / "merged.out")
    together = replace(job, folder=job.folder / "together", apart=False)
    together.folder.mkdir()
    with pytest.raises(BatchError, match="failed lines stand in the outputs: give no --errors"):
        merge(read_shards(together.run_all()), job.folder / "merged.out", job.folder / "merged.err")
    assert job.nothing_was_written()


def call(*arguments: str) -> int:
    """The exit code of `flexref batch merge`."""
    return run(command_group(COMMANDS), ["batch", "merge", *arguments])


def test_nothing_is_published_before_all_of_it_is_on_the_disk(job: Sharded, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, synced = job.run_all(), []

    def sync(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 2:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.fsync", sync)
    refused(job, outputs, "cannot write .*merged.err: Input/output error")


def test_the_command_writes_both_files_and_says_how_many_lines_they_have(
    job: Sharded, capsys: pytest.CaptureFixture[str]
) -> None:
    job.run("whole")
    outputs = [str(path) for path in job.run_all()]
    merged, errors = (str(path) for _, path in job.files("merged").answers())
    assert call(*outputs, "-o", merged) == 1
    assert "give --errors" in capsys.readouterr().err
    assert call(*outputs, "-o", merged, "--errors", errors, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"shards": 3, "lines": 18, "lines_failed": 5, "output": merged}
    assert job.found("merged") == job.found("whole")
    assert call(*outputs, "-o", merged, "--errors", errors) == 1
    assert "it is there already; --force replaces it" in capsys.readouterr().err
    assert call(*outputs, "-o", outputs[0], "--errors", errors, "--force") == 1
    assert "this command reads it" in capsys.readouterr().err
    assert call(*outputs, "-o", merged, "--errors", errors, "--force") == 0


@pytest.mark.parametrize("streamed", ["-o", "--errors"])
def test_a_file_is_not_called_as_standard_output_is(
    streamed: str, job: Sharded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is merged is whole or not there, which a stream cannot be."""
    monkeypatch.chdir(job.folder)
    outputs = [str(path) for path in job.run_all()]
    asked = {"-o": "merged.out", "--errors": "merged.err", streamed: "-"}
    assert call(*outputs, *(word for pair in asked.items() for word in pair)) == 1
    assert capsys.readouterr().err.splitlines() == [
        "flexref: cannot write -: this goes to a file, not to standard output; ./- is a file of that name"
    ]
    assert job.nothing_was_written()
    assert not (job.folder / "-").exists()
    asked[streamed] = "./-"
    assert call(*outputs, *(word for pair in asked.items() for word in pair)) == 0
    assert (job.folder / "-").is_file()


def test_merge_is_a_word_of_batch_and_a_file_of_that_name_is_reached_by_its_path(
    job: Sharded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(job.folder)
    together = replace(job, apart=False)
    outputs = [path.name for path in together.run_all()]
    assert run(command_group(COMMANDS), ["batch", "merge", *outputs, "-o", "merged.out"]) == 0
    assert capsys.readouterr().err == "merged.out: 18 lines of 3 shards, 5 of them failed\n"
    assert run(command_group(COMMANDS), ["-q", "batch", "merge", *outputs, "-o", "merged.out", "--force"]) == 0
    assert capsys.readouterr().err == ""
    assert run(command_group(COMMANDS), ["batch", "merge", *outputs[:2], "-o", "again.out"]) == 1
    assert "flexref: shard 2 of 3 is missing: " in capsys.readouterr().err
    assert run(command_group(COMMANDS), ["batch", "./merge", "--model", "demo", "-o", "out"]) == 1
    assert "cannot read merge: No such file" in capsys.readouterr().err
