"""A file that answers of a stream go to: whole or not there, through a link, and never in the place of a device."""

import os
import stat
import threading
from contextlib import closing
from pathlib import Path

import pytest

from flexref.batch_job.whole_file import WholeFile
from flexref.errors import StorageError


def written(path: Path, *parts: bytes) -> None:
    with closing(WholeFile(path)) as file:
        for part in parts:
            file.write(part)
        file.sync()
        file.publish()


@pytest.mark.parametrize("there", [False, True])
def test_it_appears_whole_with_an_older_one_s_rights(tmp_path: Path, there: bool) -> None:
    path = tmp_path / "out.jsonl"
    if there:
        path.write_bytes(b"old")
        path.chmod(0o640)
    with closing(WholeFile(path)) as file:
        file.write(b"one\n")
        assert path.exists() == there
    assert path.exists() == there  # not published, nothing has changed
    written(path, b"one\n", b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"
    assert not there or stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["out.jsonl"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    folder, link = tmp_path / "elsewhere", tmp_path / "out.jsonl"
    folder.mkdir()
    link.symlink_to(folder / "real.jsonl")
    for data in (b"one\n", b"two\n"):
        written(link, data)
        assert link.is_symlink()
        assert (folder / "real.jsonl").read_bytes() == data


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    """As does /dev/null, which whoever may do anything could replace."""
    pipe, found = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()), daemon=True)
    reader.start()
    written(pipe, b"one\n", b"x" * 200_000)
    reader.join(60)
    assert found == [b"one\n" + b"x" * 200_000]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_device_that_takes_nothing_is_named() -> None:
    with closing(WholeFile(Path("/dev/full"))) as file, pytest.raises(StorageError, match="cannot write /dev/full: No"):
        file.write(b"one\n")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        WholeFile(tmp_path / "gone" / "out.jsonl")
