"""Runs flexref and the oracle on one folder and compares them step by step; it knows no variant and no tolerance.

Both compute in float32 and must lie within a bound of what the oracle computes in float64. The bound comes from
`flexref.check.forward`, which computes it from the weights and the arithmetic; its own float64 logits must agree too.
"""

from copy import deepcopy
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits
from transformers import DynamicCache, OPTForCausalLM

from flexref.check.forward import model_logits_bound
from flexref.check.models import stored_tensors
from flexref.check.tolerances import FLOAT32, FLOAT64, Numbers, assert_within
from flexref.engine.request import Request
from flexref.loading import load
from flexref.policy import Policy
from flexref.storage.convert import convert
from flexref.storage.weightfile import open_weight_file

Logits = npt.NDArray[np.float32]

STEPS = 48
"""Enough for text that varies; the bounds of a step take as long as all steps before it."""

LONG_PROMPT = [9, 1, 2, 33, 33, 60, 4, 17, 3, 28, 11, 7, 50, 21, 8, 44, 13, 56, 5, 30]
"""With `STEPS` more, rows grow across the 64 keys that attention takes at once."""

HOME = Policy(rows_per_group=2, groups_per_block=2)
STREAMED = Policy.from_percent([0] * 6, rows_per_group=2, groups_per_block=2)
"""Nothing has a home but the disk: weights, cache and activations cross both links in every pass."""

SUMS_OF_FLOAT64 = 2
"""The bound counts the roundings of a float64 reference beside those of what is checked: in float64 that is both."""

torch.set_num_threads(1)


@dataclass
class Run:
    """What flexref gave: token ids of every row, why it ended, and the logits (S, V) that they were chosen from."""

    token_ids: list[list[int]]
    finish_reasons: list[str]
    logits: list[Logits] = field(default_factory=list)


def weight_file(folder: Path, scheme: str = "none", dtype: str = "float32") -> Path:
    """The folder converted."""
    path = folder / f"{scheme}-{dtype}.h5"
    convert(folder, path, scheme=scheme, dtype=dtype)
    return path


def run_flexref(path: Path, prompts: list[list[int]], request: Request, policy: Policy, **options: Any) -> Run:
    """Generate from all prompts in one block."""
    logits: list[list[Logits]] = [[] for _ in prompts]

    def keep(rows: npt.NDArray[np.int64], steps: npt.NDArray[np.int64], values: Logits) -> None:
        for row, step, found in zip(rows.tolist(), steps.tolist(), values, strict=True):
            assert len(logits[row]) == step
            logits[row].append(found)

    # One thread: products this small gain nothing by more, and wait for each other on a busy machine.
    with threadpool_limits(1), load(path, policy=policy, **options) as engine:
        outputs = engine.generate(prompts, request, on_logits=keep).outputs
    run = Run([output.token_ids for output in outputs], [output.finish_reason for output in outputs])
    run.logits = [np.stack(steps) for steps in logits]
    return run


@torch.no_grad()
def follow(oracle: OPTForCausalLM, prompt: list[int], generated: list[int]) -> Logits:
    """(S, V): what the oracle, one token at a time with its own cache, chooses each of the `generated` tokens from.

    While its greedy choices are these tokens this is its greedy generation.
    """
    steps, cache, no_mask = [], DynamicCache(), None
    for fresh in ([*prompt], *([token] for token in generated[:-1])):
        # By place: versions of `transformers` differ in what they call the cache.
        output = oracle(torch.tensor([fresh]), no_mask, cache, use_cache=True)
        steps.append(output.logits[0, -1].numpy())
    return np.stack(steps)


@dataclass(frozen=True)
class Reference:
    """Of S steps: exact logits (S, V), how far float32 may be from each, and the oracle's own in float32."""

    logits: Numbers
    bound: Numbers
    oracle: Logits

    @property
    def decided(self) -> npt.NDArray[np.bool_]:
        """(S,): where one token has the greatest logit whatever the rounding."""
        least = (self.logits - self.bound).max(-1, keepdims=True)
        return (self.logits + self.bound >= least).sum(-1) == 1


class Oracle:
    """The oracle with the weights of `model`, float32; the weight file of the same weights gives the bounds."""

    def __init__(self, model: OPTForCausalLM, path: Path) -> None:
        self.model, self.wide = model, deepcopy(model).double()
        self._spec, self._tensors = open_weight_file(path).spec, stored_tensors(path)
        self._references: dict[str, Reference] = {}

    def reference(self, prompt: list[int], generated: list[int]) -> Reference:
        """What each of the `generated` tokens is chosen from; kept for the next run that generates the same."""
        key = f"{prompt} {generated}"
        if key not in self._references:
            tokens, first = [*prompt, *generated[:-1]], len(prompt) - 1
            with threadpool_limits(1):
                logits, bound = model_logits_bound(self._spec, self._tensors, tokens, first=first)
            with torch.no_grad():
                exact = self.wide(torch.tensor([tokens])).logits[0, first:].numpy()
            # Rounding in float64 has a bound of the same terms with another unit.
            wide = SUMS_OF_FLOAT64 * FLOAT64.unit / FLOAT32.unit * bound
            assert_within(exact, logits, wide, "logits of the oracle in float64")
            self._references[key] = Reference(exact, bound, follow(self.model, prompt, generated))
        return self._references[key]

    def check(self, prompts: list[list[int]], run: Run) -> None:
        """`AssertionError` unless both are right in every step and choose the same tokens.

        A choice that rounding may decide may differ; there the oracle goes on from flexref's.
        """
        for number, (prompt, generated) in enumerate(zip(prompts, run.token_ids, strict=True)):
            reference, logits = self.reference(prompt, generated), run.logits[number]
            for what, found in (("the oracle", reference.oracle), ("flexref", logits)):
                assert_within(found, reference.logits, reference.bound, f"row {number}, logits of {what}")
            assert generated == logits.argmax(-1).tolist(), f"row {number}: not the greatest of its own logits"
            choices = reference.oracle.argmax(-1)
            differing = np.flatnonzero((choices != generated) & reference.decided)
            assert not differing.size, f"row {number}: generated {generated}, needed {choices}"

    def check_fully(self, prompts: list[list[int]], run: Run) -> None:
        """As `check`, and `AssertionError` where it proves little: greedy text that collapsed, or too wide a bound."""
        self.check(prompts, run)
        assert_varied(run.token_ids)
        for prompt, generated in zip(prompts, run.token_ids, strict=True):
            undecided = np.flatnonzero(~self.reference(prompt, generated).decided)
            assert 8 * len(undecided) <= len(generated), f"rounding may decide the steps {undecided}"


def assert_varied(rows: list[list[int]]) -> None:
    """`AssertionError` unless rows differ and change their token in most steps, among at least 8."""
    for generated in rows:
        alternations = sum(first != second for first, second in pairwise(generated))
        assert len(set(generated)) >= 8, f"only {len(set(generated))} different tokens: {generated}"
        assert 2 * alternations >= len(generated), f"tokens follow themselves too often: {generated}"
    assert len({tuple(generated) for generated in rows}) == len(rows)
