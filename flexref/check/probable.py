"""Bounds logits, with a high probability, where values are stored in half precision or in 4-bit groups; no port.

A sure bound takes the worst rounding of every value at once, and for rounding as coarse as this it would permit almost
anything. So the errors of stored values are taken to be independent, with mean 0 (Higham and Mary, *A New Approach to
Probabilistic Rounding Error Analysis*, 2019). By Hoeffding's inequality, a sum of errors of at most a_n exceeds
t sqrt(sum a_n^2) with a probability below 2 exp(-t^2 / 2). Errors that are uniform in [-a, a], as those of codes are,
count as a / sqrt(3). Sums in float32 are still bounded at their worst, as in `forward`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from flexref.check import reference
from flexref.check.forward import SINGLE, Adjoint, Pull, Tape
from flexref.check.tolerances import FLOAT16, FLOAT32, Arithmetic, Numbers, Operand, Precision, gamma
from flexref.storage.quant import LEVELS

DEVIATIONS = 7
"""The t above. With 7, a logit is outside its bound with a probability below 2 exp(-7^2 / 2), 5e-11."""

ROUNDINGS = 2
"""How often an operator may round one result to the stored type: a product, then its sum with a residual."""

PAIRED_TOKENS = 32
"""Up to so many tokens, pairs of them take less than all inputs: twice as fast at 20, and half of a check's time."""


@dataclass(slots=True)
class ProbableTape(Tape):
    """A tape whose results are rounded to `stored`, and whose keys and values are kept in 4-bit groups.

    `group_size`: values in a group; None for a cache that is not quantized.
    """

    stored: Precision = FLOAT32
    group_size: int | None = None
    _squares: Numbers = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def of(cls, how: Arithmetic, group_size: int | None) -> "ProbableTape":
        """An empty tape for a port that computes as `how` says."""
        return cls(SINGLE, stored=how.stored, group_size=group_size)

    def add(
        self, value: Numbers, local: Numbers, operands: tuple[int, ...] = (), pull: Pull = lambda adjoint: ()
    ) -> int:
        """See `Tape.add`; rounding the result to a narrower type adds an error."""
        if self.stored == FLOAT32:
            return Tape.add(self, value, local, operands, pull)
        most = gamma(ROUNDINGS, self.stored) * np.abs(value) + ROUNDINGS * self.stored.tiny
        return self._add_noisy(value, local, operands, pull, most)

    def linear(self, x: int, w: Numbers | Operand, b: Numbers | None) -> int:
        """See `Tape.linear`. A weight's error is the same for all tokens, so their derivatives are summed first."""
        if not isinstance(w, Operand):
            return Tape.linear(self, x, w, b)
        site = Tape.linear(self, x, w.values, b)
        pull, squares = self.sites[site].pull, weights_squares(self.sites[x].value, np.square(w.error))

        def noted(adjoint: Adjoint) -> Sequence[Adjoint]:
            self._squares += squares(adjoint)
            return pull(adjoint)

        self.sites[site] = replace(self.sites[site], pull=noted)
        return site

    def attend(self, qkv: int, heads: int) -> int:
        """See `Tape.attend`. Keys and values may be rounded to 4-bit groups, probabilities to the stored type."""
        tokens, width = self.sites[qkv].value.shape
        if self.group_size is not None:
            value = self.sites[qkv].value
            local, most = _moved_by_codes(value.reshape(tokens, 3, heads, -1), self.group_size)
            qkv = self._add_noisy(value, local, (qkv,), lambda adjoint: (adjoint,), most)
        site = Tape.attend(self, qkv, heads)
        if self.stored == FLOAT32:
            return site
        q, k, v = np.moveaxis(self.sites[qkv].value.reshape(tokens, 3, heads, -1), 1, 0)
        mixed = reference.attend(q, k, np.abs(v), 0, (width // 3 // heads) ** -0.5)
        most = (self.stored.unit * mixed).reshape(tokens, -1) + tokens * self.stored.tiny
        return self._add_noisy(self.sites[site].value, np.zeros_like(most), (site,), lambda adjoint: (adjoint,), most)

    def bound(self, site: int, seeds: Adjoint) -> Numbers:
        """See `Tape.bound`: the worst of float32's rounding, plus the probable sum of the errors of stored values."""
        self._squares = np.zeros(len(seeds))
        worst = Tape.bound(self, site, seeds)
        total: Numbers = worst + DEVIATIONS * np.sqrt(self._squares)
        return total

    def _add_noisy(self, value: Numbers, local: Numbers, operands: tuple[int, ...], pull: Pull, most: Numbers) -> int:
        """Append a site with independent errors of at most `most`, elementwise, besides its local bound `local`."""

        def noted(adjoint: Adjoint) -> Sequence[Adjoint]:
            squares = np.square(most[: adjoint.shape[1]]).ravel()
            self._squares += np.square(adjoint, dtype=np.float64).reshape(len(adjoint), -1) @ squares
            return pull(adjoint)

        return Tape.add(self, value, local, operands, noted)


def weights_squares(inputs: Numbers, squares: Numbers) -> Callable[[Adjoint], Numbers]:
    """What the errors of weights add, whose squares (O, I) are bounded so, by the derivatives (R, S', O) of a product
    with inputs (S, I): (R,), each sum over O and I of a square times that of the sum over S' of derivative and input.
    """
    tokens = len(inputs)
    if tokens > PAIRED_TOKENS:

        def by_weights(adjoint: Adjoint) -> Numbers:
            by_weight = np.swapaxes(adjoint, 1, 2) @ inputs[: adjoint.shape[1]].astype(adjoint.dtype)
            return np.asarray(np.square(by_weight, dtype=np.float64).reshape(len(adjoint), -1) @ squares.ravel())

        return by_weights
    products = (inputs[:, None] * inputs).reshape(tokens**2, -1)
    pairs = (squares @ products.T).reshape(-1, tokens, tokens)

    def by_pairs(adjoint: Adjoint) -> Numbers:
        seen = adjoint.shape[1]
        derivatives = np.ascontiguousarray(adjoint.transpose(2, 0, 1), np.float64)
        return np.asarray(((derivatives @ pairs[:, :seen, :seen]) * derivatives).sum((0, 2)))

    return by_pairs


def _moved_by_codes(qkv: Numbers, group_size: int) -> tuple[Numbers, Numbers]:
    """The errors of a 4-bit cache: qkv (S, 3, H, D) -> (S, 3E) twice.

    The first bounds the error that comes from rounding scale and zero. The second is half a step divided by sqrt(3),
    for the uniform error of a code (see above); a group of keys or values has `LEVELS` steps from its least value to
    its greatest. Both are 0 for queries, which are not stored.
    """
    local, most = np.zeros_like(qkv), np.zeros_like(qkv)
    for first in range(0, qkv.shape[-1], group_size):
        group = (slice(None), slice(1, None), slice(None), slice(first, first + group_size))
        low, high = qkv[group].min(-1, keepdims=True), qkv[group].max(-1, keepdims=True)
        local[group] = FLOAT16.unit * (np.abs(low) + high - low) + (LEVELS + 1) * FLOAT16.tiny
        most[group] = (high - low) / LEVELS / 2 / 3**0.5
    return local.reshape(len(qkv), -1), most.reshape(len(qkv), -1)
