"""Compares the tokens and logits of a run on a port with a reference's, row by row; it knows no operator."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.architecture.stages import Stage
from flexref.backend.protocol import Backend
from flexref.backend.registry import create
from flexref.check.greedy import bounded, exact_logits, permitted_gap
from flexref.check.tolerances import arithmetic
from flexref.engine.request import Request
from flexref.loading import load
from flexref.machine.plain import plain_machine
from flexref.policy import Policy
from flexref.profile.measure import port_of
from flexref.storage.weightfile import WeightFile

EXACT = "the model in float64 on the host"
NUMPY = "the numpy port through the engine with the same policy"
"""What a port's tokens are compared with. With a 4-bit cache it is numpy's run and not float64's: the cache is part of
the model then, and a code that rounds the other way, after a tiny difference, makes another cache."""

OnVisit = Callable[[Stage, int, int], None]
Ids = Sequence[int]
Logits = npt.NDArray[Any]


@dataclass(slots=True)
class TokenRun:
    """One run's result: every row's tokens, and the logits (V,) that each was chosen from."""

    compute_dtype: str
    policy: Policy
    tokens: list[list[int]]
    logits: list[list[Logits]]


def telling(*listeners: OnVisit | None) -> OnVisit:
    """What tells each of these, in this order."""

    def visited(stage: Stage, group: int, turn: int) -> None:
        for listener in listeners:
            if listener is not None:
                listener(stage, group, turn)

    return visited


def run_engine(
    file: WeightFile,
    port: Backend,
    prompts: Sequence[Ids],
    max_new_tokens: int,
    options: Mapping[str, Any],
    on_visit: OnVisit | None = None,
) -> TokenRun:
    """Generate greedily on `port`, then close it. `options`: those of `flexref.load`, and its errors are raised.

    Where no policy is given, one is chosen for a plain machine, because a port that is being checked is not measured.
    """
    logits: list[list[Logits]] = [[] for _ in prompts]

    def keep(rows: npt.NDArray[np.int64], steps: npt.NDArray[np.int64], values: npt.NDArray[np.float32]) -> None:
        for row, found in zip(rows.tolist(), values, strict=True):
            logits[row].append(found)

    request = Request(max_new_tokens, ignore_eos=True)
    machine = plain_machine().changed(port=port_of(port, asynchronous=False))
    with load(file, backend=port, machine=machine, **options) as engine:
        generation = engine.generate(prompts, request, on_logits=keep, on_visit=on_visit)
    tokens = [output.token_ids for output in generation.outputs]
    return TokenRun(port.caps.compute_dtype, generation.stats.policy, tokens, logits)


@dataclass(frozen=True, slots=True)
class Difference:
    """The first token of a row that is not the reference's; it was chosen in pass `turn`.

    Four logits belong to it: of the port's token (`logit`) and of the reference's (`needed_logit`), both on the port;
    and the same two in the reference (`reference_...`). `permitted_gap`: how far apart the last two may be for rounding
    to have exchanged them; None where no bound is known.
    """

    row: int
    turn: int
    token_id: int
    needed_token_id: int
    logit: float
    needed_logit: float
    reference_logit: float
    reference_needed_logit: float
    permitted_gap: float | None

    @property
    def gap(self) -> float:
        """How far apart the two logits are in the reference."""
        return self.reference_needed_logit - self.reference_logit

    @property
    def tie(self) -> bool | None:
        """Whether rounding alone may explain the difference; None where no bound is known."""
        return None if self.permitted_gap is None else self.gap <= self.permitted_gap

    def __str__(self) -> str:
        verdict = "no bound is known"
        if self.permitted_gap is not None:
            kind = "a tie" if self.tie else "not a tie"
            verdict = f"{kind}: rounding permits {self.permitted_gap:.3g}"
        return (
            f"row {self.row}, pass {self.turn}: token {self.token_id} with logit {self.logit:.7g} (reference "
            f"{self.reference_logit:.7g}), needed {self.needed_token_id} with logit {self.needed_logit:.7g} (reference "
            f"{self.reference_needed_logit:.7g}), {self.gap:.3g} apart; {verdict}"
        )

    def to_json(self) -> dict[str, Any]:
        """All fields, `gap` and `tie`, as an object for `json.dumps`."""
        return {**asdict(self), "gap": self.gap, "tie": self.tie}


@dataclass(slots=True)
class Tokens:
    """A port's tokens compared with those of `reference`: of each row, the first difference if there is one.

    `largest_error`: the largest |logit - the reference's logit|, over each row up to its first difference.
    """

    reference: str
    token_ids: list[list[int]]
    differences: list[Difference] = field(default_factory=list)
    largest_error: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """All fields as an object for `json.dumps`."""
        return {**asdict(self), "differences": [difference.to_json() for difference in self.differences]}


def compare_tokens(file: WeightFile, prompts: Sequence[Ids], run: TokenRun, disk_dir: str | None = None) -> Tokens:
    """Compare the tokens of a run with the reference's.

    The reference is given the port's own tokens, so that every step is compared after the same ones. With a 4-bit cache
    it runs through the engine on numpy, its disk tier in `disk_dir`.
    """
    quantized = run.policy.cache_scheme != "none"
    if quantized:
        most = max(map(len, run.tokens))
        options = {"policy": run.policy, "disk_dir": disk_dir}
        reference: Sequence[Sequence[Logits]] = run_engine(file, create("numpy"), prompts, most, options).logits
    else:
        rows = [[*prompt, *tokens[:-1]] for prompt, tokens in zip(prompts, run.tokens, strict=True)]
        reference = [list(steps) for steps in exact_logits(file, rows, [len(prompt) - 1 for prompt in prompts])]
    found = Tokens(NUMPY if quantized else EXACT, run.tokens)
    for row, steps in enumerate(reference):
        for turn, (ours, needed) in enumerate(zip(run.logits[row], steps, strict=True)):
            found.largest_error = max(found.largest_error, float(np.abs(ours.astype(np.float64) - needed).max()))
            pair = run.tokens[row][turn], int(needed.argmax())
            if pair[0] != pair[1]:
                before = [*prompts[row], *run.tokens[row][:turn]]
                permitted = _permitted(file, before, pair, run)
                four = [float(logits[token]) for logits in (ours, needed) for token in pair]
                found.differences.append(
                    Difference(row, turn, *pair, four[0], four[1], four[2], four[3], permitted_gap=permitted)
                )
                break
    return found


def _permitted(file: WeightFile, token_ids: Ids, pair: tuple[int, int], run: TokenRun) -> float | None:
    """How far apart the reference's logits of two tokens may be for rounding to exchange them; None if not known.

    Where numpy is the reference its logits are rounded too, so its bound is added.
    """
    group_size = run.policy.cache_groups_of
    if not bounded(file.spec, len(token_ids), run.compute_dtype != "float32" or group_size is not None):
        return None
    ports = [run.compute_dtype] if group_size is None else [run.compute_dtype, "float32"]
    return sum(permitted_gap(file, token_ids, pair, arithmetic(dtype), group_size) for dtype in ports)


def differing_bits(checked: TokenRun, plain: TokenRun) -> str | None:
    """The first place where the logits of two runs of one port differ in any bit, in words; None if there is none."""
    for row, both in enumerate(zip(checked.logits, plain.logits, strict=True)):
        for turn, (one, other) in enumerate(zip(*both, strict=True)):
            if not np.array_equal(one, other):
                error = float(np.abs(one.astype(np.float64) - other).max())
                return f"row {row}, pass {turn}: logits differ by up to {error:.3g}"
    return None
