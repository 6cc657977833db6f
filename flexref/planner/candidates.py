"""The candidates that a plan is chosen from: schemes for weights and cache, a place for attention; no search."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from flexref.architecture.published import size_named
from flexref.architecture.spec import ModelSpec
from flexref.block.counted_rows import kinds_of
from flexref.block.rows import JobRows, RowLengths
from flexref.block.tracing.trace import Trace
from flexref.errors import CapacityError, PolicyError, PromptError
from flexref.machine.machine import Machine
from flexref.planner.fitting import fitted
from flexref.planner.plan_request import PlanRequest
from flexref.planner.predicted import predicted
from flexref.planner.program.lp import Solution, solve
from flexref.planner.program.task import Limits
from flexref.planner.situation import Situation
from flexref.policy import Policy
from flexref.simulator.extended import generated_tokens
from flexref.simulator.prediction import Prediction
from flexref.simulator.simulate import simulate
from flexref.storage.names import check_model, resolve
from flexref.storage.random_weights import random_file
from flexref.storage.weightfile import WeightFile, open_weight_file

TIGHTENING_ROUNDS = 3
"""How often a bound on latency or disk writes is tightened, where the simulator finds more than the linear program."""

SIZES_SCHEMES = ("none", "int4")
"""Schemes that are tried for the weights of a published size, by default."""

SCHEME_NAMES = {"none": "fp16", "int4": "4-bit", "int8": "8-bit"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One combination of schemes and a place for attention, with its best policy and prediction; or the `problem`."""

    weights_scheme: str
    cache_scheme: str
    attention_on: str
    policy: Policy | None
    prediction: Prediction | None
    solution: Solution | None
    problem: str | None

    @property
    def label(self) -> str:
        """Its schemes and place in words."""
        weights, cache = (SCHEME_NAMES.get(scheme, scheme) for scheme in (self.weights_scheme, self.cache_scheme))
        place = self.attention_on if self.policy is None else self.policy.attention_in_words
        if self.policy is not None and self.policy.attention_on != self.attention_on:
            place = f"{self.attention_on} for no row"
        return f"{weights} weights, {cache} cache, attention on {place}"

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name, fit for `json.dumps`."""
        return {
            "label": self.label,
            "weights_scheme": self.weights_scheme,
            "cache_scheme": self.cache_scheme,
            "attention_on": self.attention_on,
            "policy": None if self.policy is None else asdict(self.policy),
            "predicted": None if self.prediction is None else self.prediction.to_json(),
            "problem": self.problem,
        }


Answer = tuple[Policy, Prediction, Solution]
"""A policy that fits and keeps the bounds, its prediction, and the solution that it was rounded from."""


@dataclass(frozen=True, slots=True)
class SearchProblem:
    """One candidate's situation, with the bounds that its policies must keep.

    `known`: policies that were simulated before, so that none is simulated twice.
    """

    situation: Situation
    limits: Limits
    weights_scheme: str
    known: dict[Policy, Prediction] = field(default_factory=dict, compare=False, repr=False)

    def candidate(self, answer: Answer | None, problem: str | None) -> Candidate:
        """The candidate with its answer, or the problem in place of one."""
        base = self.situation.base
        policy, prediction, solution = answer or (None, None, None)
        schemes = (self.weights_scheme, base.cache_scheme, base.attention_on)
        return Candidate(*schemes, policy, prediction, solution, problem)

    def fitted(self, solution: Solution, limits: Limits | None = None) -> tuple[Policy, Solution] | None:
        """See `fitting.fitted`; the policy also says for which weights it was made."""
        found = fitted(self.situation, solution, limits or self.limits)
        return None if found is None else (found[0].changed(weights_scheme=self.weights_scheme), found[1])

    def simulated(self, solution: Solution, limits: Limits) -> tuple[Answer | None, Limits]:
        """(answer near the solution or None, limits): simulate; where a bound is exceeded, tighten it and solve again.

        `limits` are the question's own, or tighter ones; those that are returned are at least as tight.
        """
        for _ in range(TIGHTENING_ROUNDS):
            found = self.fitted(solution, limits)
            if found is None:
                break
            policy, settled = found
            prediction = self.predict(policy)
            tighter = self._tightened(limits, prediction)
            if tighter is None:
                return (policy, prediction, settled), limits
            limits = tighter
            try:
                task, pair = self.situation.task, (solution.rows_per_group, solution.groups)
                solution = solve(self.situation.machine, task, *pair, limits)
            except (CapacityError, PolicyError):
                break
        return None, limits

    def predict(self, policy: Policy, trace: Trace | None = None) -> Prediction:
        """The simulator's prediction for the policy; it is simulated once."""
        if trace is not None or policy not in self.known:
            situation, traces = self.situation, iter([trace])

            def simulated(rows: JobRows) -> Prediction:
                traced = next(traces, None)  # where parts are simulated, of the first
                return simulate(situation.file, situation.machine, policy, rows, trace=traced)

            self.known[policy] = predicted(situation.job_rows(policy), policy.rows_per_block, simulated)
        return self.known[policy]

    def estimate(self, policy: Policy, solution: Solution) -> Prediction:
        """A prediction with the linear program's seconds; its peak bytes are exact."""
        rows = self.situation.job_rows(policy)
        turnover = self.situation.task.turnover is not None  # a block that stays full until it thins out
        blocks = solution.job_s / solution.block_s if turnover else len(rows) / policy.rows_per_block
        held = self.situation.held_bytes(policy)
        passes, occupancy = least_passes(kinds_of(rows), policy.rows_per_block)
        return Prediction(
            rows=len(rows),
            blocks=1,
            passes=passes,
            places=min(len(rows), policy.rows_per_block),
            occupancy=occupancy,
            generated_tokens=generated_tokens(kinds_of(rows)),
            load_s=0.0,
            prefill_s=solution.prefill_s * blocks,
            decode_s=solution.decode_s * blocks,
            peak_bytes={tier.value: nbytes for tier, nbytes in held.items()},
            link_bytes={},
            disk_write_bytes=0,
            link_s={},
            lane_busy={},
            simulated=False,
        )

    def _tightened(self, limits: Limits, prediction: Prediction) -> Limits | None:
        """`limits` with each bound lowered by the factor by which the simulator exceeds it; None if it exceeds none."""
        changes: dict[str, float] = {}
        asked = self.limits
        block_s = prediction.block_s
        if asked.max_block_s is not None and limits.max_block_s is not None and block_s > asked.max_block_s:
            changes["max_block_s"] = limits.max_block_s * asked.max_block_s / block_s
        written, most = prediction.disk_write_bytes, asked.max_disk_write_bytes
        if most is not None and limits.max_disk_write_bytes is not None and written > most:
            changes["max_disk_write_bytes"] = limits.max_disk_write_bytes * most / written
        return replace(limits, **changes) if changes else None  # type: ignore[arg-type]


def layouts(model: str, schemes: tuple[str, ...] | None) -> Iterator[tuple[str, WeightFile]]:
    """(scheme, layout of the weights) of a size in each scheme, or of a file in its own; None: see `PlanRequest`.

    Nothing is allocated, and of a file nothing but its table of contents is read. `UnknownName` if `model` is neither,
    `PolicyError` if a file holds its weights otherwise.
    """
    spec: ModelSpec | None = None if Path(model).is_file() else size_named(model)
    if spec is not None:
        for scheme in schemes or SIZES_SCHEMES:
            yield scheme, random_file(spec, scheme=scheme)
        return
    check_model(model)
    file = open_weight_file(resolve(model))
    if schemes is not None and file.layout not in schemes:
        raise PolicyError(f"{file.path} holds {file.stored} weights, asked for: {', '.join(schemes)}")
    yield file.layout, file


def questions(model: str, machine: Machine, wanted: PlanRequest) -> Iterator[SearchProblem]:
    """A question for every combination that is allowed and that the port can do."""
    places = [place for place in wanted.attention_on if place == "device" or machine.port.attends_on_host]
    if not places:
        raise PolicyError(f"port {machine.port.name} of machine {machine.name!r} cannot compute attention on the host")
    rows = wanted.job_rows
    needed = max(row.prompt_tokens + row.new_tokens for row in kinds_of(rows))
    for scheme, file in layouts(model, wanted.weights_schemes):
        if needed - 1 > file.spec.positions:  # the last one is never read
            raise PromptError(f"{needed} tokens: the model has {file.spec.positions} positions")
        for cache_scheme, place in product(wanted.cache_schemes, places):
            base = Policy(
                cache_scheme=cache_scheme,
                attention_on=place,
                overlap=wanted.overlap,
                row_invariant=wanted.row_invariant,
                share_prefixes=wanted.share_prefixes,
            )
            asked = "device" not in wanted.attention_on
            situation = Situation(file, machine, rows, base, steady=wanted.steady, asked_on_host=asked)
            keep = {"rows_per_group": wanted.rows_per_group, "groups_per_block": wanted.groups}
            limits = situation.limits(keep, wanted.max_latency_s, wanted.max_disk_write_bytes)
            yield SearchProblem(situation, limits, scheme)


def least_passes(kinds: Counter[RowLengths], rows_per_block: int) -> tuple[int, float]:
    """(passes, occupancy) of a block that is as full as it can be, where every prompt is read in one pass."""
    places = min(kinds.total(), rows_per_block)
    taken = sum(row.new_tokens * count for row, count in kinds.items())
    longest = max(row.new_tokens for row in kinds)
    passes = -(-kinds.total() // places) * longest if len(kinds) == 1 else max(longest, -(-taken // places))
    return passes, taken / (passes * places)
