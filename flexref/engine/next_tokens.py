"""Log-probabilities from logits that come piece by piece, in float64 on the host; it knows no model and no device.

Of every scored token there are kept, over all pieces of the vocabulary: the greatest logit and the sum of exp(logit -
greatest), from which the log-sum-exp follows; the logit of the token that did come; and the greatest logits by token.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from flexref.errors import FlexrefError, PromptError

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.float64]

PIECE_BYTES = 1 << 20
"""Bounds the copies that are made on the way, each in float64: what stays in a processor's cache."""

_ID_BITS = 32
_ID_MASK = (1 << _ID_BITS) - 1
_MAGNITUDE = np.int32(0x7FFFFFFF)
_NOTHING = np.iinfo(np.int64).max


class NextTokens:
    """What is known of the next tokens of S scored ones: `targets` (S,), those that came, and the `top` most probable.

    Each piece of logits is pushed once, in any order; when all have been, the properties hold. Of equal logits the
    lowest token id is the most probable, as greedy generation has it.
    """

    def __init__(self, targets: Ids, top: int = 1) -> None:
        """Raises `PromptError` unless `top` is at least 1."""
        if top < 1:
            raise PromptError(f"the number of most probable tokens must be at least 1, found {top}")
        self.targets, self.top = targets, top
        self._greatest = np.full(len(targets), -np.inf)
        self._sums = np.zeros(len(targets))
        self._target_logits = np.full(len(targets), np.nan)
        self._keys = np.full((len(targets), top), _NOTHING, np.int64)

    def push(self, first: int, first_id: int, logits: Logits) -> None:
        """Logits (C, N) of the scored tokens `first`, `first + 1` ... for the token ids `first_id`, `first_id + 1` ...

        Raises `FlexrefError` if one is not finite.
        """
        rows = max(1, PIECE_BYTES // (8 * logits.shape[1]))
        for start in range(0, len(logits), rows):
            piece = logits[start : start + rows]
            some = slice(first + start, first + start + len(piece))
            _check(piece, first + start, first_id)
            self._add(some, piece)
            local = self.targets[some] - first_id
            here = np.flatnonzero((local >= 0) & (local < piece.shape[1]))
            self._target_logits[some][here] = piece[here, local[here]]
            both = np.concatenate([self._keys[some], _ranked(piece, first_id, self.top)], axis=1)
            both.sort(axis=1)
            self._keys[some] = both[:, : self.top]

    def _add(self, some: slice, piece: Logits) -> None:
        """Bring the sums of exponentials to the greater of both maxima and add."""
        greatest = np.maximum(self._greatest[some], piece.max(axis=1))
        shifted = piece - greatest[:, None]
        np.exp(shifted, out=shifted)
        self._sums[some] *= np.exp(self._greatest[some] - greatest)
        self._sums[some] += shifted.sum(axis=1)
        self._greatest[some] = greatest

    @property
    def normalizer(self) -> Numbers:
        """log sum exp of every scored token's logits, (S,): a logit less it is a log-probability."""
        return self._greatest + np.log(self._sums)

    @property
    def logprobs(self) -> Numbers:
        """Natural logarithm of the probability of the token that came, (S,)."""
        return self._target_logits - self.normalizer

    @property
    def top_ids(self) -> Ids:
        """The most probable tokens, falling, (S, top); -1 after the last of a smaller vocabulary."""
        return np.where(self._keys == _NOTHING, -1, self._keys & _ID_MASK)

    @property
    def top_logprobs(self) -> Numbers:
        """Their log-probabilities, (S, top); minus infinity after the last of a smaller vocabulary."""
        ordered = (self._keys >> _ID_BITS).astype(np.int32)
        logits = -np.where(ordered < 0, ordered ^ _MAGNITUDE, ordered).view(np.float32).astype(np.float64)
        return np.where(self._keys == _NOTHING, -np.inf, logits - self.normalizer[:, None])


def _check(logits: Logits, first: int, first_id: int) -> None:
    if np.isfinite(logits).all():
        return
    row, column = (int(place) for place in np.argwhere(~np.isfinite(logits))[0])
    raise FlexrefError(
        f"scoring: scored token {first + row} has the logit {logits[row, column]} for token {first_id + column}, "
        f"needed a finite one; the model overflowed"
    )


def _ranked(logits: Logits, first_id: int, top: int) -> Ids:
    """Of logits (C, N) the `top` greatest as integers (C, at most top) in any order: the smaller, the more probable.

    Value and id are one integer, so that equal values have an order, the same however the vocabulary is cut.
    """
    if top == 1:
        best = logits.argmax(axis=1)[:, None]
        return _keys(np.take_along_axis(logits, best, axis=1), best + first_id)
    keys = _keys(logits, np.arange(first_id, first_id + logits.shape[1]))
    return keys if top >= logits.shape[1] else np.partition(keys, top - 1, axis=1)[:, :top]


def _keys(logits: Logits, ids: Ids) -> Ids:
    bits = (np.float32(0) - logits).view(np.int32)  # the difference turns -0 into 0
    ordered = np.where(bits < 0, bits ^ _MAGNITUDE, bits)  # integers in the order of the floats that they stand for
    return (ordered.astype(np.int64) << _ID_BITS) | ids


def spread(values: npt.NDArray[np.generic], lengths: Ids) -> Iterator[npt.NDArray[np.generic]]:
    """Parts of `lengths` rows each of what belongs to all scored tokens."""
    ends = np.cumsum(lengths)
    for end, length in zip(ends.tolist(), lengths.tolist(), strict=True):
        yield values[end - length : end]
