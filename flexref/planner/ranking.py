"""What is proposed for each way of storing things: searched for, and simulated where that can change the answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from flexref.errors import CapacityError, PolicyError
from flexref.planner.candidates import Answer, Candidate, Question
from flexref.planner.fitting import solutions_of
from flexref.planner.program.lp import Solution
from flexref.planner.program.task import Limits

SIMULATED_VISITS = 300
"""Visits of a pass up to which all solutions of a candidate are simulated, and not its first alone: a visit takes some
tenths of a millisecond."""

UNDERRATED_MOST = 1.05
"""The simulator finds at most so many times what the linear program does, which hides all that can be hidden: of 351
policies of known machines it found 1.000 times as much or less. What cannot win even so is not simulated."""

NARROWING_ROUNDS = 3
"""How often is searched within bounds that were tightened by what the simulator found beyond them."""

NO_ROUNDING = "its shares fit, but no rounding of them to whole tensors does: a little more of any tier would help"


@dataclass(frozen=True, slots=True)
class Proposal:
    """What the search found for one way of storing things, with all tiers and, beside that, without the disk.

    `found`: questions with their solutions, the best first. `failure`: why there is none. To the linear program a cache
    that comes from disk hides behind computation as well as one on the host does; to the simulator it does not.
    """

    question: Question
    found: tuple[tuple[Question, tuple[Solution, ...]], ...]
    solved: int
    pruned: int
    failure: CapacityError | PolicyError | None

    @property
    def estimate_tokens_per_s(self) -> float:
        """The best solution's, by the linear program; 0 if there is none."""
        return max((solution.tokens_per_s for _, some in self.found for solution in some), default=0.0)

    def estimated(self) -> Candidate:
        """The first solution that can be rounded, as the linear program sees it."""
        for question, solutions in self.found:
            for solution in solutions:
                fits = question.fitted(solution)
                if fits is not None:
                    return question.candidate((fits[0], question.estimate(*fits), fits[1]), None)
        return self._nothing()

    def simulated(self, least: float = 0.0) -> Candidate:
        """The best of the solutions by the simulator, of those that may have more than `least` tokens per second."""
        best: Answer | None = None
        for question, solutions in self.found:
            for answer in _simulated(question, solutions, least if best is None else best[1].tokens_per_s):
                if best is None or answer[1].tokens_per_s > best[1].tokens_per_s:
                    best = answer
        return self._nothing() if best is None else self.question.candidate(best, None)

    def _nothing(self) -> Candidate:
        return self.question.candidate(None, NO_ROUNDING if self.failure is None else str(self.failure))


def tokens_per_s(candidate: Candidate) -> float:
    """What is predicted of it, by whichever means; 0 where nothing fits."""
    return 0.0 if candidate.prediction is None else candidate.prediction.tokens_per_s


def simulated(proposals: Sequence[Proposal], least: float = 0.0) -> dict[int, Candidate]:
    """By place the candidates of all proposals that may have the most tokens per second, if more than `least`."""
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


def _simulated(question: Question, solutions: tuple[Solution, ...], tokens_per_s: float) -> Iterator[Answer]:
    """The solutions that can be rounded and may find more than `tokens_per_s`, simulated; where that takes long the
    first of them. Where none keeps the bounds, what is found within tighter ones.
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


def _solutions_within(question: Question, limits: Limits) -> tuple[Solution, ...]:
    """The solutions within tightened limits; none if there are none."""
    try:
        return tuple(solutions_of(question.situation, limits)[0])
    except (CapacityError, PolicyError):
        return ()


def propose(question: Question) -> Proposal:
    """Search; what does not fit is kept as the proposal's failure."""
    situation = question.situation
    found: list[tuple[Question, tuple[Solution, ...]]] = []
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
