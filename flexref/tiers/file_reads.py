"""Reads of files at a place, past the page cache where they are aligned and the file system allows it; it knows no
content.
"""

import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from flexref.errors import StorageError
from flexref.units import aligned

Bytes = npt.NDArray[np.uint8]

CALLS_IN_VAIN = 4
"""After so many calls in a row that moved less than a page nothing more is expected of a disk."""


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


def moved(nbytes: int, unit: int, move: Callable[[int], int], none: Callable[[int], StorageError]) -> None:
    """Move `nbytes` in as many calls as it takes: move(done) moves some from there on, and says how many.

    Of what a call moved whole multiples of `unit` count: the next one begins there, as a direct call must. Raises what
    `none(done)` gives after `CALLS_IN_VAIN` calls in a row that moved not even that.
    """
    done = in_vain = 0
    while done < nbytes:
        count = done + move(done)
        count = count if count == nbytes else count // unit * unit
        in_vain = in_vain + 1 if count == done else 0
        if in_vain == CALLS_IN_VAIN:
            raise none(done)
        done = count


def fill(file: int, into: Bytes, offset: int, path: str, unit: int = 1) -> None:
    """Fill `into` from `offset` on, in as many calls as it takes, each at a multiple of `unit` from there."""

    def none(done: int) -> StorageError:
        return StorageError(
            f"cannot read {path} at byte {offset + done}: {CALLS_IN_VAIN} calls gave less than {unit} bytes"
        )

    moved(into.nbytes, unit, lambda done: preadv(file, into[done:], offset + done, path), none)


def ended(reads: Sequence[Future[None]]) -> None:
    """Begin none of them any more, and wait for those that have begun."""
    for read in reads:
        read.cancel()
    wait(reads)
