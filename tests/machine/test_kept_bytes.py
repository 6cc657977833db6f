"""What is kept comes back as it was or not at all, in few bytes, whoever else uses, damages or forbids the folder."""

import logging
import os
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from flexref.machine.kept_bytes import DIGEST_BYTES, SUFFIX, KeptBytes
from flexref.machine.names import CACHE_VARIABLE, kept_folder, kept_names

MOST = 2 * (DIGEST_BYTES + 60) + 5
KEYS = st.sampled_from(["a", "b", "c", "d"])
CONTENT = st.sampled_from([b"", bytes(20), bytes(range(60)), b"\xff" * 61, b"x" * 65])


class KeptByTwo(RuleBasedStateMachine):
    """Two processes and one folder; `used` has the keys in the order of their last use, with what was put."""

    stores = Bundle("stores")

    @initialize(target=stores)
    def first(self) -> KeptBytes:
        self.temporary = TemporaryDirectory()
        self.folder = Path(self.temporary.name) / "new" / "kernels"
        self.used: dict[str, bytes] = {}
        return KeptBytes(self.folder, MOST)

    @rule(target=stores)
    def another_process(self) -> KeptBytes:
        return KeptBytes(self.folder, MOST)

    @rule(store=stores, key=KEYS, content=CONTENT)
    def put(self, store: KeptBytes, key: str, content: bytes) -> None:
        store.put(key, content)
        self.used.pop(key, None)
        self.used[key] = content
        while sum(DIGEST_BYTES + len(kept) for kept in self.used.values()) > MOST:
            del self.used[next(iter(self.used))]

    @rule(store=stores, key=KEYS)
    def get(self, store: KeptBytes, key: str) -> None:
        assert store.get(key) == self.used.get(key)
        if key in self.used:
            self.used[key] = self.used.pop(key)

    @rule(store=stores, key=KEYS, place=st.integers(0, 200), flipped=st.integers(1, 255))
    def damage_a_byte(self, store: KeptBytes, key: str, place: int, flipped: int) -> None:
        if key in self.used:
            path = self.folder / f"{key}{SUFFIX}"
            data = bytearray(path.read_bytes())
            data[place % len(data)] ^= flipped
            path.write_bytes(data)
            assert store.get(key) is None
            store.put(key, self.used[key])
            self.used[key] = self.used.pop(key)

    @rule(store=stores, key=KEYS, length=st.integers(0, 60))
    def cut_short(self, store: KeptBytes, key: str, length: int) -> None:
        path = self.folder / f"{key}{SUFFIX}"
        if key in self.used and length < path.stat().st_size:
            os.truncate(path, length)
            assert store.get(key) is None
            path.unlink()
            del self.used[key]

    @rule(store=stores, one=KEYS, other=KEYS)
    def rename(self, store: KeptBytes, one: str, other: str) -> None:
        if one in self.used and one != other:
            os.replace(self.folder / f"{one}{SUFFIX}", self.folder / f"{other}{SUFFIX}")
            assert store.get(other) is None
            (self.folder / f"{other}{SUFFIX}").unlink()
            self.used.pop(other, None)
            del self.used[one]

    @invariant()
    def little_is_kept(self) -> None:
        if hasattr(self, "folder") and self.folder.exists():
            names = [path.name for path in self.folder.iterdir()]
            assert sorted(names) == sorted(f"{key}{SUFFIX}" for key in self.used)
            assert sum(path.stat().st_size for path in self.folder.iterdir()) <= MOST

    def teardown(self) -> None:
        if hasattr(self, "temporary"):
            self.temporary.cleanup()


TestKeptByTwo = KeptByTwo.TestCase


def test_what_was_used_least_recently_goes_first(tmp_path: Path) -> None:
    store = KeptBytes(tmp_path, 2 * DIGEST_BYTES + 2)
    store.put("a", b"1")
    store.put("b", b"2")
    assert KeptBytes(tmp_path, 0).get("b") is None  # one that would be too long to be kept is not read, either
    assert store.get("a") == b"1"
    store.put("c", b"3")
    assert (store.get("a"), store.get("b"), store.get("c")) == (b"1", None, b"3")


def test_a_folder_that_cannot_be_is_told_of_once_and_nothing_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    store = KeptBytes(tmp_path / "file" / "kernels", MOST)
    with caplog.at_level(logging.INFO):
        threads = [threading.Thread(target=store.put, args=(str(number), b"x")) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.get("0") is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "nothing is kept there" in record.getMessage()
    assert str(tmp_path / "file") in record.getMessage()


def test_a_damaged_entry_is_told_of_to_who_asks_for_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = KeptBytes(tmp_path, MOST)
    store.put("a", b"program")
    (tmp_path / f"a{SUFFIX}").write_bytes(b"else")
    with caplog.at_level(logging.INFO):
        assert store.get("a") is None
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage() == f"{tmp_path / f'a{SUFFIX}'} is damaged; it is made anew"


def test_a_folder_that_may_not_be_looked_into_keeps_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = KeptBytes(tmp_path / ("x" * 300), MOST)  # the file system refuses to look, as it does at another user's
    assert store.get("a") is None
    store.put("a", b"x")
    assert store.get("a") is None
    assert ["nothing is kept there" in record.getMessage() for record in caplog.records] == [True]


def test_a_user_without_a_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", CACHE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user of no name
    assert kept_names() == []
    store = KeptBytes(kept_folder("kernels"), MOST)
    assert store.get("a") is None
    store.put("a", b"x")
    assert ["nothing is kept there" in record.getMessage() for record in caplog.records] == [True]
