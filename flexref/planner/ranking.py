"""What the search finds for each candidate, and which are simulated: only those that may win; it knows no file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from flexref.errors import CapacityError, PolicyError
from flexref.planner.candidates import Answer, Candidate, SearchProblem
from flexref.planner.fitting import solutions_of
from flexref.planner.program.lp import Solution
from flexref.planner.program.task import Limits

SIMULATED_VISITS = 300
"""A candidate whose passes have at most so many visits has all its solutions simulated; else the first one that keeps
the bounds must do. Simulating a visit takes some tenths of a millisecond."""

UNDERRATED_MOST = 1.05
"""The simulator's tokens per second are taken to be at most so many times the linear program's, which assumes perfect
overlap: for 351 policies of known machines the ratio was 1.000 or less. What cannot win even so is not simulated."""

NARROWING_ROUNDS = 3
"""How often the search is repeated with tighter bounds, where the simulator found that its policies exceed them."""

NO_ROUNDING = "its shares fit, but no rounding of them to whole tensors does: a little more of any tier would help"


@dataclass(frozen=True, slots=True)
class Proposal:
    """What the search found for one candidate: with all tiers and, as a second question, without the disk.

    `found`: each question with its solutions, best first. `failure`: why there is none. The second question is needed
    because the linear program overlaps a cache on disk with computation as well as one on the host; the simulator does
    not.
    """

    question: SearchProblem
    found: tuple[tuple[SearchProblem, tuple[Solution, ...]], ...]
    solved: int
    pruned: int
    failure: CapacityError | PolicyError | None

    @property
    def estimate_tokens_per_s(self) -> float:
        """Tokens per second of the best solution by the linear program; 0 if there is none."""
        return max((solution.tokens_per_s for _, some in self.found for solution in some), default=0.0)

    def estimated(self) -> Candidate:
        """A candidate of the first solution that can be rounded to whole tensors, with the linear program's figures."""
        for question, solutions in self.found:
            for solution in solutions:
                fits = question.fitted(solution)
                if fits is not None:
                    return question.candidate((fits[0], question.estimate(*fits), fits[1]), None)
        return self._nothing()

    def simulated(self, least: float = 0.0) -> Candidate:
        """The best solution by the simulator. Those that cannot exceed `least` tokens per second are left out."""
        best: Answer | None = None
        for question, solutions in self.found:
            for answer in _simulated(question, solutions, least if best is None else best[1].tokens_per_s):
                if best is None or answer[1].tokens_per_s > best[1].tokens_per_s:
                    best = answer
        return self._nothing() if best is None else self.question.candidate(best, None)

    def _nothing(self) -> Candidate:
        return self.question.candidate(None, NO_ROUNDING if self.failure is None else str(self.failure))


def tokens_per_s(candidate: Candidate) -> float:
    """Its predicted tokens per second, simulated or estimated; 0 where nothing fits."""
    return 0.0 if candidate.prediction is None else candidate.prediction.tokens_per_s


def simulated(proposals: Sequence[Proposal], least: float = 0.0) -> dict[int, Candidate]:
    """Simulated candidates, by the place of their proposal: of those that may have the most tokens per second, and more
    than `least`."""
    candidates: dict[int, Candidate] = {}
    most = least
    for place in sorted(range(len(proposals)), key=lambda at: -proposals[at].estimate_tokens_per_s):
        if proposals[place].estimate_tokens_per_s * UNDERRATED_MOST > most:
            candidates[place] = proposals[place].simulated(least)
            most = max(most, tokens_per_s(candidates[place]))
    return candidates


def can_win(solution: Solution, tokens_per_s: float) -> bool:
    """Whether a simulation of the solution may find more than so many tokens per second."""
    return solution.tokens_per_s * UNDERRATED_MOST > tokens_per_s


def _simulated(question: SearchProblem, solutions: tuple[Solution, ...], tokens_per_s: float) -> Iterator[Answer]:
    """Simulate the solutions that can be rounded and may exceed `tokens_per_s`; where that is slow, the first one only.

    Where none keeps the bounds by the simulator, search again within tighter bounds.
    """
    limits = question.limits
    for _ in range(NARROWING_ROUNDS):
        found, narrowed = False, limits
        for solution in solutions:
            if not can_win(solution, tokens_per_s):
                continue
            answer, narrowed = question.simulated(solution, limits)
            if answer is not None:
                found = True
                yield answer
            slow = solution.groups * len(question.situation.task.stage_bytes) > SIMULATED_VISITS
            if narrowed != limits or (found and slow):
                break
        if found or narrowed == limits:
            return
        limits = narrowed
        solutions = _solutions_within(question, limits)


def _solutions_within(question: SearchProblem, limits: Limits) -> tuple[Solution, ...]:
    """The solutions within tightened limits; none if there are none."""
    try:
        return tuple(solutions_of(question.situation, limits)[0])
    except (CapacityError, PolicyError):
        return ()


def propose(question: SearchProblem) -> Proposal:
    """Search with and without the disk; an error is kept as the proposal's `failure`, not raised."""
    situation = question.situation
    found: list[tuple[SearchProblem, tuple[Solution, ...]]] = []
    solved = pruned = 0
    failure: CapacityError | PolicyError | None = None
    for each in (question, replace(question, situation=situation.without_disk())):
        try:
            solutions, answer = solutions_of(each.situation, each.limits)
        except (CapacityError, PolicyError) as error:
            failure = failure or error
            continue
        found.append((each, tuple(solutions)))
        solved, pruned = solved + answer.solved, pruned + answer.pruned
        if not any(solution.held_bytes["disk"] for solution in solutions):
            break
    return Proposal(question, tuple(found), solved, pruned, None if found else failure)
