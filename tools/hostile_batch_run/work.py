"""A batch job that is run again and again in folders of its own, and what must come of it; it does no harm itself."""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hostile_run.running import Runner
from hostile_run.trial import HUNG, IN, MADE, OUT, Meddle, Ran, Trial
from lib.mixed_lines import mixed_lines

from hostile_batch_run.child import command
from hostile_batch_run.plan import Plan

COMMAND = (command.__module__, command.__name__)

KILLED = -9

UNHANDLED = re.compile(rb"Traceback|Exception ignored|Exception in thread|Fatal Python error")

ANSWERS, ERRORS, JOURNAL = FILES = ("answers.jsonl", "errors.jsonl", "answers.jsonl.journal")
"""What a job writes."""

LOG, COUNTS = "answered", "counts"

TOOLS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Work:
    """So many mixed lines on the built-in model under some options; `root` is where its folders are made."""

    root: Path
    lines: int
    seed: int
    options: tuple[str, ...]
    max_tokens: int = 16
    prompt_words: int = 40
    limit_s: float = 60.0
    environment: Mapping[str, str] = field(default_factory=dict)

    def folder(self, name: str) -> Path:
        """A new folder with nothing in it but the input."""
        folder = self.root / name
        shutil.rmtree(folder, ignore_errors=True)
        for made in MADE:
            (folder / made).mkdir(parents=True)
        job = mixed_lines(self.lines, self.seed, self.max_tokens, self.prompt_words)
        (folder / IN / "job.jsonl").write_bytes(b"".join(line + b"\n" for line in job))
        return folder

    def run(
        self,
        folder: Path,
        plan: Plan | None = None,
        meddling: tuple[tuple[float, Meddle], ...] = (),
        *,
        fresh: bool = False,
    ) -> Ran:
        """Run the job in a folder, or go on with it there."""
        asked = ["batch", f"../{IN}/job.jsonl", "-o", ANSWERS, "--errors", ERRORS, "--model", "demo", *self.options]
        told = (plan or Plan()).keeping(str(folder / LOG), str(folder / COUNTS)).to_environment()
        told |= {"PYTHONPATH": ":".join([str(TOOLS), *sys.path])} if fresh else {}
        trial = Trial([asked], folder, fresh=fresh, environment={**self.environment, **told})
        trial.meddling = list(meddling)
        (ran,) = Runner(COMMAND, self.limit_s).run(trial)
        return ran

    def counts(self, folder: Path) -> dict[str, int]:
        """How many calls of each family the latest run in the folder made."""
        found: dict[str, int] = json.loads((folder / COUNTS).read_text())
        return found


def results(folder: Path) -> tuple[bytes | None, bytes | None]:
    """(answers, errors) as they lie there; None for a file that is not there."""
    answers, errors = (folder / OUT / name for name in (ANSWERS, ERRORS))
    return tuple(path.read_bytes() if path.exists() else None for path in (answers, errors))  # type: ignore[return-value]


def answered(folder: Path) -> list[int]:
    """The lines that were answered, of all runs in the folder, in their order."""
    path = folder / LOG
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


IN_A_LANE = "_on_board"
"""Stands in a traceback of a lane: what it met is to end the job in one line."""


def complaints(ran: Ran, *, may_refuse: bool, has_bug: bool = False) -> Iterator[str]:
    """What is wrong with how a run ended: it must end well or, if it `may_refuse`, with one line that says why.

    One that `has_bug` may end with a traceback and say that it has, but not where a lane met it.
    """
    shown = ran.stderr.decode(errors="backslashreplace")
    is_told = ran.code == os.EX_SOFTWARE and shown.splitlines()[-1].startswith("flexref: this is a bug")
    if has_bug and is_told and IN_A_LANE not in shown:
        return
    if ran.code == HUNG:
        yield f"it hung: {shown[-300:]}"
    elif ran.code not in ((0, 1) if may_refuse else (0,)):
        yield f"it ended with {ran.code}: {shown[-600:]}"
    elif ran.code == 1:
        said = [line for line in shown.splitlines() if line.startswith("flexref: ")]
        if len(said) != 1 or shown.splitlines()[-1] != said[0]:
            yield f"its complaint is not one line: {shown[-600:]}"
    match = UNHANDLED.search(ran.stderr)
    if match:
        yield f"it shows {match[0].decode()!r}: {shown[-1500:]}"
