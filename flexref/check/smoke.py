"""A tiny model through the whole engine on any port, against float64: what must hold before anything is timed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.architecture.program import Role
from flexref.architecture.spec import ModelSpec
from flexref.backend.protocol import Backend
from flexref.check.forward import model_logits_bound
from flexref.check.laws import coded
from flexref.check.models import random_tensor
from flexref.check.probable import ProbableTape
from flexref.check.tolerances import Arithmetic, Numbers, Operand, arithmetic, expanded
from flexref.engine.generation import Request
from flexref.errors import FlexrefError
from flexref.loading import load
from flexref.policy import Policy
from flexref.storage.quant import Quantized
from flexref.storage.weightfile import WeightFile, open_weight_file, read_tensor
from flexref.storage.writer import WeightFileWriter

SPEC = ModelSpec("smoke", 96, 64, 128, 128, 2, 2, 256, activation="gelu")
"""Heads and groups of 64, as in the large models, and small enough to be computed in float64 in a second. No relu: the
errors of half precision and of 4-bit caches would carry many arguments over its kink, where no first order holds."""

QKV_FACTOR = 0.35
"""Makes the scores of the usual random models smaller: sharp attention would enlarge the rounding of a 4-bit cache."""

GROUP_SIZE, SEED = 64, 0

PROMPT_TOKENS = (17, 5, 12)
"""Rows of different lengths, in two groups."""

NEW_TOKENS = 4


class WrongResult(FlexrefError):
    """A port whose results are not those of the model."""


@dataclass(frozen=True, slots=True)
class Passed:
    """How many logits were compared, and the greatest error as a share of what its bound permits."""

    logits: int
    worst_share: float


def check(
    make_backend: Callable[[], Backend], policy: Policy, *, scheme: str, dtype: str, disk_dir: str | None = None
) -> Passed:
    """Run a tiny random model on the port that `make_backend` makes, placed as `policy` says, stored in `scheme`.

    `WrongResult` unless all logits lie within the bound of their float64 values (see `probable`) and every token is the
    first of the greatest. Groups and blocks are smaller than the policy's: there are only a few rows. A 4-bit cache has
    a wide bound, and so a plain one is tried before it.
    """
    few = policy.changed(rows_per_group=2, groups_per_block=2, weights_scheme=None)
    logits, worst = 0, 0.0
    with TemporaryDirectory(prefix="flexref-check-") as folder:
        path = Path(folder) / "model.h5"
        _write_model(path, scheme, dtype)
        file = open_weight_file(path)
        for cache_scheme in dict.fromkeys(("none", policy.cache_scheme)):
            run = _generate(file, make_backend(), few.changed(cache_scheme=cache_scheme), disk_dir)
            how = arithmetic(run.compute_dtype)
            tensors = {name: _dense_or_operand(file, name, how) for name in file.tensors}
            group_size = None if cache_scheme == "none" else few.cache_group_size
            for row, steps in enumerate(run.logits):
                worst = max(worst, _worst_share(run, row, tensors, ProbableTape.of(how, group_size)))
                logits += len(steps) * SPEC.vocabulary
    return Passed(logits, worst)


def _write_model(path: Path, scheme: str, dtype: str) -> None:
    """A random model that attends to many tokens, in values that half precision holds."""
    with WeightFileWriter(path, SPEC, scheme, GROUP_SIZE, dtype) as writer:
        for tensor in writer.tensors:
            values = random_tensor(tensor, SEED)
            if tensor.role is Role.QKV:
                values *= np.float32(QKV_FACTOR)
            writer.write(tensor.name, values.astype(np.float16))


@dataclass(frozen=True, slots=True)
class _Run:
    """What the engine gave for every prompt: tokens, and the logits that each was chosen from."""

    compute_dtype: str
    prompts: Sequence[list[int]]
    tokens: list[list[int]]
    logits: list[list[npt.NDArray[np.float32]]]


def _generate(file: WeightFile, backend: Backend, policy: Policy, disk_dir: str | None) -> _Run:
    draw = np.random.default_rng(0)
    prompts = [draw.integers(0, file.spec.vocabulary, count).tolist() for count in PROMPT_TOKENS]
    logits: list[list[npt.NDArray[np.float32]]] = [[] for _ in prompts]

    def keep(rows: npt.NDArray[np.int64], steps: npt.NDArray[np.int64], values: npt.NDArray[np.float32]) -> None:
        for row, found in zip(rows.tolist(), values, strict=True):
            logits[row].append(found)

    with load(file, policy=policy, backend=backend, disk_dir=disk_dir) as engine:
        if not backend.caps.computes:
            raise WrongResult(f"backend {backend.name} computes nothing: there is nothing to time")
        request = Request(NEW_TOKENS, ignore_eos=True)
        outputs = engine.generate(prompts, request, on_logits=keep).outputs
        return _Run(backend.caps.compute_dtype, prompts, [output.token_ids for output in outputs], logits)


def _dense_or_operand(file: WeightFile, name: str, how: Arithmetic) -> npt.NDArray[Any] | Operand:
    """A tensor as stored; 4-bit groups with what a port may make of them."""
    values = read_tensor(file.tensors[name])
    if not isinstance(values, Quantized):
        return values
    return expanded(*coded(values.codes, values.scale, values.zero, values.width, values.group_size, values.bits), how)


def _worst_share(run: _Run, row: int, tensors: Mapping[str, npt.NDArray[Any] | Operand], tape: ProbableTape) -> float:
    """The greatest share of its bound that an error of the row's logits takes; `WrongResult` beyond 1."""
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
    """|found - logits| / bound, infinite where a logit is not finite."""
    if not np.isfinite(bound).all():
        raise ValueError("a bound is not finite: the comparison would say nothing")
    error = np.abs(np.where(np.isfinite(found), found, np.inf) - logits)
    return np.asarray(error / bound, np.float64)
