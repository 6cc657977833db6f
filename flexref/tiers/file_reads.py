"""Reads of files at a place, past the page cache where they are aligned and the file system allows it; it knows no
content.
"""

import mmap
import os
from collections.abc import Sequence
from concurrent.futures import Future, wait
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from flexref.errors import StorageError
from flexref.units import aligned

Bytes = npt.NDArray[np.uint8]


def forget_pages(file: int, offset: int, nbytes: int) -> None:
    """Ask the system to drop whole pages: one of which only some bytes are named stays, and is read again as it was."""
    first = offset // mmap.PAGESIZE * mmap.PAGESIZE
    with suppress(OSError):  # a wish: whether it was granted shows in what is read then
        os.posix_fadvise(file, first, aligned(offset + nbytes - first, mmap.PAGESIZE), os.POSIX_FADV_DONTNEED)


def preadv(file: int, into: Bytes, offset: int, path: str) -> int:
    try:
        count = os.preadv(file, [into.data], offset)
    except OSError as error:
        raise StorageError(f"cannot read {path} at byte {offset}: {error.strerror}") from error
    if count == 0:
        raise StorageError(f"{path} ended at byte {offset} while it was read: {into.nbytes} bytes are missing")
    return count


def fill(file: int, into: Bytes, offset: int, path: str) -> None:
    """Fill `into` from `offset` on, in as many calls as it takes."""
    done = 0
    while done < into.nbytes:
        done += preadv(file, into[done:], offset + done, path)


def ended(reads: Sequence[Future[None]]) -> None:
    """Begin none of them any more, and wait for those that have begun."""
    for read in reads:
        read.cancel()
    wait(reads)
