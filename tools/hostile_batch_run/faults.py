"""Jobs that the operating system lets down at one call: each ends well, or with one line, and then goes on."""

from collections.abc import Iterator
from random import Random

from hostile_batch_run.plan import BUG, Plan, drawn_fault, drawn_kill
from hostile_batch_run.verdict import Verdict
from hostile_batch_run.work import KILLED, Work, complaints, results

RESUMED_SHARE = 0.4
"""Of the cases so many let down a run that goes on after a kill."""


SHOWN_LETTERS = 400
"""Of what a run says."""


class Faults:
    """Cases by number: what an undisturbed run calls is known from one, so that any call of it can be let down."""

    def __init__(self, work: Work, seed: int) -> None:
        self._work, self._seed = work, seed
        whole = work.folder("whole")
        self.said = list(complaints(work.run(whole), may_refuse=False))
        """What is wrong with an undisturbed run."""
        if not self.said:
            self._counts, self._whole = work.counts(whole), results(whole)

    def cases(self, numbers: Iterator[int]) -> Iterator[Verdict]:
        """The verdict of each of them."""
        for number in numbers:
            yield self.case(number)

    def case(self, number: int) -> Verdict:
        """Maybe a kill; then a run that is let down; then one that is not, if that did not end well."""
        work, draw = self._work, Random(f"{self._seed} {number}")
        folder, steps, faults = work.folder(f"case-{number}"), [], list[str]()
        if draw.random() < RESUMED_SHARE:
            kill = drawn_kill(draw, self._counts)
            steps.append(str(kill))
            ran = work.run(folder, kill)
            if ran.code != KILLED:
                faults += complaints(ran, may_refuse=False)
        plan: Plan = drawn_fault(draw, self._counts)
        steps.append(str(plan))
        ran = work.run(folder, plan)
        faults += complaints(ran, may_refuse=True, has_bug=plan.fault == BUG)
        outcome = "complete" if ran.code == 0 else "refused"
        said = ran.stderr.decode(errors="backslashreplace").strip()[-SHOWN_LETTERS:]
        if ran.code != 0:
            after = work.run(folder)
            faults += [f"the run after it: {fault}" for fault in complaints(after, may_refuse=False)]
        if not faults and results(folder) != self._whole:
            faults.append("the files differ from those of an undisturbed run")
        done = "; ".join(steps) + (f" -> {said}" if said else "")
        return Verdict(f"case {number}", done, "failed" if faults else outcome, faults)
