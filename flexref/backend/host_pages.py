"""Host memory from the system for ports that pin it: address space at once, its pages when they are asked for."""

import ctypes
import errno
import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.errors import CapacityError
from flexref.units import ALIGNMENT_BYTES

HUGE_BYTES = 2 << 20
"""A huge page: a 512th of the pages is to be found, cleared and registered."""

MADV_POPULATE_WRITE = 23
"""Makes pages present and writable, and leaves what they hold (Linux 5.14); Python has no name for it."""


def mapped(nbytes: int) -> npt.NDArray[np.uint8]:
    """Address space of this process alone, zeros, in huge pages as far as they fit; `OSError` if there is none.

    Memory that may be shared has small pages on most systems, and a first touch of it takes several times as long. A
    process that is forked has none of this memory: it would be given a copy of every pinned page.
    """
    whole = nbytes // HUGE_BYTES * HUGE_BYTES
    pages = mmap.mmap(-1, nbytes + (HUGE_BYTES if whole else 0), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_DONTFORK)
    memory = np.frombuffer(pages, np.uint8)
    start = -int(memory.ctypes.data) % HUGE_BYTES if whole else 0
    if whole:
        with suppress(OSError):  # a system that was built without huge pages has small ones, as for everything else
            pages.madvise(mmap.MADV_HUGEPAGE, start, whole)
    return memory[start : start + nbytes]


def aligned_bytes(nbytes: int) -> npt.NDArray[np.uint8]:
    """Ordinary memory that begins where buffers of a port begin."""
    whole = np.empty(nbytes + ALIGNMENT_BYTES, np.uint8)
    return whole[-whole.ctypes.data % ALIGNMENT_BYTES :][:nbytes]


def present(nbytes: int, free_bytes: Callable[[], int]) -> npt.NDArray[np.uint8]:
    """What `mapped` gives with all of its pages there, to be pinned; `CapacityError` if the system refuses that."""
    try:
        memory = mapped(nbytes)
        make_present(memory.ctypes.data, nbytes)
    except (OSError, OverflowError) as error:
        raise CapacityError("host", "a pinned buffer", nbytes, free_bytes(), {}) from error
    return memory


def make_present(address: int, nbytes: int) -> None:
    """Let pages be there, with what they hold; `OSError` if there is no room for them.

    One huge page at a time: the system keeps its lock on the process's memory for a whole call, and until it ends every
    thread that maps or gives back memory waits, a driver's own ones too. Linux before 5.14 cannot: then pages come with
    the first use, be it the registration that follows.
    """
    call, end = _madvise(), address + nbytes
    while address < end:
        step = min(end, (address // HUGE_BYTES + 1) * HUGE_BYTES) - address
        if call(address, step, MADV_POPULATE_WRITE) != 0:
            number = ctypes.get_errno()
            if number == errno.EINVAL:
                return
            raise OSError(number, os.strerror(number))
        address += step


@cache
def _madvise() -> Any:
    """The system's call, which, unlike Python's own, lets other threads run meanwhile."""
    call = ctypes.CDLL(None, use_errno=True).madvise
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return call
