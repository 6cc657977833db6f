"""Cases of what happens to a process: signals, full disks, streams that fail, limits, files that change meanwhile."""

import errno
import os
import shutil
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random

from flexref.storage.names import resolve
from hostile_run.judging import READER_GONE
from hostile_run.mutations import changed_bytes
from hostile_run.shelf import Shelf
from hostile_run.trial import IN, OUT, TEMPORARY, Trial
from hostile_run.weight_files import DEVICE, GENERATE, SPREAD, reference

OUTPUTS = frozenset({"out.h5", "plan.json", "trace.json"})

ENVIRONMENTS: tuple[dict[str, str], ...] = (
    {},
    {"PYTHONIOENCODING": "ascii:strict"},
    {"LC_ALL": "C", "PYTHONUTF8": "0"},
    {"COLUMNS": "1"},
)
"""What may make a command print in another way."""

USED_SECONDS = 1.6
"""About as long as the commands below take: signals and changes come within it, or too late now and then."""

NOBODY = 65534


def signals(draw: Random, shelf: Shelf, folder: Path) -> Trial:
    """A command that gets one signal or more at moments that are drawn."""
    (folder / OUT / "old.h5").write_bytes(b"an older file")
    trial = Trial([_work(draw, shelf, folder)], folder, fresh=draw.random() < 0.6, outputs=OUTPUTS | {"old.h5"})
    numbers = draw.choices((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL), (3, 3, 2, 2), k=1)
    numbers *= draw.choice((1, 1, 1, 2, 3, 4))
    moment = draw.uniform(0, USED_SECONDS)
    for number in numbers:
        trial.meddling.append((moment, partial(_send, number)))
        moment += draw.choice((0.0, 0.005, 0.05, 0.3))
    trial.signals = tuple(int(number) for number in numbers)
    return trial


def disks(draw: Random, shelf: Shelf, folder: Path) -> Trial:
    """A command whose disk fills, or fails."""
    trial = Trial([_work(draw, shelf, folder)], folder, fresh=True, outputs=OUTPUTS)
    if shelf.small_disks and (shelf.failing_calls is None or draw.random() < 0.4):
        trial.disk_bytes = draw.choice((4096, 40_960, 100_000, 400_000, 4_000_000, 12_000_000))
        trial.fresh = draw.random() < 0.3
    elif shelf.failing_calls is not None:
        at, what = draw.choice((1, 2, 3, 5, 8, 13, 20, 40, 90)), draw.choice(("ENOSPC", "EIO"))
        trial.environment = {"LD_PRELOAD": str(shelf.failing_calls), "FAIL_AT": str(at), "FAIL_WITH": what}
        if draw.random() < 0.3:
            trial.environment["FAIL_READS"] = draw.choice((".h5", ".jsonl", ".txt", ".json"))
    return trial


def streams(draw: Random, shelf: Shelf, folder: Path) -> Trial:
    """A command whose output or complaints have nowhere to go."""
    inspect = ["inspect", "demo"]
    quick = draw.choice((inspect, [*inspect, "--json"], ["verify", "demo"], ["--help"], ["--version"]))
    command = draw.choice((quick, quick, [], ["generate", "-h"], _work(draw, shelf, folder), ["inspect", "nowhere"]))
    trial = Trial([command], folder, fresh=draw.random() < 0.7, outputs=OUTPUTS)
    trial.stdout = draw.choice(("closed", "full", "gone", "file"))
    trial.stderr = draw.choice(("file", "file", "closed", "full", "gone"))
    if "gone" in (trial.stdout, trial.stderr):
        trial.codes |= {READER_GONE}
    trial.environment = draw.choice(ENVIRONMENTS)
    return trial


def limits(draw: Random, shelf: Shelf, folder: Path) -> Trial:
    """A command that may have few descriptors, threads or bytes."""
    trial = Trial([_work(draw, shelf, folder)], folder, fresh=draw.random() < 0.5, outputs=OUTPUTS)
    what = draw.choice(("RLIMIT_AS", "RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_NPROC"))
    if what == "RLIMIT_AS":
        trial.fresh = True  # a copy of a process has used much of it up already
        trial.limits = {what: draw.randrange(300, 1500) << 20}
    elif what == "RLIMIT_NOFILE":
        trial.limits = {what: draw.choice((12, 16, 20, 24, 32, 40, 64))}
    elif what == "RLIMIT_FSIZE":
        trial.limits = {what: draw.choice((0, 1, 4096, 100_000, 4_000_000))}
    else:
        trial.limits = {what: draw.choice((1, 2, 3, 5))}
        if os.geteuid() == 0:  # the limit is none for root
            trial.user = NOBODY - 1 - draw.randrange(1000)
            for path in (folder, *folder.rglob("*")):
                os.chown(path, trial.user, trial.user, follow_symlinks=False)
    return trial


def changes(draw: Random, shelf: Shelf, folder: Path) -> Trial:
    """A job whose files are written to, cut, replaced or removed while it runs."""
    model = folder / IN / "model.h5"
    shutil.copy(resolve("demo"), model)
    rows = folder / IN / "ids.jsonl"
    shutil.copy(shelf.path("ids.jsonl"), rows)
    job = ["--model", str(model), "--input", str(rows)]
    generate = [*GENERATE, *job, *draw.choice((SPREAD, DEVICE))]
    work = draw.choice((generate, generate, generate, ["convert", str(model), "out.h5"], ["verify", str(model)]))
    trial = Trial([work], folder, fresh=draw.random() < 0.3, outputs=OUTPUTS, changes_inputs=True)
    if work[0] == "generate":
        trial.expected = reference(shelf, "demo")
    what = draw.choice(("overwrite", "overwrite", "cut", "append", "replace", "remove", "touch", "folder"))
    victim = model if draw.random() < 0.85 else rows
    meddle = partial(_change, what, victim, draw.randrange(1 << 30))
    trial.meddling = [(draw.uniform(0, USED_SECONDS if trial.fresh else USED_SECONDS / 4), meddle)]
    return trial


def _work(draw: Random, shelf: Shelf, folder: Path) -> list[str]:
    """A command that works for about a second and writes something."""
    old = draw.choice((["out.h5"], ["old.h5", "--force"])) if (folder / OUT / "old.h5").exists() else ["out.h5"]
    generate = ["generate", "--model", "demo", "--prompt", "One day", "--disk-dir", str(folder / TEMPORARY)]
    plan = ["plan", "--model", "tiny", "--machine", shelf.path("machine.json"), "--prompt-len", "16", "--rows", "8"]
    return draw.choice(
        (
            ["convert", "demo", *old, "--quantize", draw.choice(("int4", "int4-mse", "int8"))],
            ["convert", shelf.path("sharded"), *old, "--quantize", "none"],
            [*generate, *SPREAD, "--max-new-tokens", "40", "--trace", "trace.json"],
            [*generate, *DEVICE, "--max-new-tokens", "40", "--json"],
            [*plan, "-o", "plan.json", "--trace", "trace.json"],
            [
                "eval",
                "--model",
                "demo",
                "--text",
                shelf.path("text.txt"),
                *SPREAD,
                "--disk-dir",
                str(folder / TEMPORARY),
            ],
        )
    )


def _send(number: int, process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


def _change(what: str, victim: Path, seed: int, process: int) -> None:
    """Do to a file what another program might."""
    draw = Random(seed)
    try:
        if what == "overwrite":
            with victim.open("r+b") as file:
                size = victim.stat().st_size
                for _ in range(30):
                    file.seek(draw.randrange(size))
                    file.write(draw.randbytes(500))
        elif what == "cut":
            os.truncate(victim, draw.randrange(victim.stat().st_size))
        elif what == "append":
            with victim.open("ab") as file:
                file.write(b"more")
        elif what == "replace":
            other = victim.with_name("other")
            other.write_bytes(changed_bytes(draw, victim.read_bytes()))
            other.replace(victim)
        elif what == "remove":
            victim.unlink()
        elif what == "touch":
            os.utime(victim)
        else:
            victim.unlink()
            victim.mkdir()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ETXTBSY):
            raise
