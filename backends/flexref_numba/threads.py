"""Some threads that share the units of one operator; it knows no operator."""

import ctypes
import os
import struct
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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


class ThreadScratch(NamedTuple):
    """Memory, and the address, at the start of a cache line, and bytes of what is used of it."""

    memory: npt.NDArray[np.uint8]
    address: int
    nbytes: int

    @classmethod
    def of(cls, nbytes: int) -> "ThreadScratch":
        """New memory."""
        memory = np.empty(nbytes + 64, np.uint8)
        return cls(memory, -(-address_of(memory) // 64) * 64, nbytes)


class Threads:
    """At most `count` threads at once, of which the caller's is one. Several callers take turns.

    A forked process begins threads of its own. Whoever drops it without `close` ends the threads too, some time later.
    """

    def __init__(self, count: int, functions: Functions) -> None:
        self.count = count
        self._functions = functions
        self._turn = threading.Lock()
        self._helpers: list[threading.Thread] = []
        self._process = os.getpid()
        self._scratch = ThreadScratch.of(0)
        held = np.zeros(sharing.BOARD_WORDS + sharing.LINE, np.int64)
        self._board = held[-address_of(held) % (8 * sharing.LINE) // 8 :]
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
        self._end = weakref.finalize(self, _end, self._board, self._address, system.sem_post)
        self._end.atexit = False  # threads of daemons may share until the process is gone

    def close(self) -> None:
        """End the threads, after the call that is running."""
        with self._turn:
            self._end()
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
            if self._process != os.getpid():
                self._process, self._helpers = os.getpid(), []
            helpers = max(0, min(threads, self.count, units) - 1)
            while len(self._helpers) < helpers:
                self._begin(len(self._helpers) + 1)
            given, board = operands_of(operands), self._board
            pitch = -(-scratch_bytes // 64) * 64
            if self._scratch.nbytes < (helpers + 1) * pitch:
                self._scratch = ThreadScratch.of((helpers + 1) * pitch)
            board[sharing.SCRATCH], board[sharing.PLACES] = self._scratch.address, 1
            board[sharing.FUNCTION], board[sharing.OPERANDS] = function.address, address_of(given)
            board[sharing.UNITS] = units
            at_once = units // (PARTS_PER_THREAD * (helpers + 1)) if helpers > 0 else units
            board[sharing.AT_ONCE] = max(1, -(-at_once // step)) * step
            board[sharing.SCRATCH_BYTES] = pitch
            board[sharing.NEXT], board[sharing.LEFT], board[sharing.TOTAL] = 0, helpers + 1, 0
            self._functions.get(sharing.make_share).call(self._address, helpers)
            return int(board[sharing.TOTAL])

    def _begin(self, number: int) -> None:
        operands = self._functions.get(sharing.make_help).call, self._board, self._address
        helper = threading.Thread(target=_help, args=operands, name=f"flexref numba {number}", daemon=True)
        helper.start()
        self._helpers.append(helper)


def _help(call: Callable[..., Any], board: npt.NDArray[np.int64], address: int) -> None:
    """What a helper does: `board`, at `address`, lasts until it ends."""
    call(address)


def _end(board: npt.NDArray[np.int64], address: int, post: Callable[..., Any]) -> None:
    """Let all helpers end."""
    board[sharing.CLOSED] = 1
    post(ctypes.c_void_p(address + 8 * sharing.BEGIN))


def ranges(count: int, parts: int) -> list[tuple[int, int]]:
    """`count` things as at most `parts` (first, last) of nearly one length."""
    parts = max(1, min(parts, count))
    return [(count * part // parts, count * (part + 1) // parts) for part in range(parts)]
