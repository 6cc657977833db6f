"""Checks the logits of a tiny model on a port against float64, before anything is timed; it knows no clock."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from flexref.architecture.program import Role
from flexref.architecture.spec import ModelSpec
from flexref.backend.protocol import Backend
from flexref.check.forward import model_logits_bound
from flexref.check.laws import coded
from flexref.check.models import random_tensor
from flexref.check.probable import ProbableTape
from flexref.check.tolerances import Arithmetic, Numbers, Operand, arithmetic, expanded
from flexref.engine.request import Request
from flexref.errors import FlexrefError
from flexref.loading import load
from flexref.policy import Policy
from flexref.storage.quant import Quantized
from flexref.storage.weightfile import WeightFile, open_weight_file, read_tensor
from flexref.storage.writer import WeightFileWriter

SPEC = ModelSpec("smoke", 96, 64, 128, 128, 2, 2, 256, activation="gelu")
"""Heads and groups of 64, as in the large models, and small enough for float64 to take a second. The activation is not
relu: the errors of half precision and of 4-bit caches carry many arguments over 0, and bounds of first order fail."""

QKV_FACTOR = 0.35
"""Scales the random QKV matrix down. Larger scores sharpen attention, which amplifies a 4-bit cache's errors."""

GROUP_SIZE, SEED = 64, 0

PROMPT_TOKENS = (17, 5, 12)
"""Tokens of the three prompts: different lengths, in two groups."""

NEW_TOKENS = 4


class WrongResult(FlexrefError):
    """The port's logits or tokens are not the model's."""


@dataclass(frozen=True, slots=True)
class Passed:
    """How many logits were compared, and the largest error as a share of its bound (1: just permitted)."""

    logits: int
    worst_share: float


def check(
    make_backend: Callable[[], Backend], policy: Policy, *, scheme: str, dtype: str, disk_dir: str | None = None
) -> Passed:
    """Run a tiny random model on the port that `make_backend` makes, with the placement of `policy`.

    `scheme` and `dtype`: how its weights are stored. `disk_dir`: where its disk tier lies. Groups and blocks are
    smaller than the policy's, since there are only three rows. A 4-bit cache is checked after a plain one, because its
    bound is so wide that it hides small errors.
    Raises `WrongResult` unless every logit lies within its bound of the float64 value (see `probable`) and every token
    is the first of the greatest logits; and what `flexref.load` and `Engine.generate` raise.
    """
    few = policy.changed(rows_per_group=2, groups_per_block=2, weights_scheme=None)
    with TemporaryDirectory(prefix="flexref-check-") as folder:
        path = Path(folder) / "model.h5"
        _write_model(path, scheme, dtype)
        file = open_weight_file(path)
        policies = [few.changed(cache_scheme=cache) for cache in dict.fromkeys(("none", policy.cache_scheme))]
        runs = _generate(file, make_backend(), policies, disk_dir)
        how = arithmetic(runs[0].compute_dtype)
        tensors = {name: _dense_or_operand(file, name, how) for name in file.tensors}

    def worst_share(of: tuple[_Run, Policy, int]) -> float:
        run, under, row = of
        return _worst_share(run, row, tensors, ProbableTape.of(how, under.cache_groups_of))

    rows = [(run, under, row) for run, under in zip(runs, policies, strict=True) for row in range(len(run.logits))]
    # Matrices are small: a core for each row is of use, and several for one product are not.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        worst = max(pool.map(worst_share, rows))
    return Passed(sum(len(run.logits[row]) for run, _, row in rows) * SPEC.vocabulary, worst)


def _write_model(path: Path, scheme: str, dtype: str) -> None:
    """Write a random model that attends to many tokens at once, all values representable in float16."""
    with WeightFileWriter(path, SPEC, scheme, GROUP_SIZE, dtype) as writer:
        for tensor in writer.tensors:
            values = random_tensor(tensor, SEED)
            if tensor.role is Role.QKV:
                values *= np.float32(QKV_FACTOR)
            writer.write(tensor.name, values.astype(np.float16))


@dataclass(frozen=True, slots=True)
class _Run:
    """The result of every prompt: its tokens, and the logits (V,) that each was chosen from."""

    compute_dtype: str
    prompts: Sequence[list[int]]
    tokens: list[list[int]]
    logits: list[list[npt.NDArray[np.float32]]]


def _generate(file: WeightFile, backend: Backend, policies: Sequence[Policy], disk_dir: str | None) -> list[_Run]:
    """Generate greedily from random prompts under each policy, and keep all logits."""
    draw = np.random.default_rng(0)
    prompts = [draw.integers(0, file.spec.vocabulary, count).tolist() for count in PROMPT_TOKENS]
    request = Request(NEW_TOKENS, ignore_eos=True)
    runs = []
    with load(file, policy=policies[0], backend=backend, disk_dir=disk_dir) as engine:
        if not backend.caps.computes:
            raise WrongResult(f"backend {backend.name} computes nothing: there is nothing to time")
        for policy in policies:
            logits: list[list[npt.NDArray[np.float32]]] = [[] for _ in prompts]
            outputs = engine.generate(prompts, request, policy=policy, on_logits=partial(_keep, logits)).outputs
            tokens = [output.token_ids for output in outputs]
            runs.append(_Run(backend.caps.compute_dtype, prompts, tokens, logits))
    return runs


def _keep(
    logits: list[list[npt.NDArray[np.float32]]],
    rows: npt.NDArray[np.int64],
    steps: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
) -> None:
    """Append to every row's logits what it has got (an `OnLogits`)."""
    for row, found in zip(rows.tolist(), values, strict=True):
        logits[row].append(found)


def _dense_or_operand(file: WeightFile, name: str, how: Arithmetic) -> npt.NDArray[Any] | Operand:
    """A tensor as stored; if it is in groups of codes, expanded, with the error of a port's expansion."""
    values = read_tensor(file.tensors[name])
    if not isinstance(values, Quantized):
        return values
    return expanded(*coded(values.codes, values.scale, values.zero, values.width, values.group_size, values.bits), how)


def _worst_share(run: _Run, row: int, tensors: Mapping[str, npt.NDArray[Any] | Operand], tape: ProbableTape) -> float:
    """The largest error / bound of the row's logits. Raises `WrongResult` above 1, or for a wrong token."""
    prompt, generated, found = run.prompts[row], run.tokens[row], np.stack(run.logits[row]).astype(np.float64)
    logits, bound = model_logits_bound(SPEC, tensors, [*prompt, *generated[:-1]], tape, first=len(prompt) - 1)
    share = _shares(found, logits, bound)
    if share.max() > 1:
        step, token = (int(place) for place in np.unravel_index(int(share.argmax()), share.shape))
        raise WrongResult(
            f"the port computes something else: row {row}, step {step}, token {token} has the logit "
            f"{found[step, token]:.6g}, needed {logits[step, token]:.6g} within {bound[step, token]:.3g}; "
            f"{int((share > 1).sum())} of {share.size} logits are outside; nothing is timed"
        )
    if generated != found.argmax(-1).tolist():
        raise WrongResult(f"row {row}: the port chose {generated}, not the greatest of its logits; nothing is timed")
    return float(share.max())


def _shares(found: Numbers, logits: Numbers, bound: Numbers) -> Numbers:
    """|found - logits| / bound, infinite where a found logit is not finite. Raises `ValueError` for such a bound."""
    if not np.isfinite(bound).all():
        raise ValueError("a bound is not finite: the comparison would say nothing")
    error = np.abs(np.where(np.isfinite(found), found, np.inf) - logits)
    return np.asarray(error / bound, np.float64)
