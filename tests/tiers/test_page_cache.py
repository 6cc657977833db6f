"""Bytes that are wrong in the page cache alone: what is read again comes from the disk, to the last partial page."""

import mmap
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.check.models import write_model
from flexref.storage.checks import PartChecker, checksum_of
from flexref.storage.weightfile import WeightFile, open_weight_file
from flexref.tiers.checked_spill import CheckedSpill
from flexref.tiers.disk import WeightsOnDisk
from flexref.tiers.faults import FaultSeen
from flexref.tiers.spill_file import SpillFile
from flexref.tiers.weight_copies import WeightCopies

SPEC = ModelSpec("small", 50, 48, 16, 16, 2, 2, 32)
PAGE = mmap.PAGESIZE


@contextmanager
def wrong_page(number: int) -> Iterator[None]:
    """One page of every file is wrong until the system is asked to drop all of it (posix_fadvise(2), DONTNEED)."""
    wrong, preadv = {number}, os.preadv

    def read(file: int, buffers: Any, offset: int) -> int:
        count = preadv(file, buffers, offset)
        memory = np.frombuffer(buffers[0], np.uint8)
        for page in wrong:
            memory[max(0, page * PAGE - offset) : max(0, min(count, (page + 1) * PAGE - offset))] ^= 1
        return count

    def advise(file: int, offset: int, nbytes: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        dropped = range(-(-offset // PAGE), (offset + nbytes) // PAGE)
        wrong.difference_update(dropped)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "preadv", read)
        patch.setattr(os, "posix_fadvise", advise)
        yield


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> WeightFile:
    path = tmp_path_factory.mktemp("page_cache") / "model.h5"
    write_model(path, SPEC)
    return open_weight_file(str(path))


def opened(file: WeightFile, told: list[FaultSeen]) -> Any:
    return closing(WeightCopies(file, (WeightsOnDisk(file.path),), told.append, (0.0,)))


@given(data=st.data())
def test_a_weight_comes_from_the_disk(file: WeightFile, data: st.DataObject) -> None:
    extent = (part := data.draw(st.sampled_from(list(file.parts)))).extent
    page, told = data.draw(st.integers(extent.offset, extent.stop - 1)) // PAGE, list[FaultSeen]()
    into = np.zeros(extent.nbytes, np.uint8)
    with opened(file, told) as copies, wrong_page(page):
        copies.read(extent.offset, into, partial(PartChecker, [part], extent.offset))
    assert checksum_of(into) == part.checksum
    assert [fault.kind for fault in told] == ["retry"]


@given(row_bytes=st.integers(1, 300), data=st.data())
def test_rows_come_from_the_disk(file: WeightFile, row_bytes: int, data: st.DataObject) -> None:
    content, told = np.fromfile(file.path, np.uint8), list[FaultSeen]()
    offsets = np.array(data.draw(st.lists(st.integers(0, len(content) - row_bytes), min_size=1, max_size=4)))
    rows = np.stack([content[offset : offset + row_bytes] for offset in offsets])
    page = (offsets[0] + data.draw(st.integers(0, row_bytes - 1))) // PAGE
    into = np.zeros_like(rows)
    with opened(file, told) as copies, wrong_page(int(page)):
        copies.read_rows(offsets, into, np.array([checksum_of(row) for row in rows], np.uint64))
    assert (into == rows).all()
    assert told


@given(offset=st.integers(0, 3 * PAGE), nbytes=st.integers(1, 2 * PAGE), data=st.data())
def test_what_was_spilled_comes_from_the_disk(tmp_path_factory: Any, offset: int, nbytes: int, data: Any) -> None:
    told, written, into = list[FaultSeen](), np.arange(nbytes).astype(np.uint8), np.zeros(nbytes, np.uint8)
    folder: Path = tmp_path_factory.getbasetemp()
    with closing(CheckedSpill(SpillFile(folder, 6 * PAGE), told.append)) as spill:
        spill.write(offset, written)
        with wrong_page((offset + data.draw(st.integers(0, nbytes - 1))) // PAGE):
            spill.read(offset, into)
    assert (into == written).all()
    assert [fault.kind for fault in told] == ["retry"]
