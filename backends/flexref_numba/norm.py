"""`layer_norm` on the host's processor: rows of numpy's arrays, on some threads; it knows no model."""

from typing import Any

import numpy as np
import numpy.typing as npt

from flexref_numba.compiled import Functions
from flexref_numba.kernels.norm import make_norm
from flexref_numba.threads import Threads, address_of, worth

Numbers = npt.NDArray[Any]

WORK = 4
"""Multiplications that take as long as the norm of a number."""


def layer_norm(
    functions: Functions,
    threads: Threads,
    x: Numbers,
    learned: tuple[Numbers | None, Numbers | None],
    epsilon: float,
    out: Numbers,
) -> Numbers:
    """See `Backend.layer_norm`; `learned`: what is multiplied with and then added, float32 or float16 (E,)."""
    held = [None if part is None else np.ascontiguousarray(part, np.float32) for part in learned]
    factors, offsets = (0 if part is None else address_of(part) for part in held)
    operands = (
        *(address_of(x), x.strides[0], x.shape[1], factors, offsets),
        float(epsilon),
        *(address_of(out), out.strides[0]),
    )
    threads.share(functions.shared(make_norm), operands, len(x), worth(WORK * x.size, threads.count))
    return out
