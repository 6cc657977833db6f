"""Multiplies states by weights as they lie in a file, some rows of a weight at a time on each core; it knows no model.

A few rows of a weight are expanded, measured and multiplied by one thread in memory of its own, which stays in that
core's caches: no weight is ever held in float32, and no core waits for another one within a weight.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from flexref.storage.quant import Quantized, dequantize

Values = npt.NDArray[Any]
"""Numbers in float32."""

Stored = Values | Quantized
"""A tensor as a file holds it: numbers of any type, or groups of codes."""

Read = Callable[[str], Stored]
"""Gives a tensor by its name as the file holds it; it may be called by several threads."""

PIECES = 16
"""Pieces into which what is no product is cut, as many for any number of threads: random signs go by pieces."""

SLAB_ELEMENTS = 1 << 19
"""Elements of a weight that are expanded at a time: 2 MiB in float32."""

SPLITTER, SPLIT_AT_ONCE = (1 << 13) + 1, 1 << 17
"""Rounds 24 binary digits to 11; and how many numbers at a time, so that they stay in a processor's cache."""

TRIAL_SHAPE, TRIALS = (512, 2048, 256), 3
"""Tokens, inputs and outputs of the product that measures a core, and how often each core computes it."""


@contextmanager
def all_cores() -> Iterator[ThreadPoolExecutor]:
    """A thread for each core, with products that use no threads of their own: those would wait for each other."""
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as workers:
        yield workers


def product_rate() -> float:
    """FLOP/s of products in float32 on all cores at once, measured; takes some hundredths of a second."""
    tokens, inputs, outputs = TRIAL_SHAPE
    draw = np.random.default_rng(0)
    x, w = draw.random((tokens, inputs), np.float32), draw.random((outputs, inputs), np.float32)
    count = TRIALS * len(os.sched_getaffinity(0))
    with all_cores() as workers:
        list(workers.map(lambda _: x @ w.T, range(count)))  # the threads and their memory are made
        start = time.perf_counter()
        list(workers.map(lambda _: x @ w.T, range(count)))
        return count * 2 * tokens * inputs * outputs / (time.perf_counter() - start)


class Products:
    """x w^T, exactly and by weights rounded to halves, on `workers`.

    `rounds`: the type to which a port may have rounded weights that the file holds otherwise, None if it has not.
    """

    def __init__(self, workers: ThreadPoolExecutor, rounds: str | None) -> None:
        self._workers, self._rounds = workers, rounds
        self._own = threading.local()

    def each(self, count: int, work: Callable[[slice], object]) -> None:
        """Do `work` on `count` things, some at a time, on all cores."""
        step = -(-count // PIECES)
        list(self._workers.map(work, [slice(first, min(count, first + step)) for first in range(0, count, step)]))

    def every(self, count: int, work: Callable[[int], object]) -> None:
        """Do `work` on each of `count` things, on all cores."""
        list(self._workers.map(work, range(count)))

    def __call__(self, x: Values, stored: Stored) -> tuple[Values, Values]:
        """x (2, T, I), stored (O, I) -> (2, T, O) and the lengths (O,) of the rows of what is stored.

        x[0] is multiplied by the values as they are, x[1] by those as a port may have them.
        """
        outputs, inputs = stored.shape
        result, long = np.empty((*x.shape[:-1], outputs), np.float32), np.empty(outputs, np.float32)
        both, flat = x.reshape(-1, inputs), result.reshape(-1, outputs)
        rounded = self._rounds is not None and (isinstance(stored, Quantized) or stored.dtype != self._rounds)
        step = max(1, SLAB_ELEMENTS // inputs)

        def multiply(number: int) -> None:
            span = slice(number * step, min(outputs, (number + 1) * step))
            exact = expanded(stored, span, self._aside("exact", (span.stop - span.start, inputs)))
            long[span] = lengths(exact)
            if not rounded:
                np.matmul(both, exact.T, out=flat[:, span])
                return
            halves = as_halves(exact, self._aside("halves", exact.shape))
            for copy, matrix in enumerate((exact, halves)):
                np.matmul(x[copy], matrix.T, out=result[copy, :, span])

        self.every(-(-outputs // step), multiply)
        return result, long

    def _aside(self, name: str, shape: tuple[int, ...]) -> Values:
        """Memory of this thread: fresh memory for every slab would cost more than the arithmetic on it."""
        size = int(np.prod(shape))
        held: Values | None = getattr(self._own, name, None)
        if held is None or held.size < size:
            held = np.empty(max(size, SLAB_ELEMENTS), np.float32)
            setattr(self._own, name, held)
        return held[:size].reshape(shape)


def expanded(stored: Stored, rows: slice, out: Values | None = None) -> Values:
    """Some rows (n, I) of what is stored, in float32, in `out` if it is given."""
    if isinstance(stored, Quantized):
        return dequantize(stored.rows(rows.start, rows.stop), out)
    if out is None:
        return stored[rows].astype(np.float32)
    np.copyto(out, stored[rows])
    return out


def whole(stored: Stored) -> Values:
    """All of what is stored, in float32."""
    return expanded(stored, slice(0, stored.shape[0]))


def as_halves(values: Values, result: Values) -> Values:
    """Float32 numbers rounded to the 11 digits of float16 (Veltkamp's splitting) in `result`, which is returned."""
    flat, out = values.reshape(-1), result.reshape(-1)
    for first in range(0, len(flat), SPLIT_AT_ONCE):
        part, into = flat[first : first + SPLIT_AT_ONCE], out[first : first + SPLIT_AT_ONCE]
        far = np.float32(SPLITTER) * part
        np.subtract(far, part, out=into)
        np.subtract(far, into, out=into)
    return result


def lengths(rows: Values) -> Values:
    """rows (..., I) -> their Euclidean lengths (...)."""
    return np.asarray(np.sqrt(np.einsum("...i,...i->...", rows, rows)), np.float32)
