"""The stack of results: offsets alone, so it is tested without any memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.backend.workspace import RESULT_ALIGNMENT_BYTES, Workspace
from flexref.errors import CapacityError
from flexref.units import aligned

sizes = st.lists(st.integers(0, 3 * RESULT_ALIGNMENT_BYTES), max_size=8)


@given(sizes)
def test_results_are_aligned_and_do_not_overlap(taken: list[int]) -> None:
    workspace = Workspace(None)
    end = 0
    for nbytes in taken:
        offset = workspace.take(nbytes)
        assert offset % RESULT_ALIGNMENT_BYTES == 0
        assert offset >= end
        end = offset + nbytes
    assert workspace.used_bytes >= end
    assert workspace.peak_bytes == workspace.used_bytes


@given(sizes, st.integers(0, 2000))
def test_a_workspace_never_holds_more_than_its_capacity(taken: list[int], capacity_bytes: int) -> None:
    workspace = Workspace(capacity_bytes)
    for nbytes in taken:
        before = workspace.used_bytes
        if before + aligned(nbytes, RESULT_ALIGNMENT_BYTES) <= capacity_bytes:
            assert workspace.take(nbytes) + nbytes <= capacity_bytes
        else:
            with pytest.raises(CapacityError) as error:
                workspace.take(nbytes)
            assert error.value.free_bytes == capacity_bytes - before
            assert workspace.used_bytes == before
    assert workspace.peak_bytes <= capacity_bytes


@given(sizes, sizes, sizes)
def test_a_frame_gives_back_what_was_taken_in_it(outer: list[int], inner: list[int], failing: list[int]) -> None:
    workspace = Workspace(None)
    for nbytes in outer:
        workspace.take(nbytes)
    before = workspace.used_bytes
    with workspace.frame():
        for nbytes in inner:
            workspace.take(nbytes)
        peak = workspace.used_bytes
    assert workspace.used_bytes == before
    assert workspace.used_bytes == before
    with pytest.raises(CapacityError):
        _take_too_much(workspace, failing)
    assert workspace.used_bytes == before
    assert workspace.peak_bytes >= max(peak, before)


def _take_too_much(workspace: Workspace, taken: list[int]) -> None:
    with workspace.frame():
        for nbytes in taken:
            workspace.take(nbytes)
        workspace.capacity_bytes = 0
        workspace.take(1)


def test_a_full_workspace_says_what_is_missing() -> None:
    workspace = Workspace(1024)
    workspace.take(512)
    with pytest.raises(
        CapacityError, match=r"workspace memory is too small by 512 bytes: .*needs 1\.00 KiB, 512 bytes"
    ):
        workspace.take(1024)
