"""A model computed exactly and, beside it, some times with every rounding drawn at random; it knows no file, no port.

`forward` adds up what rounding may do at its worst, which takes derivatives of every logit and is wide for half
precision. Here the copies of a computation, each with its own roundings, show how far logits do move: for models of any
size, for half precision, and across the kink of relu. What is assumed is that of `probable`: roundings are independent
and of mean 0. Of n roundings of at most u each, then, a sum is probably off by sqrt(n) u times the sum of magnitudes
(Higham and Mary, 2019), not by n u; a local bound so computed, with a random sign for every element, has the variance
that Hoeffding's inequality asks for.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from flexref.check import reference
from flexref.check.forward import NOTHING, Adjoint, Pull, Site, Tape
from flexref.check.tolerances import (
    FLOAT32,
    FUNCTION_ULPS,
    PRECISIONS,
    Arithmetic,
    Numbers,
    Operand,
    activation_bound,
    attention_bound,
    exact,
    layer_norm_bound,
    linear_bound,
)

COPIES = 8
"""Computations with random roundings beside the exact one. Over a vocabulary their spread is well known."""

AT_WORST = 2 * FUNCTION_ULPS
"""So many roundings of one sum, those of an elementary function for one, may all go the same way."""

SCORES_AT_ONCE = 1 << 22
"""Bounds the memory of attention: scores of so many pairs of tokens, in as many heads as that allows."""


@dataclass(frozen=True, slots=True)
class ProbableSums(Arithmetic):
    """An arithmetic in which the roundings of a long sum do not all go the same way."""

    def sums(self, terms: int) -> float:
        """See `Arithmetic.sums`."""
        return Arithmetic.sums(self, min(terms, AT_WORST + math.isqrt(terms)))


def probable_arithmetic(compute_dtype: str) -> Arithmetic:
    """Of an engine that sums in float32 and stores what every operator gives as `compute_dtype`."""
    return ProbableSums(FLOAT32, PRECISIONS[compute_dtype])


@dataclass(slots=True)
class NoisyTape(Tape):
    """Sites hold values (1 + COPIES, T, ...): the exact ones, then copies with random roundings.

    The T tokens are those of rows of so many tokens each, one after another. Nothing is kept to go back by.
    """

    tokens: Sequence[int] = ()
    draw: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def add(
        self, value: Numbers, local: Numbers, operands: tuple[int, ...] = (), pull: Pull = lambda adjoint: ()
    ) -> int:
        """Append a site; its copies are moved by at most `local`, (T, ...)."""
        if local.size:
            value[1:] += local * self.signs(value[1:].shape)
        self.sites.append(Site(value, NOTHING))
        return len(self.sites) - 1

    def bound(self, site: int, seeds: Adjoint) -> Numbers:
        """Copies have no derivatives."""
        raise NotImplementedError

    def signs(self, shape: tuple[int, ...]) -> Numbers:
        """1 and -1 at random."""
        count = math.prod(shape)
        bits = np.unpackbits(np.frombuffer(self.draw.bytes(-(-count // 8)), np.uint8), count=count)
        return (2 * bits.astype(np.float64) - 1).reshape(shape)

    def given(self, value: Numbers) -> int:
        """See `Tape.given`: values (T, ...), stored once."""
        copies = np.broadcast_to(value, (1 + COPIES, *value.shape)).copy()
        return self.add(copies, self.how.storing(value))

    def copies_of(self, w: Operand) -> Callable[[int], Numbers]:
        """What each copy reads of an operand: the values, but for the first copy moved by at most its error."""
        if not w.error.any():
            return lambda copy: w.values
        return lambda copy: w.values + w.error * self.signs(w.values.shape) if copy else w.values

    def linear(self, x: int, w: Numbers | Operand, b: Numbers | None) -> int:
        """See `Tape.linear`; a copy's weights are off by as much for all tokens."""
        value, operand = self.sites[x].value, w if isinstance(w, Operand) else exact(w)
        addends = np.zeros(len(operand.values)) if b is None else np.abs(b)
        local = linear_bound(exact(value[0]), unmoved(operand), addends, int(b is not None), self.how)
        read, result = self.copies_of(operand), np.empty((*value.shape[:-1], len(operand.values)))
        for copy, part in enumerate(value):
            result[copy] = reference.linear(part, read(copy), b)
        # The bias may have been rounded to the stored type before.
        return self.add(result, local if b is None else local + self.how.storing(addends))

    def total(self, x: int, y: int) -> int:
        """See `Tape.total`."""
        value = self.sites[x].value + self.sites[y].value
        return self.add(value, self.how.storing(value[0]))

    def layer_norm(self, x: int, w: Numbers, b: Numbers, epsilon: float) -> int:
        """See `Tape.layer_norm`; gains and shifts may have been rounded to the stored type before."""
        value = self.sites[x].value
        result = reference.layer_norm(value, w, b, epsilon)
        local = layer_norm_bound(value[0], w, b, epsilon, self.how)
        return self.add(result, local + self.how.storing(np.abs(result[0]) + 2 * np.abs(b)))

    def activate(self, x: int, activation: str) -> int:
        """See `Tape.activate`; where a copy is beyond the kink of relu, it is."""
        value = self.sites[x].value
        result = reference.activate(value, activation)
        return self.add(result, activation_bound(value[0], result[0], activation, self.how))

    def attend(self, qkv: int, heads: int) -> int:
        """See `Tape.attend`; scaled queries and scores may be stored as well, as plain implementations do."""
        value = self.sites[qkv].value
        copies, tokens, width = value.shape
        parts = value.reshape(copies, tokens, 3, heads, -1)
        result, local = np.empty((copies, tokens, heads, parts.shape[-1])), np.empty((tokens, heads, parts.shape[-1]))
        first = 0
        for count in self.tokens:
            at_once = max(1, SCORES_AT_ONCE // count**2)
            for head in range(0, heads, at_once):
                here = (slice(first, first + count), slice(head, head + at_once))
                q, k, v = (parts[:, here[0], which, here[1]] for which in range(3))
                scale = (width // 3 // heads) ** -0.5
                local[here] = attention_bound(exact(q[0]), exact(k[0]), exact(v[0]), 0, scale, self.how)
                for copy in range(copies):
                    result[copy][here] = self._attended(q[copy], k[copy], v[copy], scale, moved=copy > 0)
            first += count
        return self.add(result.reshape(copies, tokens, -1), local.reshape(tokens, -1))

    def _attended(self, q: Numbers, k: Numbers, v: Numbers, scale: float, moved: bool) -> Numbers:
        """q, k, v (S, H, D) -> causal attention (S, H, D), with queries and scores rounded once if `moved`."""
        q = q * scale
        if moved:
            q = q + self.how.storing(q) * self.signs(q.shape)
        scores = q.transpose(1, 0, 2) @ k.transpose(1, 2, 0)
        if moved:
            scores += self.how.storing(scores) * self.signs(scores.shape)
        scores[:, ~np.tri(len(q), dtype=np.bool_)] = -np.inf
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed: Numbers = (shares @ v.transpose(1, 0, 2)).transpose(1, 0, 2)
        return mixed


def unmoved(operand: Operand) -> Operand:
    """The operand without the error that its copies have."""
    return replace(operand, error=np.zeros_like(operand.values))
