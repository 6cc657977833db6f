"""Choosing the next token from logits, one row at a time: the law for every port; it knows no seed and no model."""

from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.errors import FlexrefError

Numbers = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]

_ID_BITS = 32
_ID_MASK = (1 << _ID_BITS) - 1
_MAGNITUDE = np.int32(0x7FFFFFFF)
_FLOAT = np.finfo(np.float32)


def sample(
    logits: Numbers, temperature: float, top_k: int, top_p: float, uniforms: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """See `Backend.sample`. Rows are treated one by one, so none has an effect on another's bits."""
    chosen = np.empty(logits.shape[0], np.int64)
    for row, values in enumerate(logits):
        if not np.isfinite(values).all():
            token = int(np.flatnonzero(~np.isfinite(values))[0])
            raise FlexrefError(
                f"sampling: row {row} of the group has the logit {values[token]} for token {token}, needed a finite "
                f"one; the model overflowed"
            )
        if temperature == 0:
            chosen[row] = values.argmax()
        else:
            chosen[row] = _draw(values.astype(np.float32, copy=False), temperature, top_k, top_p, float(uniforms[row]))
    return chosen


def _draw(values: Numbers, temperature: float, top_k: int, top_p: float, uniform: float) -> int:
    """One token id from logits (V,).

    Tokens stand in falling order of their logits, equal ones by id: the order of their probabilities, but exact on
    every port. The first `top_k` stay; of those the shortest beginning that holds the share `top_p` of their
    probability; of that the first token at which more than the share `uniform` is reached.
    """
    kept = _ranked(values, min(top_k, values.size) or values.size)
    # A temperature that float32 cannot hold means the nearest one that it can.
    divisor = np.float32(min(max(temperature, float(_FLOAT.tiny)), float(_FLOAT.max)))
    with np.errstate(over="ignore"):  # too far below the best token for float32: minus infinity, probability 0
        weights = np.exp((values[kept] - values[kept[0]]) / divisor)
    # Sums in float64: 50,000 float32 terms would lose the small ones. The shares need no division by the whole.
    reached = np.cumsum(weights, dtype=np.float64)
    last = min(int(np.searchsorted(reached, top_p * reached[-1], side="left")), reached.size - 1)
    drawn = min(int(np.searchsorted(reached, uniform * reached[last], side="right")), last)
    return int(kept[drawn])


def _ranked(values: Numbers, count: int) -> Ids:
    """The ids of the `count` largest of values (V,), in falling order, equal ones by id.

    Value and id are sorted as one integer: sorting floats stably, to the same end, takes eight times as long.
    """
    bits = (np.float32(0) - values).view(np.int32)  # the difference turns -0 into 0
    ordered = np.where(bits < 0, bits ^ _MAGNITUDE, bits)  # integers in the order of the floats that they stand for
    keys = (ordered.astype(np.int64) << _ID_BITS) | np.arange(values.size)
    if count < values.size:
        keys = np.partition(keys, count - 1)[:count]
    keys.sort()
    return keys & _ID_MASK
