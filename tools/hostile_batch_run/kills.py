"""A job that is killed again and again, at any moment and in any call, and goes on each time; it tells what held."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

from hostile_batch_run.plan import Plan, drawn_kill
from hostile_batch_run.verdict import Verdict
from hostile_batch_run.work import KILLED, Work, answered, complaints, results

FRESH_SHARE = 0.1
"""Of the runs so many are interpreters of their own; the others are copies of this process, which begin at once."""


class Kills:
    """Kills runs of `work` until there were so many; a job that has come to its end is followed by another one.

    `rows`: places of its block. Of the lines that a run answers, no more may have been answered before.
    """

    def __init__(self, work: Work, kills: int, rows: int, seed: int) -> None:
        self._work, self._kills, self._rows, self._draw = work, kills, rows, Random(seed)
        self.killed = self.runs = self.twice = 0

    def cases(self) -> Iterator[Verdict]:
        """One verdict per job; none after one that failed."""
        number, failed = 0, False
        while self.killed < self._kills and not failed:
            verdict = self._case(replace(self._work, seed=self._work.seed + number), number)
            number, failed = number + 1, bool(verdict.faults)
            yield verdict

    def _case(self, work: Work, number: int) -> Verdict:
        whole = work.folder(f"whole-{number}")
        ran = work.run(whole)
        faults = [f"undisturbed: {fault}" for fault in complaints(ran, may_refuse=False)]
        if faults:
            return Verdict(f"job {number}", "nothing", "failed", faults)
        counts, again = work.counts(whole), work.run(whole)
        # What it takes to begin, and on average a kill's share of the work.
        life_s = again.seconds + 2 * (ran.seconds - again.seconds) / self._kills
        few = {
            family: begun + 1 + round(2 * max(0, counts[family] - begun) / self._kills)
            for family, begun in work.counts(whole).items()
        }
        folder, killed, most = work.folder(f"killed-{number}"), 0, 0
        while not faults:
            done_before = len(answered(folder))
            ended = self.killed == self._kills
            code, faults = self._life(work, folder, None if ended else few, life_s)
            self.runs += 1
            most = max(most, _again(folder, done_before))
            if code == 0:
                break
            self.killed += 1
            killed += 1
        if not faults and results(folder) != results(whole):
            faults.append(_differ(folder, whole))
        twice = sum(count - 1 for count in Counter(answered(folder)).values())
        self.twice += twice
        if most > self._rows:
            faults.append(f"a run answered {most} lines that were answered before, of {self._rows} rows in flight")
        said = f"{killed} kills; {twice} lines answered twice, {most} at most after one kill"
        return Verdict(f"job {number}", said, "failed" if faults else "complete", faults)

    def _life(self, work: Work, folder: Path, few: dict[str, int] | None, life_s: float) -> tuple[int, list[str]]:
        """(exit code, what is wrong) of one run, which is killed unless `few` is None."""
        draw, plan, meddling = self._draw, Plan(), ()
        if few is not None and draw.random() < 0.5:
            plan = drawn_kill(draw, few)
        elif few is not None:
            meddling = ((draw.uniform(0, life_s), _kill),)
        ran = work.run(folder, plan, meddling, fresh=draw.random() < FRESH_SHARE)
        if ran.code == KILLED and few is not None:
            return ran.code, []
        return ran.code, list(complaints(ran, may_refuse=False))


def _kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)


def _again(folder: Path, before: int) -> int:
    """Lines that the latest run answered and an earlier one, too."""
    lines = answered(folder)
    return len({*lines[:before]} & {*lines[before:]})


def _differ(found: Path, whole: Path) -> str:
    lengths = [[None if data is None else len(data) for data in results(folder)] for folder in (found, whole)]
    return f"the files differ from those of an undisturbed run: {lengths[0]} bytes, not {lengths[1]}; see {found}"
