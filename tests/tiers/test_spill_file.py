"""A spill file beside an array: whatever is written, aligned or not, several at a time, is what is read."""

import errno
import os
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.errors import StorageError
from flexref.tiers import file_reads, spill_file
from flexref.tiers.spill_file import SpillFile

PAGE = 4096
PAGES = 80
NEAR = st.integers(0, PAGES * PAGE - 1) | st.integers(0, PAGES - 1).map(lambda page: page * PAGE)
LENGTHS = st.integers(1, 2 * PAGE) | st.sampled_from((PAGE, 3 * PAGE, 40 * PAGE, 40 * PAGE + 5))
SHIFTS = st.sampled_from((0, 0, 1, 512))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


def _memory(nbytes: int, shift: int) -> Any:
    """Bytes that begin `shift` after the beginning of a page."""
    whole = np.empty(nbytes + 2 * PAGE, np.uint8)
    start = -whole.ctypes.data % PAGE + shift
    return whole[start : start + nbytes]


def _is_like_an_array(file: SpillFile, data: st.DataObject) -> None:
    content = np.zeros(PAGES * PAGE, np.uint8)
    for number in range(data.draw(st.integers(1, 6))):
        cuts = sorted(set(data.draw(st.lists(NEAR, min_size=2, max_size=7))))
        pieces = []
        for start, end in pairwise(cuts):  # neighbours may share a page
            source = _memory(min(end - start, data.draw(LENGTHS)), data.draw(SHIFTS))
            source[:] = np.random.default_rng(number).integers(0, 256, source.nbytes, np.uint8)
            pieces.append((start, source))
            content[start : start + source.nbytes] = source
        told: list[int] = []
        file.together([partial(file.write, *piece) for piece in pieces], lambda told=told: told.append(1))  # type: ignore[misc]
        assert len(told) == len(pieces)
        start = data.draw(NEAR)
        into = _memory(min(PAGES * PAGE - start, data.draw(LENGTHS)), data.draw(SHIFTS))
        file.read(start, into)
        np.testing.assert_array_equal(into, content[start : start + into.nbytes])
    found = _memory(content.nbytes, 0)
    file.read(0, found)
    np.testing.assert_array_equal(found, content)


@settings(max_examples=60)
@given(direct=st.booleans(), data=st.data())
def test_what_is_written_is_read(folder: Path, direct: bool, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if not direct:
            patch.setattr(spill_file, "_bypasses_page_cache", lambda file: False)
        with closing(SpillFile(folder, PAGES * PAGE)) as file:
            assert direct or not file.direct
            _is_like_an_array(file, data)


@settings(max_examples=30)
@given(direct=st.booleans(), data=st.data())
def test_what_a_call_leaves_over_the_next_one_moves_from_a_place_where_it_may_begin(
    folder: Path, direct: bool, data: st.DataObject
) -> None:
    """Calls move less than they could; of a page that was moved in part nothing counts where calls are direct."""
    write, read, draw = os.pwritev, os.preadv, np.random.default_rng(data.draw(st.integers(0, 99)))

    def some(nbytes: int) -> int:
        return nbytes if draw.random() < 0.5 else int(draw.integers(max(1, nbytes - 2 * PAGE), nbytes + 1))

    def may_begin(offset: int) -> None:
        if file.direct and offset % PAGE:
            raise OSError(errno.EINVAL, "Invalid argument")

    def short_write(handle: int, buffers: Any, offset: int) -> int:
        may_begin(offset)
        count = some(len(buffers[0]))
        whole = count // PAGE * PAGE if file.direct else count
        assert not whole or write(handle, [buffers[0][:whole]], offset) == whole
        return count

    def short_read(handle: int, buffers: Any, offset: int) -> int:
        may_begin(offset)
        assert read(handle, buffers, offset) == len(buffers[0])
        count = some(len(buffers[0]))
        np.frombuffer(buffers[0], np.uint8)[count:] = 99
        return count

    with pytest.MonkeyPatch.context() as patch:
        if not direct:
            patch.setattr(spill_file, "_bypasses_page_cache", lambda file: False)
        patch.setattr(file_reads, "CALLS_IN_VAIN", 99)
        with closing(SpillFile(folder, PAGES * PAGE)) as file:
            patch.setattr(os, "pwritev", short_write)
            patch.setattr(os, "preadv", short_read)
            _is_like_an_array(file, data)


def test_a_disk_that_moves_nothing_any_more_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(SpillFile(folder, PAGES * PAGE)) as file:
        monkeypatch.setattr(os, "pwritev", lambda *_: 0)
        with pytest.raises(StorageError, match="nothing more can be written"):
            file.write(0, _memory(PAGE, 0))
        if file.direct:
            monkeypatch.setattr(os, "preadv", lambda *_: 100)
            with pytest.raises(StorageError, match=r"at byte 4096: 4 calls gave less than 4096 bytes"):
                file.read(PAGE, _memory(PAGE, 0))


def test_neighbours_that_share_a_page_lose_nothing_to_each_other(folder: Path) -> None:
    """Each of many threads writes some bytes of the same few pages, again and again."""
    with closing(SpillFile(folder, PAGES * PAGE)) as file:
        pieces = [(start, np.full(100, start // 100 % 251, np.uint8)) for start in range(0, 6 * PAGE, 100)]
        for _ in range(3):
            file.together([partial(file.write, *piece) for piece in pieces], lambda: None)
        found = np.empty(6 * PAGE, np.uint8)
        file.read(0, found)
    np.testing.assert_array_equal(found, np.arange(6 * PAGE) // 100 % 251)


def test_records_that_are_aligned_are_moved_without_a_copy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(SpillFile(folder, PAGES * PAGE)) as file:
        if not file.direct:
            pytest.skip("this file system has no direct reads")
        source = _memory(4 * PAGE, 0)
        source[:] = 7
        seen: list[int] = []
        write, read = os.pwritev, os.preadv

        def watch(call: Callable[..., int]) -> Callable[..., int]:
            def watched(handle: int, buffers: Any, offset: int) -> int:
                seen.append(np.frombuffer(buffers[0], np.uint8).ctypes.data)
                return call(handle, buffers, offset)

            return watched

        monkeypatch.setattr(os, "pwritev", watch(write))
        monkeypatch.setattr(os, "preadv", watch(read))
        file.write(PAGE, source)
        file.read(PAGE, source)
        assert seen == [source.ctypes.data] * 2


def test_after_a_failure_nothing_of_what_was_together_is_under_way(folder: Path) -> None:
    going, ended = threading.Event(), list[int]()

    def fail() -> None:
        going.wait(10)
        raise StorageError("on purpose")

    def slow() -> None:
        going.set()
        threading.Event().wait(0.05)
        ended.append(1)

    with closing(SpillFile(folder, PAGE)) as file:
        with pytest.raises(StorageError, match="on purpose"):
            file.together([fail, slow, slow], lambda: None)
        now = len(ended)
        threading.Event().wait(0.1)
        assert len(ended) == now >= 1


def test_where_no_more_threads_can_be_had_what_has_begun_is_waited_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = list[int]()

    def slow() -> None:
        threading.Event().wait(0.05)
        ended.append(1)

    with closing(SpillFile(folder, PAGE)) as file:
        submit, given = file._pool.submit, list[int]()

        def refuse(call: Callable[[], None]) -> Any:
            if given:
                raise RuntimeError("can't start new thread")
            given.append(1)
            future = submit(call)
            while not future.running():
                threading.Event().wait(0.001)
            return future

        monkeypatch.setattr(file._pool, "submit", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            file.together([slow, slow], lambda: None)
        assert ended == [1]
