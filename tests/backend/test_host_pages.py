"""Address space for pinned memory: what the system is told of it, and what making it present leaves in it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.backend import host_pages
from flexref.backend.host_pages import HUGE_BYTES, make_present, mapped


def test_it_lies_in_huge_pages_of_this_process_alone_and_no_fork_copies_it() -> None:
    memory = mapped(3 * HUGE_BYTES + 4096)
    address = int(memory.ctypes.data)
    assert address % HUGE_BYTES == 0
    flags: list[str] = []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(":"):
            first, last = (int(end, 16) for end in name.split("-"))
            found = first <= address < last
            shared = values[0][3] if found else ""
            assert shared in {"", "p"}
        elif found and name == "VmFlags:":
            flags = values
    assert "dc" in flags  # not copied by a fork
    if Path("/sys/kernel/mm/transparent_hugepage").exists():
        assert "hg" in flags


@pytest.mark.parametrize("nbytes", [4096, HUGE_BYTES + 8192])
def test_making_it_present_leaves_what_it_holds(nbytes: int) -> None:
    memory = mapped(nbytes)
    assert not memory.any()
    memory[::4096] = 7
    make_present(int(memory.ctypes.data), nbytes)
    assert (memory[::4096] == 7).all()
    assert int(memory.sum()) == 7 * (nbytes // 4096)


def test_what_the_system_does_not_have_is_refused() -> None:
    with pytest.raises(OSError, match="memory"):
        mapped(1 << 60)


@given(start=st.integers(0, 6), pages=st.integers(1, 1300))
def test_it_is_made_present_a_huge_page_at_a_time(start: int, pages: int) -> None:
    """The system lets nobody map memory while such a call lasts."""
    asked: list[tuple[int, int]] = []

    def madvise(address: int, nbytes: int, advice: int) -> int:
        asked.append((address, nbytes))
        return 0

    first, last = start * 4096 + HUGE_BYTES, start * 4096 + HUGE_BYTES + pages * 4096
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_pages, "_madvise", lambda: madvise)
        make_present(first, last - first)
    assert asked[0][0] == first
    assert [address + nbytes for address, nbytes in asked] == [*(address for address, _ in asked[1:]), last]
    assert all(address // HUGE_BYTES == (address + nbytes - 1) // HUGE_BYTES for address, nbytes in asked)
