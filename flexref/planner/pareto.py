"""Throughput against the latency of a block: the best policy under every bound between the shortest and the fastest."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from flexref.errors import PolicyError
from flexref.machine.machine import Machine
from flexref.planner.candidates import Candidate, SearchProblem, questions
from flexref.planner.plan_request import PlanRequest
from flexref.planner.ranking import NO_ROUNDING, propose, simulated, tokens_per_s

POINTS = 8
"""Bounds on the latency of a block between the least that is possible and that of the best throughput."""

FIRST_MARGIN = 0.01
"""So much wider than the shortest block is the tightest bound."""


def pareto(
    model: str, machine: Machine, wanted: PlanRequest, widest: Candidate | None = None
) -> list[tuple[float, Candidate]]:
    """(bound on the latency of a block in seconds, the best candidate under it), from the tightest bound that can be
    kept to the one that binds no more, whose candidate is `widest`, if `plan` has found it already.

    Whatever is simulated for one bound counts for all that it keeps. Raises what `plan` raises.
    """
    machine = wanted.machine(machine)
    fewest = replace(wanted, rows_per_group=wanted.rows_per_group or 1, groups=wanted.groups or 1)
    seen = SimulatedCandidates(list(questions(model, machine, wanted)))
    last = widest or seen.best(seen.questions)
    shortest = seen.best(list(questions(model, machine, fewest)))
    seen.candidates += [last, shortest]
    longest_s, shortest_s = block_s(last), block_s(shortest)
    ratio = max(longest_s / shortest_s, 1.0)
    bounds = [
        min(shortest_s * ratio ** (number / (POINTS - 1)) * (1 + FIRST_MARGIN), longest_s)
        for number in range(POINTS - 1)
    ]
    for bound_s in reversed(bounds):
        seen.look(bound_s)
    points = [(bound_s, best) for bound_s in bounds if (best := seen.within(bound_s)) is not None]
    return [*points, (longest_s, last)]


@dataclass
class SimulatedCandidates:
    """The ways of storing things, and all candidates that were simulated, whichever bound they were for."""

    questions: Sequence[SearchProblem]
    candidates: list[Candidate] = field(default_factory=list)

    def best(self, asked: Sequence[SearchProblem]) -> Candidate:
        """The best candidate; raises why there is none."""
        proposals = [propose(question) for question in asked]
        found = [candidate for candidate in simulated(proposals).values() if candidate.prediction is not None]
        if not found:
            raise next((each.failure for each in proposals if each.failure is not None), PolicyError(NO_ROUNDING))
        return max(found, key=tokens_per_s)

    def look(self, max_block_s: float) -> None:
        """Look for candidates that are better under a bound than all that were seen; maybe there are none."""
        best = self.within(max_block_s)
        bounded = (replace(each, limits=replace(each.limits, max_block_s=max_block_s)) for each in self.questions)
        found = simulated([propose(question) for question in bounded], 0.0 if best is None else tokens_per_s(best))
        self.candidates += found.values()

    def within(self, max_block_s: float) -> Candidate | None:
        """The best candidate that was seen and keeps a bound."""
        kept = (each for each in self.candidates if each.prediction is not None and block_s(each) <= max_block_s)
        return max(kept, key=tokens_per_s, default=None)


def block_s(candidate: Candidate) -> float:
    """Predicted seconds that a row is in the block."""
    prediction = candidate.prediction
    assert prediction is not None
    return prediction.block_s
