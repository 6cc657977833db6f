"""Some threads that share the units of one operator; it knows no operator."""

import ctypes
import os
import struct
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flexref_numpy.products import blas_threads

from flexref_numba.compiled import Compiled, Functions
from flexref_numba.kernels import sharing

WORTH_A_THREAD = 1 << 18
"""Multiplications that take longer than handing them to a thread does."""

PARTS_PER_THREAD = 4
"""Into so many parts what is alike is divided for each thread, so that one that begins late has less to do."""


NAMES_OF_TYPES = {"e": "float16", "f": "float32"}
"""Names of types by numpy's letters for them."""


def address_of(x: npt.NDArray[Any]) -> int:
    """Where an array's first number lies."""
    address: int = x.__array_interface__["data"][0]
    return address


def kind_of(x: npt.NDArray[Any]) -> str:
    """The name of an array's type; numpy's own `dtype.name` takes as long as a small operator."""
    return NAMES_OF_TYPES.get(x.dtype.char) or x.dtype.name


def wanted_threads() -> int:
    """As many as numpy's BLAS uses, as OMP_NUM_THREADS and the like or `threadpoolctl` say, on the processors that this
    process may use."""
    return max(1, min(blas_threads(), len(os.sched_getaffinity(0))))


def worth(work: int, threads: int) -> int:
    """How many of so many threads so many multiplications are worth."""
    return max(1, min(threads, work // WORTH_A_THREAD))


def operands_of(values: Sequence[int | float]) -> npt.NDArray[np.int64]:
    """As `sharing.make_shared` reads them."""
    words = [struct.unpack("<I", struct.pack("<f", value))[0] if type(value) is float else value for value in values]
    return np.array(words, np.int64)


class Threads:
    """At most `count` threads at once, of which the caller's is one. Several callers take turns."""

    def __init__(self, count: int, functions: Functions) -> None:
        self.count = count
        self._functions = functions
        self._turn = threading.Lock()
        self._helpers: list[threading.Thread] = []
        self._scratch = np.empty(0, np.uint8)
        self._held = np.zeros(sharing.BOARD_WORDS + sharing.LINE, np.int64)
        start = -address_of(self._held) % (8 * sharing.LINE) // 8
        self._board = self._held[start:]
        self._address = address_of(self._board)
        system = ctypes.CDLL(None)
        for word, function in (
            (sharing.WAIT, system.sem_wait),
            (sharing.TRY, system.sem_trywait),
            (sharing.POST, system.sem_post),
        ):
            self._board[word] = ctypes.cast(function, ctypes.c_void_p).value or 0
        for word in (sharing.BEGIN, sharing.DONE):
            if system.sem_init(ctypes.c_void_p(self._address + 8 * word), 0, 0):
                raise OSError("the system has no semaphores for the threads of one process")
        self._post = system.sem_post

    def close(self) -> None:
        """End the threads; no call may be running."""
        self._board[sharing.CLOSED] = 1
        for _ in self._helpers:
            self._post(ctypes.c_void_p(self._address + 8 * sharing.BEGIN))
        for helper in self._helpers:
            helper.join()
        self._helpers.clear()

    def share(
        self,
        function: Compiled,
        operands: Sequence[int | float],
        units: int,
        threads: int,
        scratch_bytes: int = 0,
        step: int = 1,
    ) -> int:
        """Call a shared function for all `units`, by at most so many `threads`; gives the sum of what it gave.

        `scratch_bytes`: what each thread needs. `step`: units are divided at multiples of it only. Raises
        `RuntimeError` if the system has no thread for it.
        """
        with self._turn:
            if self._board[sharing.CLOSED]:
                raise RuntimeError("the threads have ended")
            helpers = min(threads, self.count, units) - 1
            while len(self._helpers) < helpers:
                self._begin(len(self._helpers) + 1)
            given, board = operands_of(operands), self._board
            pitch = -(-scratch_bytes // 64) * 64
            if self._scratch.size < (helpers + 1) * pitch + 64:
                self._scratch = np.empty((helpers + 1) * pitch + 64, np.uint8)
                board[sharing.SCRATCH] = -(-address_of(self._scratch) // 64) * 64
            board[sharing.FUNCTION], board[sharing.OPERANDS] = function.address, address_of(given)
            board[sharing.UNITS] = units
            at_once = units // (PARTS_PER_THREAD * (helpers + 1)) if helpers > 0 else units
            board[sharing.AT_ONCE] = max(1, -(-at_once // step)) * step
            board[sharing.SCRATCH_BYTES] = pitch
            board[sharing.NEXT], board[sharing.LEFT], board[sharing.TOTAL] = 0, max(0, helpers) + 1, 0
            self._functions.get(sharing.make_share).call(self._address, max(0, helpers))
            return int(board[sharing.TOTAL])

    def _begin(self, place: int) -> None:
        call = self._functions.get(sharing.make_help).call
        helper = threading.Thread(target=call, args=(self._address, place), name=f"flexref numba {place}", daemon=True)
        helper.start()
        self._helpers.append(helper)


def ranges(count: int, parts: int) -> list[tuple[int, int]]:
    """`count` things as at most `parts` (first, last) of nearly one length."""
    parts = max(1, min(parts, count))
    return [(count * part // parts, count * (part + 1) // parts) for part in range(parts)]
