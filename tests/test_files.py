"""Small files are read whole and bounded, and written whole or not at all."""

import os
import stat
from pathlib import Path

import pytest

from flexref import files
from flexref.errors import PolicyError, PromptError, StorageError
from flexref.files import NewFile, as_json, as_text, read_bytes, read_object, write_text


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


def test_a_text_that_is_no_utf8_and_a_line_that_is_no_json_are_named(tmp_path: Path) -> None:
    assert as_text("ö".encode(), "here", PromptError) == "ö"
    with pytest.raises(PromptError, match=r"^here: not UTF-8: .* at byte 1$"):
        as_text(b"a\xff", "here", PromptError)
    with pytest.raises(PromptError, match=r"^here: not JSON: "):
        as_json("{", "here", PromptError)
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
