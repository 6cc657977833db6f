"""Runs many cases, several at a time, and gathers verdicts; a lane that dies is a failed case, and another goes on."""

import json
import os
import pkgutil
import select
import shutil
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import flexref
from hostile_run import judging
from hostile_run.array_files import write_theirs
from hostile_run.kinds import kind_of, make
from hostile_run.running import Runner
from hostile_run.shelf import Shelf, fill_shelf
from hostile_run.trial import CACHE, IN, MADE, OUT, Judged, Ran, Trial
from hostile_run.weight_files import expectations

NOT_IMPORTED = ("flexref.harness", "flexref.testing", "flexref.cli.lm_eval")
"""Parts that need what may not be installed."""

COMMAND = ("flexref.__main__", "main")

SHOWN_BYTES = 1200
"""Of a complaint that a failed case tells."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for every case of a run."""

    seed: int
    folder: Path
    limit_s: float
    most_bytes: int


def import_everything() -> None:
    """Import all of flexref, so that the copies of this process need not."""
    for module in pkgutil.walk_packages(flexref.__path__, "flexref."):
        if not module.name.startswith(NOT_IMPORTED):
            import_module(module.name)


def prepare(settings: Settings) -> Shelf:
    """Make the shelf, and let the command say what the right tokens are."""
    place = settings.folder / "shelf"
    place.mkdir()
    shelf = fill_shelf(place)
    place = settings.folder / "reference"
    for name in MADE:
        (place / name).mkdir(parents=True)
    runner, expected = Runner(COMMAND, settings.limit_s), {}
    for name, arguments in expectations(shelf).items():
        (ran,) = runner.run(Trial([arguments], place))
        expected[name] = judging.tokens_of(ran.stdout)
        if expected[name] is None:
            raise RuntimeError(f"{' '.join(arguments)} gave no tokens: {ran.stderr.decode(errors='replace')}")
    arguments = ["logits", "--model", shelf.path("half.h5"), "--input", shelf.path("ids.jsonl"), "--output"]
    runner.run(Trial([[*arguments, shelf.path("reference.npz")]], place))
    write_theirs(shelf.folder / "reference.npz", shelf.folder / "theirs.npz")
    shutil.rmtree(place)
    (shelf.folder / "expected.json").write_text(json.dumps(expected))
    return shelf


def run_case(settings: Settings, shelf: Shelf, number: int, *, keep: bool = False) -> tuple[Judged, list[Ran]]:
    """One case from its making to its verdict; its folder goes away unless it is to be kept."""
    folder = settings.folder / f"case-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    trial = make(settings.seed, number, shelf, folder)
    shutil.copytree(shelf.folder / CACHE, folder / CACHE, dirs_exist_ok=True)
    before = judging.Before(judging.seen(folder / IN), judging.seen(folder / OUT), judging.stamps(shelf.files()))
    ran = Runner(COMMAND, settings.limit_s).run(trial)
    found = judging.faults(trial, ran, before, settings.most_bytes)
    outcome = "failed" if found else judging.outcome_of(ran, trial)
    if not keep:
        shutil.rmtree(folder)
    commands = [command.arguments for command in ran]
    complaint = ran[-1].stderr[-SHOWN_BYTES:].decode(errors="backslashreplace") if found else ""
    return Judged(number, kind_of(number), outcome, found, commands, complaint), ran


def run_cases(settings: Settings, shelf: Shelf, cases: list[int], jobs: int) -> Iterator[Judged]:
    """The verdicts of `cases`, as they come, from `jobs` lanes."""
    lanes = [Lane(settings, shelf, cases[first::jobs]) for first in range(min(jobs, len(cases)))]
    while lanes:
        ready, _, _ = select.select(lanes, [], [])
        for lane in ready:
            judged = lane.next()
            if judged is None:
                lanes.remove(lane)
            else:
                yield judged


class Lane:
    """A process that runs some cases one after another; one that dies is started again."""

    def __init__(self, settings: Settings, shelf: Shelf, cases: list[int]) -> None:
        self._settings, self._shelf, self._left = settings, shelf, list(cases)
        self._start()

    def fileno(self) -> int:
        """For `select`."""
        return self._lines.fileno()

    def _start(self) -> None:
        reader, writer = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self._process = os.fork()
        if self._process == 0:
            os.close(reader)
            _run_lane(self._settings, self._shelf, self._left, writer)
        os.close(writer)
        self._lines = os.fdopen(reader, "rb", buffering=0)

    def next(self) -> Judged | None:
        """The next verdict; None when all are there."""
        line = b""
        while not line.endswith(b"\n"):  # a lane writes whole lines or dies
            piece = self._lines.read(1)
            if not piece:
                return self._died()
            line += piece
        if line == b"\n":
            os.waitpid(self._process, 0)
            return None
        judged = Judged(**json.loads(line))
        self._left.remove(judged.number)
        return judged

    def _died(self) -> Judged:
        _, status = os.waitpid(self._process, 0)
        number = self._left.pop(0)
        self._lines.close()
        self._start()
        fault = f"the process that runs the cases died of it ({os.waitstatus_to_exitcode(status)})"
        return Judged(number, kind_of(number), "failed", [fault], [])


def _run_lane(settings: Settings, shelf: Shelf, cases: list[int], writer: int) -> None:
    """Run cases and write verdicts, one a line: it never returns."""
    code = 1
    try:
        for number in cases:
            judged, _ = run_case(settings, shelf, number)
            os.write(writer, json.dumps(asdict(judged)).encode() + b"\n")
        os.write(writer, b"\n")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
