"""The plan for a request: the best policy of a model on a machine, its prediction, what binds it; it runs nothing."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any

from flexref.block.tracing.trace import Trace
from flexref.errors import CapacityError, PolicyError
from flexref.machine.machine import WEIGHT_FILE, Machine
from flexref.planner.candidates import Candidate, SearchProblem, questions
from flexref.planner.plan_request import PlanRequest
from flexref.planner.program.lp import Solution, solve
from flexref.planner.ranking import NO_ROUNDING, propose, simulated, tokens_per_s
from flexref.units import GIB, GIGA, LINKS, TIERS


@dataclass(frozen=True, slots=True)
class OneMore:
    """Tokens per second that one more of something brings with the same rows and groups.

    `from_duals`: what the linear program's duals say of a little more; `solved_again`: what one whole unit brings.
    """

    what: Annotated[str, "Of what there is one more: a GiB of a tier, or a GB/s of a link."]
    from_duals: Annotated[float, "Tokens per second more, by the linear program's duals of a little more."]
    solved_again: Annotated[float, "Tokens per second more with one whole unit more, solved again."]

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer: the best candidate, what binds it, what one more unit of a resource brings, and all candidates."""

    model: str
    machine: str
    wanted: PlanRequest
    best: Candidate
    candidates: tuple[Candidate, ...]
    binding: tuple[str, ...]
    one_more: tuple[OneMore, ...]
    searched: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """A policy file with its reasons: `Policy.read` takes `policy` from it."""
        best = self.best.to_json()
        return {
            "policy": best["policy"],
            "predicted": {**(best["predicted"] or {}), "binding": list(self.binding)},
            "binding": list(self.binding),
            "one_more": [entry.to_json() for entry in self.one_more],
            "candidates": [candidate.to_json() for candidate in self.candidates],
            "model": self.model,
            "machine": self.machine,
            "wanted": self.wanted.to_json(),
            "searched": dict(self.searched),
        }


def plan(model: str, machine: Machine, wanted: PlanRequest, *, trace: Trace | None = None) -> Plan:
    """The best policy for `model` on `machine`, over all candidates that the request allows.

    Every candidate is estimated; those that may be the best are simulated. `trace` receives the simulation of the
    best one's first block. Raises `CapacityError` (or `PolicyError`, for a bound on latency or disk writes) if no
    candidate fits, `PromptError` if the model has too few positions, and what `layouts` raises.
    """
    machine = wanted.machine(machine)
    proposals = [propose(question) for question in questions(model, machine, wanted)]
    looked_at = simulated(proposals)
    candidates = [looked_at.get(at) or proposal.estimated() for at, proposal in enumerate(proposals)]
    place = max(looked_at, key=lambda at: tokens_per_s(candidates[at]), default=0)
    best, question = candidates[place], proposals[place].question
    if best.policy is None or best.solution is None:
        failures = [proposal.failure for proposal in proposals if proposal.failure is not None]
        raise min(failures, key=_missing_bytes, default=PolicyError(NO_ROUNDING))
    if trace is not None:
        question.predict(best.policy, trace)
    return Plan(
        model=model,
        machine=machine.name,
        wanted=wanted,
        best=best,
        candidates=tuple(candidates),
        binding=_binding(best, machine),
        one_more=tuple(_one_more(question, best.solution)),
        searched={
            "solved": sum(proposal.solved for proposal in proposals),
            "pruned": sum(proposal.pruned for proposal in proposals),
        },
    )


def _missing_bytes(failure: CapacityError | PolicyError) -> float:
    """Sort key of failures: bytes by which a tier is too small; a bound that cannot be kept sorts last."""
    return failure.needed_bytes - failure.free_bytes if isinstance(failure, CapacityError) else float("inf")


def _binding(best: Candidate, machine: Machine) -> tuple[str, ...]:
    """What binds the best candidate. Disk memory does not where nothing is on disk: the search without
    a disk sets its capacity to 0, which then binds.
    """
    assert best.solution is not None
    assert best.prediction is not None
    left_alone = machine.capacity_bytes["disk"] and not best.prediction.peak_bytes["disk"]
    return tuple(name for name in best.solution.binding if not (left_alone and name == "disk memory"))


def _one_more(question: SearchProblem, solution: Solution) -> Iterator[OneMore]:
    """What one more GiB of each tier and one more GB/s of each link would bring."""
    situation, limits = question.situation, question.limits
    machine = situation.machine
    again = partial(
        solve,
        task=situation.task,
        rows_per_group=solution.rows_per_group,
        groups=solution.groups,
        limits=limits,
    )
    now = again(machine).tokens_per_s
    for tier in TIERS:
        more = machine.with_capacity(tier, machine.capacity_bytes[tier] + GIB)
        known = tier != "disk" or machine.capacity_bytes[tier] == 0 or solution.held_bytes[tier] > 0
        by_duals = solution.gain_per_gib.get(tier, 0.0) if known else 0.0  # of a machine without a disk
        yield OneMore(f"GiB of {tier} memory", by_duals, again(more).tokens_per_s - now)
    for link in (*LINKS, WEIGHT_FILE):
        faster = machine.with_faster_link(link, GIGA)
        gain = solution.gain_per_gb_per_s.get(link, 0.0)
        yield OneMore(f"GB/s of {link}", gain, again(faster).tokens_per_s - now)
