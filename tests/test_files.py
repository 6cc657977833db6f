"""Small files are read whole and bounded, and written whole or not at all."""

import fcntl
import os
import signal
import stat
import subprocess
import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from flexref import files
from flexref.errors import PolicyError, PromptError, StorageError
from flexref.files import NewFile, as_text, open_regular, read_bytes, read_object, write_bytes, write_text


def test_an_object_is_read_and_what_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    path.write_text('{"one": [1]}')
    assert read_object(path, PolicyError) == {"one": [1]}
    for text, why in (
        ("[1]", "must hold a JSON object, found list"),
        ("{", "is not JSON"),
        ("[" * 99999, "is not JSON"),
    ):
        path.write_text(text)
        with pytest.raises(PolicyError, match=f"^{path} {why}"):
            read_object(path, PolicyError)
    with pytest.raises(StorageError, match=f"^cannot read policy {tmp_path}/none: No such file"):
        read_object(tmp_path / "none", PolicyError, what="policy ")


def test_an_object_that_is_too_long_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGEST_JSON_BYTES", 8)
    path = tmp_path / "long.json"
    path.write_text('{"a":11}')
    assert read_object(path, PolicyError) == {"a": 11}
    path.write_text('{"a":111}')
    with pytest.raises(PolicyError, match=r"long\.json has 9 bytes, at most 8 are read"):
        read_object(path, PolicyError)


def test_an_object_with_a_key_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text('{"a": {"b": 1, "c": 2, "b": 3}}')
    with pytest.raises(PolicyError, match=r"policy\.json is not JSON: the key 'b' stands twice in one of its objects"):
        read_object(path, PolicyError)


def test_a_text_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    assert as_text("ö".encode(), "here", PromptError) == "ö"
    with pytest.raises(PromptError, match=r"^here: not UTF-8: .* at byte 1$"):
        as_text(b"a\xff", "here", PromptError)
    with pytest.raises(PromptError, match="cannot be read: Is a directory"):
        read_bytes(tmp_path, PromptError)


def test_a_text_replaces_an_older_one_and_keeps_its_rights_and_its_link(tmp_path: Path) -> None:
    path, link = tmp_path / "old", tmp_path / "link"
    write_text(path, "older and longer")
    path.chmod(0o640)
    link.symlink_to(path)
    write_text(link, "new")
    assert link.is_symlink()
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "old"]


@pytest.mark.parametrize("step", ["write", "publish"])
def test_a_write_that_fails_leaves_what_was_there(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "kept"
    path.write_text("old")
    monkeypatch.setattr(NewFile, step, full)
    with pytest.raises(StorageError, match=f"^cannot write trace {path}: No space left on device$"):
        write_text(path, "new", what="trace ")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]


OPENER = """
import sys
import warnings
from flexref.errors import PolicyError, PromptError
from flexref.files import read_bytes, read_object
for call in (lambda: read_bytes(sys.argv[1], most_bytes=1 << 20), lambda: read_object(sys.argv[1], PolicyError)):
    try:
        call()
    except Exception as error:
        print(error)
"""


def test_pipes_devices_folders_and_huge_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "nowhere").symlink_to("gone")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    for name, said in {
        "pipe": "it is no regular file",
        "zero": "it is no regular file",
        "nowhere": "No such file or directory",
        "sparse": None,
        ".": "Is a directory",
    }.items():
        path = str(tmp_path / name)
        command = [sys.executable, "-c", OPENER, path]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        lines = [f"{path}: cannot be read: {said}", f"cannot read {path}: {said}"]
        if said is None:
            huge = "1099511627776 bytes, at most"
            lines = [f"{path}: cannot be read: it has {huge} 1048576 are read", f"{path} has {huge} 67108864 are read"]
        assert done.stdout.splitlines() == lines
        assert done.stderr == ""


def test_a_file_that_hides_its_size_is_read_up_to_the_bound() -> None:
    assert read_bytes("/proc/self/status").startswith(b"Name:")
    with pytest.raises(StorageError, match=r"at most 9 are read$"):
        read_bytes("/proc/self/status", most_bytes=9)


@pytest.mark.parametrize("unnamed", [True, False])
@pytest.mark.parametrize("call", ["pwrite", "fsync", "replace"])
def test_a_full_disk_keeps_the_older_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool, call: str
) -> None:
    (tmp_path / "older").write_text("older")
    if not unnamed:
        monkeypatch.setattr(NewFile, "_unnamed", lambda self: -1)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(StorageError, match="No space left on device"):
            write_bytes(tmp_path / "older", b"newer")
    assert (tmp_path / "older").read_text() == "older"
    assert os.listdir(tmp_path) == ["older"]


@pytest.mark.parametrize("unnamed", [True, False])
def test_a_file_system_without_locks_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    if not unnamed:
        monkeypatch.setattr(NewFile, "_unnamed", lambda self: -1)
    monkeypatch.setattr(fcntl, "flock", refuse)
    write_bytes(tmp_path / "new", b"whole")
    write_bytes(tmp_path / "new", b"newer")
    assert (tmp_path / "new").read_bytes() == b"newer"
    assert os.listdir(tmp_path) == ["new"]


def test_what_only_looks_like_a_leftover_is_not_removed(tmp_path: Path) -> None:
    for name in (".new.notes.partial", ".new.old.0123abcd.partial", ".new.0123abcd.partial"):
        (tmp_path / name).touch()
    write_bytes(tmp_path / "new", b"whole")
    assert sorted(os.listdir(tmp_path)) == [".new.notes.partial", ".new.old.0123abcd.partial", "new"]


def test_a_device_is_written_to_and_stays_one(tmp_path: Path) -> None:
    write_bytes("/dev/null", b"x" * 100_000)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    for path, said in (
        ("/dev/full", "/dev/full: No space left on device"),
        ("", "'': No such file or directory"),
        (str(tmp_path), f"{tmp_path}: Is a directory"),
    ):
        with pytest.raises(StorageError, match=f"^cannot write {said}$"):
            write_bytes(path, b"x")


def test_the_output_that_is_a_pipe_is_written_to_by_its_device() -> None:
    code = "from flexref.files import write_text; write_text('/dev/stdout', 'through')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("through", "")


WRITER = """
import sys, time
from pathlib import Path
from types import FrameType
from typing import Any
from flexref.files import NewFile
new = NewFile(Path(sys.argv[1]))
new.write(memoryview(b"half"), 0)
print("half", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_the_process_removes_what_is_not_whole(tmp_path: Path, sent: signal.Signals) -> None:
    (tmp_path / "file").write_text("older")
    command = [sys.executable, "-c", WRITER, str(tmp_path / "file")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    process.send_signal(sent)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert (tmp_path / "file").read_text() == "older"
    assert os.listdir(tmp_path) == ["file"]


def test_a_pipe_is_written_in_place(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(path, "through")
        assert os.read(reader, 99) == b"through"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_an_interrupt_while_a_file_is_opened_stays_an_interrupt(tmp_path: Path) -> None:
    """Wherever it comes: a descriptor that was closed twice would make another error of it."""
    path = tmp_path / "text"
    path.write_bytes(b"some")

    def interrupted(at: int) -> bool:
        left = at

        def trace(frame: FrameType, event: str, value: object) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                del value  # else the error would keep what is returned alive
                raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            open_regular(path).close()
        finally:
            sys.settrace(None)
        return left < 0

    met = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the object that nobody has any more says so
        for at in range(200):
            try:
                if not interrupted(at):
                    break
            except KeyboardInterrupt:
                met += 1
        else:
            raise AssertionError("it was interrupted 200 times, and never came to its end")
    assert met > 5
