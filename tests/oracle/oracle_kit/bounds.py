"""How far float32 logits of an OPT model may be from the exact ones; it knows `transformers`' weights, not flexref's.

A forward error bound to first order, elementwise (Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd edition,
sections 1.6 and 3.7: local errors carried to the result by its derivatives). Every operator's result is a *site*. How far
rounding may move a site by itself, its inputs being exact, is what `flexref.testing.tolerances` computes. A logit then
moves by at most

    sum over all sites of |d logit / d site| * local bound of the site

with derivatives along all ways at once, through the caches of earlier tokens too. Products of bounds along each way, the
textbook's other choice, exceed the logits themselves from two layers on. What is neglected are products of two
rounding errors; `test_bounds` measures that they are small beside the rest. So derivatives may be computed in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from oracle_kit.checkpoints import tensors_of
from torch.nn import functional
from transformers import OPTForCausalLM
from transformers.activations import ACT2FN

from flexref.spec import LAYER_NORM_EPSILON, POSITION_OFFSET, from_config
from flexref.testing.tolerances import (
    FLOAT32,
    Arithmetic,
    Numbers,
    activation_bound,
    attention_bound,
    exact,
    layer_norm_bound,
    linear_bound,
)

SINGLE = Arithmetic(FLOAT32, FLOAT32)
"""How both implementations compute."""

Tensor = torch.Tensor


def _numbers(values: Tensor) -> Numbers:
    return values.detach().double().numpy()


class Network:
    """OPT written out over the weights of `model` in one type, with a site behind every operator that rounds."""

    def __init__(self, model: OPTForCausalLM, dtype: torch.dtype, how: Arithmetic = SINGLE) -> None:
        self.config, self.how = model.config, how
        self.weights = {name: weight.to(dtype) for name, weight in tensors_of(model)}
        self.weights.setdefault("lm_head.weight", self.weights["embed_tokens.weight"])
        self.activation = from_config(model.config.to_dict(), "oracle").activation
        self.sites: dict[str, Tensor] = {}
        self.local: dict[str, Numbers] | None = None
        """Bounds of the sites of the next walk where it is a dictionary."""
        self.nudges: dict[str, Tensor] = {}
        """What is added to sites on the way."""

    def walk(self, tokens: list[int], last: int) -> Tensor:
        """Logits (last, V) of the `last` tokens; later sites are computed for these alone."""
        self.sites = {}
        x, layers = self._embed(tokens), self.config.num_hidden_layers
        for layer in range(layers):
            x = self._attend(f"layers.{layer}.", x, last if layer == layers - 1 else len(tokens))
            x = self._feed_forward(f"layers.{layer}.", x)
        if self.config.do_layer_norm_before and not self.config._remove_final_layer_norm:
            x = self._norm("final_layer_norm", x)
        if "project_out.weight" in self.weights:
            x = self._linear("project_out", x)
        return self._linear("lm_head", x)

    def _site(self, name: str, value: Tensor, bound: Callable[[], Numbers]) -> Tensor:
        if self.local is not None:
            self.local[name] = bound().reshape(value.shape)
        if name in self.nudges:
            value = value + self.nudges[name]
        self.sites[name] = value if value.requires_grad else value.detach().requires_grad_()
        return self.sites[name]

    def _linear(self, name: str, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """x W^T + b + addend."""
        weight = self.weights[f"{name}.weight"]
        addends = [part for part in (self.weights.get(f"{name}.bias"), addend) if part is not None]
        value = functional.linear(x, weight)
        for part in addends:
            value = value + part

        def bound() -> Numbers:
            magnitudes = sum((np.abs(_numbers(part)) for part in addends), np.zeros(value.shape))
            return linear_bound(exact(_numbers(x)), exact(_numbers(weight)), magnitudes, len(addends), self.how)

        return self._site(name, value, bound)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        gain = self.weights.get(f"{name}.weight", torch.ones(x.shape[-1], dtype=x.dtype))
        shift = self.weights.get(f"{name}.bias", torch.zeros(x.shape[-1], dtype=x.dtype))
        value = functional.layer_norm(x, x.shape[-1:], gain, shift, LAYER_NORM_EPSILON)
        operands = (_numbers(part) for part in (x, gain, shift))
        return self._site(name, value, lambda: layer_norm_bound(*operands, LAYER_NORM_EPSILON, self.how))

    def _embed(self, tokens: list[int]) -> Tensor:
        rows = self.weights["embed_tokens.weight"][tokens]
        positions = self.weights["embed_positions.weight"][POSITION_OFFSET : POSITION_OFFSET + len(tokens)]
        if "project_in.weight" in self.weights:
            return self._linear("project_in", rows, positions)
        most = np.abs(_numbers(rows)) + np.abs(_numbers(positions))
        return self._site("embed", rows + positions, lambda: self.how.storing(most))

    def _attend(self, prefix: str, x: Tensor, last: int) -> Tensor:
        """x (T, E) -> (last, E): attention of the last tokens over all, with its residual."""
        before, config = self.config.do_layer_norm_before, self.config
        h = self._norm(f"{prefix}self_attn_layer_norm", x) if before else x
        heads = (config.num_attention_heads, config.hidden_size // config.num_attention_heads)
        k, v = (self._linear(f"{prefix}self_attn.{part}_proj", h).unflatten(-1, heads) for part in "kv")
        q = self._linear(f"{prefix}self_attn.q_proj", h[-last:]).unflatten(-1, heads)
        past, scale = k.shape[0] - last, heads[1] ** -0.5
        hidden = torch.arange(k.shape[0]) > past + torch.arange(last)[:, None]
        scores = scale * torch.einsum("shd,thd->hst", q, k)
        shares = torch.softmax(scores.masked_fill(hidden, -torch.inf), -1)
        context = torch.einsum("hst,thd->shd", shares, v).flatten(1)
        operands = (exact(_numbers(part)) for part in (q, k, v))
        context = self._site(f"{prefix}context", context, lambda: attention_bound(*operands, past, scale, self.how))
        x = self._linear(f"{prefix}self_attn.out_proj", context, x[-last:])
        return x if before else self._norm(f"{prefix}self_attn_layer_norm", x)

    def _feed_forward(self, prefix: str, x: Tensor) -> Tensor:
        before = self.config.do_layer_norm_before
        h = self._norm(f"{prefix}final_layer_norm", x) if before else x
        up = self._linear(f"{prefix}fc1", h)
        act = ACT2FN[self.config.activation_function](up)
        operands = (_numbers(up), _numbers(act), self.activation, self.how)
        act = self._site(f"{prefix}activation", act, lambda: activation_bound(*operands))
        x = self._linear(f"{prefix}fc2", act, x)
        return x if before else self._norm(f"{prefix}final_layer_norm", x)


@dataclass(frozen=True)
class Reference:
    """Exact logits (S, V) of some steps, how far float32 may be from each, and which steps these are."""

    steps: npt.NDArray[np.int64]
    logits: Numbers
    bound: Numbers

    @property
    def candidates(self) -> npt.NDArray[np.bool_]:
        """(S, V): the tokens that may have the greatest logit of a float32 computation."""
        least = (self.logits - self.bound).max(-1, keepdims=True)
        return self.logits + self.bound >= least

    @property
    def decided(self) -> npt.NDArray[np.bool_]:
        """(S,): the steps in which greedy choice is the same for every float32 computation."""
        return self.candidates.sum(-1) == 1


class Bounds:
    """Exact logits and bounds of one model."""

    def __init__(self, model: OPTForCausalLM, how: Arithmetic = SINGLE) -> None:
        self.exact = Network(model, torch.float64, how)
        self.slopes = Network(model, torch.float32)

    def reference(self, prompt: list[int], generated: list[int], every: int = 1) -> Reference:
        """What each of the `generated` tokens is chosen from, or one in `every` of them."""
        tokens = [*prompt, *generated[:-1]]
        self.exact.local = {}
        logits = _numbers(self.exact.walk(tokens, len(tokens)))
        steps = np.arange(0, len(generated), every)
        ends = len(prompt) + steps
        bound = np.stack([self._bound(tokens[:end], self.exact.local) for end in ends])
        return Reference(steps, logits[ends - 1], bound)

    def _bound(self, tokens: list[int], local: dict[str, Numbers]) -> Numbers:
        """(V,): the bound of the last token's logits."""
        logits = self.slopes.walk(tokens, 1)[0]
        sites = self.slopes.sites
        del sites["lm_head"]
        every_logit = torch.eye(len(logits))
        slopes = torch.autograd.grad(logits, list(sites.values()), every_logit, is_grads_batched=True)
        total = local["lm_head"][len(tokens) - 1].copy()
        for name, slope in zip(sites, slopes, strict=True):
            own = torch.from_numpy(local[name][len(tokens) - slope.shape[1] : len(tokens)]).float()
            total += _numbers((slope.abs() * own).sum((1, 2)))
        return total
