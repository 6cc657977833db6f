"""Computes one row's logits in float64, and how far float32 logits may be from them; it knows no port and no file.

The bound is a forward error bound of first order (Higham, *Accuracy and Stability of Numerical Algorithms*, 2002,
sections 1.6 and 3.3). Call the result of every operator a *site*. On exact operands, rounding moves a site by at most
its local bound, which `tolerances` computes. A logit then moves by at most

    sum over all sites of |d logit / d site| * local bound of the site.

The derivatives are exact, by reverse accumulation as in training: where the effects of one site along two paths cancel
each other, they cancel in the sum too. Products of two rounding errors are left out. They are smaller by the relative
error of an activation, about 1e-5, and the sum is pessimistic by more: it takes every sign at its worst. Where rounding
may carry an argument of relu over 0, that is an effect of first order, and it is counted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, takewhile
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.architecture.program import Attend, BranchStep, Embedding, Norm, Project, Residual, TensorKind, program_of
from flexref.architecture.spec import POSITION_OFFSET, ModelSpec
from flexref.architecture.stages import tensor_name
from flexref.check import reference
from flexref.check.tolerances import (
    FLOAT32,
    Arithmetic,
    Numbers,
    Operand,
    activation_bound,
    attention_bound,
    exact,
    layer_norm_bound,
    linear_bound,
)

Adjoint = npt.NDArray[Any]
"""Derivatives of R quantities with respect to a site (S, ...): (R, S', ...). Those of tokens after the first S' are 0.

float32 is enough: the rounding of a derivative, times a local bound, is a product of two rounding errors.
"""

Pull = Callable[[Adjoint], Sequence[Adjoint]]
"""An operator's backward step: from derivatives with respect to its result to those with respect to its operands."""

SINGLE = Arithmetic(FLOAT32, FLOAT32)

NOTHING = np.zeros(0)
"""The local bound of a site on tapes that bound nothing."""

KINK_MARGIN = 4
"""An argument of relu gets a bound of its own where it is closer to 0 than 4 times the largest such bound so far."""

SEEDS_AT_ONCE = 256
"""So many quantities are differentiated at a time, to bound memory: each takes a copy of the widest sites."""


@dataclass(frozen=True, slots=True)
class Site:
    """An operator's result, its local bound, the numbers of its operands' sites, and its backward step."""

    value: Numbers
    local: Numbers
    operands: tuple[int, ...] = ()
    pull: Pull = lambda adjoint: ()


def _beside(adjoint: Adjoint, values: Numbers) -> Adjoint:
    """A site's values (S, ...) of the tokens of an adjoint (R, S', ...): the first S', in the adjoint's type."""
    return values[: adjoint.shape[1]].astype(adjoint.dtype, copy=False)


@dataclass(slots=True)
class Tape:
    """The sites of a computation, in order. Each operator appends one and returns its number."""

    how: Arithmetic = SINGLE
    sites: list[Site] = field(default_factory=list)

    def add(self, value: Numbers, local: Numbers, operands: tuple[int, ...] = (), pull: Pull = lambda _: ()) -> int:
        """Append a site and return its number."""
        self.sites.append(Site(value, local, operands, pull))
        return len(self.sites) - 1

    def bound(self, site: int, seeds: Adjoint) -> Numbers:
        """The error bounds (R,) of R quantities, with the derivatives `seeds` (R, S', ...) with respect to `site`."""
        total = np.zeros(len(seeds))
        adjoints: dict[int, Adjoint] = {site: seeds}
        for place in range(site, -1, -1):
            if (adjoint := adjoints.pop(place, None)) is None:
                continue
            this = self.sites[place]
            total += np.abs(adjoint).reshape(len(seeds), -1) @ _beside(adjoint, this.local).reshape(-1)
            for operand, part in zip(this.operands, this.pull(adjoint), strict=True):
                adjoints[operand] = adjoints[operand] + part if operand in adjoints else part
        return total

    def given(self, value: Numbers) -> int:
        """The site of what a table holds."""
        return self.add(value, np.zeros_like(value))

    def linear(self, x: int, w: Numbers | Operand, b: Numbers | None) -> int:
        """The site of x w^T + b, (S, O), for w (O, I) and b (O,). On a port, w may be off by an `Operand`'s error."""
        value, operand = self.sites[x].value, w if isinstance(w, Operand) else exact(w)
        weights = operand.values
        addends = np.zeros(len(weights)) if b is None else np.abs(b)
        local = linear_bound(exact(value), operand, addends, int(b is not None), self.how)
        result = reference.linear(value, weights, b)
        return self.add(result, local, (x,), lambda adjoint: (adjoint @ weights.astype(adjoint.dtype, copy=False),))

    def total(self, x: int, y: int) -> int:
        """The site of x + y, which have one shape."""
        value = self.sites[x].value + self.sites[y].value
        return self.add(value, self.how.storing(value), (x, y), lambda adjoint: (adjoint, adjoint))

    def layer_norm(self, x: int, w: Numbers, b: Numbers, epsilon: float) -> int:
        """The site of (x - mean) / sqrt(var + epsilon) * w + b, (S, E), for w and b (E,)."""
        value = self.sites[x].value
        centred = value - value.mean(-1, keepdims=True)
        root = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
        normal = centred * root

        def pull(adjoint: Adjoint) -> Sequence[Adjoint]:
            inner = adjoint * w.astype(adjoint.dtype, copy=False)
            unit = _beside(adjoint, normal)
            inner = _beside(adjoint, root) * (inner - unit * (inner * unit).mean(-1, keepdims=True))
            return (inner - inner.mean(-1, keepdims=True),)

        local = layer_norm_bound(value, w, b, epsilon, self.how)
        return self.add(normal * w + b, local, (x,), pull)

    def activate(self, x: int, activation: str) -> int:
        """The site of activation(x). Near 0, relu's local bound allows for an argument on the other side of 0."""
        value = self.sites[x].value
        result = reference.activate(value, activation)
        local = activation_bound(value, result, activation, self.how)
        if activation == "relu":
            local = local + self._beyond_the_kink(x)
        slope = reference.slope(value, activation)
        return self.add(result, local, (x,), lambda adjoint: (adjoint * _beside(adjoint, slope),))

    def _beyond_the_kink(self, x: int) -> Numbers:
        """How far beyond 0 rounding may carry each argument of relu: its bound less its distance to 0, at least 0.

        A bound costs a walk back through the model, so only arguments near 0 get one. Their bounds are much alike: once
        all within `KINK_MARGIN` times the largest are done, no other can reach 0.
        """
        value = self.sites[x].value
        distance = np.abs(value)
        beyond, reach = np.zeros_like(value), FLOAT32.unit * distance.max()
        looked_at = np.zeros(value.shape, np.bool_)
        while (near := (distance <= reach) & ~looked_at).any() or not looked_at.any():
            near = near if near.any() else distance == distance.min()
            bounds = self._bounds_at(x, near)
            beyond[near] = np.maximum(bounds - distance[near], 0)
            looked_at |= near
            reach = max(reach, KINK_MARGIN * float(bounds.max()))
        return beyond

    def _bounds_at(self, site: int, where: npt.NDArray[np.bool_]) -> Numbers:
        """The bounds of the elements of a site that are true in `where`."""
        places = np.nonzero(where)
        found = np.empty(len(places[0]))
        for first in range(0, len(found), SEEDS_AT_ONCE):
            some = slice(first, first + SEEDS_AT_ONCE)
            count = len(found[some])
            seeds = np.zeros((count, *where.shape))
            chosen = (np.arange(count), *(axis[some] for axis in places))
            seeds[chosen] = 1
            found[some] = self.bound(site, seeds)
        return found

    def attend(self, qkv: int, heads: int) -> int:
        """The site of causal attention (S, E), from the site that holds q, k and v side by side (S, 3E)."""
        tokens, width = self.sites[qkv].value.shape
        scale = (width // 3 // heads) ** -0.5
        q, k, v = np.moveaxis(self.sites[qkv].value.reshape(tokens, 3, heads, -1), 1, 0)
        shares = reference.probabilities(q, k, 0, scale)

        def pull(adjoint: Adjoint) -> Sequence[Adjoint]:
            # (R, H, S, ...) throughout: heads before tokens, so that every product is one of matrices.
            seen = adjoint.shape[1]
            queries, keys, values = (_beside(adjoint, part).transpose(1, 0, 2) for part in (q, k, v))
            share = shares[:, :seen, :seen].astype(adjoint.dtype, copy=False)
            by_context = np.swapaxes(adjoint.reshape(-1, seen, heads, q.shape[-1]), 1, 2)
            by_share = by_context @ np.swapaxes(values, -1, -2)
            by_score = scale * share * (by_share - (by_share * share).sum(-1, keepdims=True))
            by_q, by_k = by_score @ keys, np.swapaxes(by_score, -1, -2) @ queries
            by_v = np.swapaxes(share, -1, -2) @ by_context
            parts = np.stack((by_q, by_k, by_v), axis=1)  # (R, 3, H, S', D)
            return (parts.transpose(0, 3, 1, 2, 4).reshape(-1, seen, width),)

        local = attention_bound(exact(q), exact(k), exact(v), 0, scale, self.how).reshape(tokens, -1)
        return self.add(reference.attend(q, k, v, 0, scale).reshape(tokens, -1), local, (qkv,), pull)


class Model:
    """A model's tensors in float64; computes the steps of its program on a tape.

    A tensor is read whenever a step needs it.
    """

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, npt.NDArray[Any] | Operand]) -> None:
        self.program = program_of(spec)
        self._tensors = tensors

    def _tensor(self, name: str) -> Any:
        values = self._tensors[name]
        return values if isinstance(values, Operand) else values.astype(np.float64, copy=False)

    def table(self, table: Embedding) -> Numbers:
        """A table (V, W), put together from its tiles."""
        names = (tensor_name(table.role, TensorKind.TABLE, tile) for tile in count())
        return np.concatenate([self._tensor(name) for name in takewhile(self._tensors.__contains__, names)])

    def _learned(self, step: Norm | Project | Embedding, layer: int = 0) -> list[Any]:
        """A step's learned tensors: weight, then bias. Variants without a bias, or without both, give fewer."""
        return [self._tensor(tensor_name(step.role, kind, layer)) for kind, _ in step.shapes]

    def _step(self, tape: Tape, step: BranchStep, layer: int, x: int) -> int:
        """The site of one step's result on the site x."""
        if isinstance(step, Project):
            weight, *bias = self._learned(step, layer)
            return tape.linear(x, weight, bias[0] if bias else None)
        if isinstance(step, Norm):
            gain, shift = self._learned(step, layer) or (np.ones(step.width), np.zeros(step.width))
            return tape.layer_norm(x, gain, shift, step.epsilon)
        if isinstance(step, Attend):
            return tape.attend(x, step.heads)
        return tape.activate(x, step.activation)

    def embed(self, tape: Tape, token_ids: Sequence[int]) -> int:
        """The site of the hidden states (S, E) before the first layer."""
        steps = self.program.embed
        rows, (positions,) = self.table(steps.tokens)[list(token_ids)], self._learned(steps.positions)
        places = positions[POSITION_OFFSET : POSITION_OFFSET + len(token_ids)]
        x = tape.given(rows)
        if steps.project is not None:
            x = self._step(tape, steps.project, 0, x)
        return tape.total(x, tape.given(places))

    def layer(self, tape: Tape, layer: int, x: int) -> int:
        """The site of the hidden states after a decoder layer."""
        for step in self.program.layer:
            if isinstance(step, Residual):
                h = x
                for inner in step.steps:
                    h = self._step(tape, inner, layer, h)
                x = tape.total(x, h)
            else:
                x = self._step(tape, step, layer, x)
        return x

    def final(self, tape: Tape, x: int) -> int:
        """The site (S, W) that the head's table is multiplied with, from the hidden states after the last layer."""
        for step in (self.program.head.norm, self.program.head.project):
            x = x if step is None else self._step(tape, step, 0, x)
        return x

    def hidden(self, tape: Tape, token_ids: Sequence[int]) -> int:
        """The same site, from the tokens: embedding, all layers, final norm and projection."""
        x = self.embed(tape, token_ids)
        for layer in range(self.program.layers):
            x = self.layer(tape, layer, x)
        return self.final(tape, x)


def model_logits_bound(
    spec: ModelSpec,
    tensors: Mapping[str, npt.NDArray[Any] | Operand],
    token_ids: Sequence[int],
    tape: Tape | None = None,
    *,
    first: int = 0,
) -> tuple[Numbers, Numbers]:
    """One row's logits in float64, and how far any float32 evaluation may be from each: both (S - first, V).

    `tensors`: dense, by their names in a weight file; tables may be in any number of tiles. They must be the numbers
    that the evaluation uses: dequantized, where it stores groups of codes. A matrix of a layer may be an `Operand`,
    which says how far the evaluation's copy of it may be off. The evaluation may sum in any order.
    `tape`: an empty one for another arithmetic than float32, or one that adds errors of its own (see `probable`).
    `first`: logits are given from this token on. Raises `KeyError` where a tensor is missing.
    """
    model, tape = Model(spec, tensors), Tape() if tape is None else tape
    x = model.hidden(tape, token_ids)
    head = model.table(model.program.head.table)
    hidden = tape.sites[x].value[first:]
    bound = linear_bound(exact(hidden), exact(head), np.zeros(len(head)), 0, tape.how)
    for token in range(first, len(token_ids)):
        seeds = np.zeros((len(head), token + 1, hidden.shape[1]), np.float32)  # no later token matters
        seeds[:, token] = head
        bound[token - first] += tape.bound(x, seeds)
    return hidden @ head.T, bound
