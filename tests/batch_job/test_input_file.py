"""The lines of an input: what a scan finds, and that reading gives the same from any line on, whatever the bytes."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from flexref.batch_job import input_file
from flexref.batch_job.answers import Line
from flexref.batch_job.input_file import read_lines, scan
from flexref.batch_job.input_stream import InputStream
from flexref.errors import StorageError

LONGEST = 16
"""In place of the real bound: examples stay small."""

PIECES = st.sampled_from([b"a", b"\r", b" ", b"\xff", b"{}", b"x" * 15, b"x" * 16, b"x" * 17, b"x" * 40, b"\xc2\xa0"])

LINES = st.lists(st.lists(PIECES, max_size=3).map(b"".join), max_size=30)

ENDS = st.sampled_from([b"\n", b"\r\n"])


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_file, "LONGEST_LINE_BYTES", LONGEST)
    monkeypatch.setattr(input_file, "BEGINNING_BYTES", 4)
    monkeypatch.setattr(input_file, "PIECE_BYTES", 5)
    monkeypatch.setattr(input_file, "OFFSETS_EVERY", 4)


def expected(data: bytes) -> list[Line]:
    """What the lines of a file are, by way of its whole content."""
    lines = data.split(b"\n")
    ended = [line.removesuffix(b"\r") for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    if ended:
        ended[0] = ended[0].removeprefix(b"\xef\xbb\xbf")
    found = []
    for number, line in enumerate(ended, start=1):
        too_long = len(line) > LONGEST
        found.append(Line(number, line[:4], xxh3_64_intdigest(line)) if too_long else Line(number, line))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lines")


@given(LINES, ENDS, st.booleans(), st.booleans(), st.data())
def test_a_file_is_its_lines_from_any_of_them_on(
    folder: Path, lines: list[bytes], end: bytes, marked: bool, ended: bool, data: st.DataObject
) -> None:
    whole = (b"\xef\xbb\xbf" if marked else b"") + end.join(lines) + (end if ended else b"")
    path = folder / "in.txt"
    path.write_bytes(whole)
    wanted = expected(whole)
    found = scan(path)
    assert list(read_lines(found)) == wanted == list(InputStream(BytesIO(whole)))
    assert (found.lines, found.size_bytes) == (len(wanted), len(whole))
    assert found.digest == xxh3_128_hexdigest(whole)
    assert found.hashes.tolist() == [line.request_hash for line in wanted]
    assert found.filled.tolist() == [bool(line.data.strip()) or line.digest is not None for line in wanted]
    assert found.filled.tolist() == [not line.blank for line in wanted]
    some = sorted(data.draw(st.sets(st.sampled_from(range(1, len(wanted) + 1))))) if wanted else []
    assert list(read_lines(found, some)) == [wanted[number - 1] for number in some]


@given(st.lists(st.sampled_from(["a", "b", "c", 1, None, "absent", "broken"]), max_size=20))
def test_equal_ids_are_named_with_the_first_line_that_has_them(folder: Path, ids: list[object]) -> None:
    special = {"absent": "{}", "broken": '{"custom_id":"a"'}
    lines = [special.get(str(each)) or json.dumps({"custom_id": each})[:60] for each in ids]
    path = folder / "ids.jsonl"
    path.write_text("\n".join(lines))
    first: dict[object, int] = {}
    wanted = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(input_file, "LONGEST_LINE_BYTES", 100)
        for number, each in enumerate(ids, start=1):
            if each in {"a", "b", "c"} and first.setdefault(each, number) != number:
                wanted[number] = first[each]
        found = scan(path)
        assert dict(found.duplicates.items()) == wanted
        assert len(found.duplicates) == len(wanted)
        assert [found.duplicates.get(number) for number in range(len(ids) + 2)] == [
            wanted.get(number) for number in range(len(ids) + 2)
        ]
        marked = {line.number: line.duplicate_of for line in read_lines(found)}
        assert {number: other for number, other in marked.items() if other is not None} == wanted
        for step in (2, 3, 7):
            some = read_lines(found, range(1, len(ids) + 1, step))
            assert [line.duplicate_of for line in some] == [marked[line] for line in range(1, len(ids) + 1, step)]
        if lines and lines[0] not in special.values():
            streamed = InputStream(BytesIO(path.read_bytes()))
            assert {line.number: line.duplicate_of for line in streamed} == marked


@pytest.mark.parametrize(
    ("name", "content", "as_json"),
    [
        ("in.jsonl", "", True),
        ("in.jsonl", "text\n", True),
        ("in.txt", "\n  \n{}\n", True),
        ("in.txt", '{"a": 1\n{}', False),
        ("in.txt", "[1]\n{}", False),
        ("in.txt", '{"prompt": "a long line"}\n', True),
        ("in.txt", "", False),
    ],
)
def test_the_suffix_or_the_first_filled_line_says_what_lines_are(
    tmp_path: Path, name: str, content: str, as_json: bool
) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert scan(path).as_json is as_json
    if name == "in.txt":
        assert InputStream(BytesIO(content.encode())).as_json is as_json


@pytest.mark.parametrize("change", ["append", "replace", "touch", "shorten", "remove"])
def test_a_file_that_changes_is_not_read_on(tmp_path: Path, change: str) -> None:
    path = tmp_path / "in.txt"
    path.write_text("".join(f"{number}\n" for number in range(5000)))
    found = scan(path)
    lines = read_lines(found)
    assert next(lines).data == b"0"
    if change == "append":
        with path.open("a") as file:
            file.write("more\n")
    elif change == "replace":
        other = tmp_path / "other"
        other.write_bytes(path.read_bytes())
        other.replace(path)
    elif change == "touch":
        path.write_bytes(path.read_bytes().replace(b"4999", b"4998"))
    elif change == "shorten":
        path.write_text("1\n")
    else:
        path.unlink()
    if change not in {"replace", "remove"}:  # what is open stays what it is
        with pytest.raises(StorageError, match="was changed while the job read it"):
            list(lines)
    words = "cannot read" if change == "remove" else "was changed"
    with pytest.raises(StorageError, match=words):
        next(read_lines(found, [3]))


def test_what_is_no_regular_file_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*: it is no regular file"):
        scan("/dev/zero")
    with pytest.raises(StorageError, match=r"cannot read .*none: No such file"):
        scan(tmp_path / "none")


def test_a_byte_order_mark_is_no_part_of_a_line_s_length(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    for length, too_long in ((LONGEST, False), (LONGEST + 1, True)):
        path.write_bytes(b"\xef\xbb\xbf" + b"x" * length + b"\r\nmore")
        first, more = read_lines(scan(path))
        assert (first.digest is not None, first.request_hash) == (too_long, xxh3_64_intdigest(b"x" * length))
        assert more.data == b"more"


def test_a_scan_holds_little_of_a_long_line_and_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes(b"x" * 100_000 + b"\nshort\n")
    found = scan(path)
    long, short = read_lines(found)
    assert (long.data, long.digest, long.blank) == (b"xxxx", xxh3_64_intdigest(b"x" * 100_000), False)
    assert short == Line(2, b"short")
    assert found.hashes.dtype == np.uint64
