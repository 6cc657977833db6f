"""Plans: for a model, a machine and a wish the best policy, what it will take, and what binds it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from flexref.engine.candidates import NO_ROUNDING, Candidate, Question, Wanted, propose, questions
from flexref.engine.trace import Trace
from flexref.errors import CapacityError, PolicyError
from flexref.planner.lp import Solution, solve
from flexref.planner.machine import LINKS, TIERS, WEIGHT_FILE, Machine

__all__ = ["Candidate", "OneMore", "Plan", "Wanted", "pareto", "plan"]

GIB, GIGA = 1 << 30, 1e9

RIVAL_SHARE = 0.7
"""A candidate is simulated if the linear program gives it so much of the best one's tokens per second."""

PARETO_POINTS = 8
"""Bounds on the latency of a block between the least that is possible and that of the best throughput."""

FIRST_MARGIN = 0.01
"""So much wider than the shortest block is the tightest bound."""


@dataclass(frozen=True, slots=True)
class OneMore:
    """Tokens per second that one more of something brings with the same rows and groups.

    `from_duals`: what the linear program's duals say of a little more; `solved_again`: what one whole unit brings.
    """

    what: str
    from_duals: float
    solved_again: float

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer: the best candidate, what binds it, what more of anything would bring, and all candidates."""

    model: str
    machine: str
    wanted: Wanted
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
            "wanted": asdict(self.wanted),
            "searched": dict(self.searched),
        }


def plan(model: str, machine: Machine, wanted: Wanted, *, trace: Trace | None = None) -> Plan:
    """The best policy for `model` on `machine`, of all the ways of storing things that are allowed.

    Every candidate has an estimate; those that come near the best are simulated. `trace` is given the simulation of the
    best one's first block. Raises `CapacityError` (or `PolicyError`, for a bound on latency or disk writes) if no
    candidate fits, `PromptError` if the model has too few positions, and what `layouts` raises.
    """
    machine = wanted.machine(machine)
    proposals = [propose(question) for question in questions(model, machine, wanted)]
    candidates = [proposal.estimated() for proposal in proposals]
    likely = max(map(_tokens_per_s, candidates), default=0.0)
    for place, proposal in enumerate(proposals):
        if _tokens_per_s(candidates[place]) >= RIVAL_SHARE * likely > 0:
            candidates[place] = proposal.simulated()
    best_place = _best(candidates)
    while (told := candidates[best_place].prediction) is not None and not told.simulated:
        candidates[best_place] = proposals[best_place].simulated()  # whose rivals turned out to be worse than it
        best_place = _best(candidates)
    best, question = candidates[best_place], proposals[best_place].question
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


def _tokens_per_s(candidate: Candidate) -> float:
    """What is predicted of it, by whichever means; 0 where nothing fits."""
    return 0.0 if candidate.prediction is None else candidate.prediction.tokens_per_s


def _best(candidates: Sequence[Candidate]) -> int:
    """The place of the candidate of the most tokens per second."""
    return max(range(len(candidates)), key=lambda place: _tokens_per_s(candidates[place]))


def _missing_bytes(failure: CapacityError | PolicyError) -> float:
    """By how much a tier is too small; a bound that cannot be kept comes after all that do not fit."""
    return failure.needed_bytes - failure.free_bytes if isinstance(failure, CapacityError) else float("inf")


def _binding(best: Candidate, machine: Machine) -> tuple[str, ...]:
    """What binds the best; a disk that it leaves alone does not, though it was found by looking without one."""
    assert best.solution is not None
    assert best.prediction is not None
    left_alone = machine.capacity_bytes["disk"] and not best.prediction.peak_bytes["disk"]
    return tuple(name for name in best.solution.binding if not (left_alone and name == "disk memory"))


def pareto(model: str, machine: Machine, wanted: Wanted) -> list[tuple[float, Candidate]]:
    """(bound on the latency of a block in seconds, the best candidate under it), from the tightest bound that can be
    kept to the one that binds no more. Candidates are compared by their estimates, and the best is simulated.

    Raises what `plan` raises.
    """
    machine = wanted.machine(machine)
    widest = _likeliest(model, machine, wanted)
    tightest = _likeliest(model, machine, replace(wanted, rows_per_group=1, groups=1))
    longest_s, shortest_s = (_block_s(candidate) for candidate in (widest, tightest))
    ratio = max(longest_s / shortest_s, 1.0)
    points: list[tuple[float, Candidate]] = []
    for number in range(PARETO_POINTS - 1):
        bound_s = shortest_s * ratio ** (number / (PARETO_POINTS - 1)) * (1 + FIRST_MARGIN)
        try:
            points.append((bound_s, _likeliest(model, machine, replace(wanted, max_latency_s=bound_s))))
        except (CapacityError, PolicyError):
            continue  # nothing fits under this bound; the next one is wider
    return [*points, (longest_s, widest)]


def _likeliest(model: str, machine: Machine, wanted: Wanted) -> Candidate:
    """The candidate of the best estimate, simulated; raises why there is none."""
    proposals = [propose(question) for question in questions(model, machine, wanted)]
    proposals.sort(key=lambda proposal: proposal.estimate_tokens_per_s, reverse=True)
    for proposal in proposals:
        found = proposal.simulated()
        if found.prediction is not None:
            return found
    raise proposals[0].failure or PolicyError("no way of storing things keeps the bounds")


def _block_s(candidate: Candidate) -> float:
    prediction = candidate.prediction
    assert prediction is not None
    return (prediction.prefill_s + prediction.decode_s) / prediction.blocks


def _one_more(question: Question, solution: Solution) -> Iterator[OneMore]:
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
