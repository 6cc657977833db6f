"""Runs flexref and the oracle on the same folder and compares step by step; it knows no variant and sets no tolerance."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from oracle_kit.bounds import Bounds, Reference
from transformers import OPTForCausalLM

from flexref.engine import load
from flexref.engine.job import Request
from flexref.policy import Policy
from flexref.storage.convert import convert
from flexref.testing.tolerances import assert_within

Logits = npt.NDArray[np.float32]

STEPS = 64

HOME = Policy(rows_per_group=2, groups_per_block=2)
STREAMED = Policy.from_percent([0] * 6, rows_per_group=2, groups_per_block=2)
"""Nothing has a home but the disk: weights, cache and activations cross both links in every pass."""


@dataclass
class Run:
    """What flexref gave: token ids of every row, why it ended, and the logits (S, V) that they were chosen from."""

    token_ids: list[list[int]]
    finish_reasons: list[str]
    logits: list[Logits] = field(default_factory=list)


def weight_file(folder: Path, scheme: str = "none", dtype: str = "float32") -> Path:
    """The folder converted; made once."""
    path = folder / f"{scheme}-{dtype}.h5"
    if not path.exists():
        convert(folder, path, scheme=scheme, dtype=dtype)
    return path


def run_flexref(path: Path, prompts: list[list[int]], request: Request, policy: Policy, **options: Any) -> Run:
    """Generate from all prompts in one block."""
    logits: list[list[Logits]] = [[] for _ in prompts]

    def keep(rows: npt.NDArray[np.int64], turn: int, values: Logits) -> None:
        for row, step in zip(rows.tolist(), values, strict=True):
            assert len(logits[row]) == turn
            logits[row].append(step)

    with load(path, policy=policy, **options) as engine:
        outputs = engine.generate(prompts, request, on_logits=keep).outputs
    run = Run([output.token_ids for output in outputs], [output.finish_reason for output in outputs])
    run.logits = [np.stack(steps) for steps in logits]
    return run


@torch.no_grad()
def follow(oracle: OPTForCausalLM, prompt: list[int], generated: list[int]) -> Logits:
    """(S, V): what the oracle, one token at a time with its own cache, chooses each of the `generated` tokens from.

    While its greedy choices are these tokens this is its greedy generation.
    """
    steps, cache = [], None
    for fresh in ([*prompt], *([token] for token in generated[:-1])):
        output = oracle(torch.tensor([fresh]), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        steps.append(output.logits[0, -1].numpy())
    return np.stack(steps)


@dataclass
class Oracle:
    """The oracle's model and the bounds that come from its weights."""

    model: OPTForCausalLM
    every: int = 1
    """Bounds are computed for one step in so many; tokens are compared in all."""
    references: dict[tuple[int, ...], tuple[Reference, Logits]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bounds = Bounds(self.model)

    def reference(self, prompt: list[int], generated: list[int]) -> tuple[Reference, Logits]:
        """Exact logits with their bound, and the oracle's own; kept for the next run that generates the same."""
        key = (len(prompt), *prompt, *generated)
        if key not in self.references:
            own = follow(self.model, prompt, generated)
            self.references[key] = (self.bounds.reference(prompt, generated, self.every), own)
        return self.references[key]

    def check(self, prompts: list[list[int]], run: Run) -> None:
        """`AssertionError` unless both are right in every step, and choose the same token where the bound decides."""
        for number, (prompt, generated) in enumerate(zip(prompts, run.token_ids, strict=True)):
            reference, own = self.reference(prompt, generated)
            logits = run.logits[number]
            for what, found in (("the oracle", own), ("flexref", logits)):
                steps = found[reference.steps]
                assert_within(steps, reference.logits, reference.bound, f"row {number}, logits of {what}")
            assert generated == logits.argmax(-1).tolist(), f"row {number}: not the greatest of its own logits"
            self._check_choices(number, prompt, generated, own)
            assert reference.decided.mean() > 0.8, "the bound is too wide for this test to say anything of tokens"

    def _check_choices(self, number: int, prompt: list[int], generated: list[int], own: Logits) -> None:
        """Greedy choices differ only where rounding may decide them."""
        for step in np.flatnonzero(own.argmax(-1) != generated):
            tie = self.bounds.reference(prompt, generated[: step + 1])
            assert not tie.decided[-1], f"row {number}, step {step}: {generated[step]}, needed {own[step].argmax()}"


def assert_varied(run: Run) -> None:
    """`AssertionError` where greedy text collapsed, so that equal tokens would prove little."""
    for generated in run.token_ids:
        assert len(set(generated)) >= 8, f"only {len(set(generated))} different tokens: {generated}"
        alternations = sum(first != second for first, second in zip(generated, generated[1:], strict=False))
        assert alternations >= len(generated) // 2, f"one token follows itself too often: {generated}"
    assert len({tuple(generated) for generated in run.token_ids}) == len(run.token_ids)
