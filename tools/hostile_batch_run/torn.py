"""Files of a killed job that lose their last bytes, as many as any power cut takes, before it goes on."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

from hostile_run.trial import OUT

from hostile_batch_run.plan import SYNCS, WRITES, drawn_kill
from hostile_batch_run.verdict import Verdict
from hostile_batch_run.work import ANSWERS, FILES, JOURNAL, KILLED, Work, complaints, results

LEAST_RECORDS = 8
"""A kill is drawn until the journal has so many, and the output an answer."""


def last_record(path: Path) -> int:
    """Bytes of the last line of a file, which may lack its end."""
    data = path.read_bytes() if path.exists() else b""
    return len(data) - (data[:-1].rfind(b"\n") + 1)


def killed_job(work: Work, draw: Random, counts: dict[str, int]) -> Path:
    """A job that was killed when it had answers in its files."""
    while True:
        folder = work.folder("killed")
        ran = work.run(folder, drawn_kill(draw, {family: counts[family] for family in (WRITES, SYNCS)}))
        journal, out = (folder / OUT / name for name in (JOURNAL, ANSWERS))
        has_answers = ran.code == KILLED and journal.exists() and out.exists() and out.stat().st_size
        if has_answers and journal.read_bytes().count(b"\n") >= LEAST_RECORDS:
            return folder


def torn_cases(work: Work, jobs: int, every: int, seed: int) -> Iterator[Verdict]:
    """Every file of some killed jobs, cut by 1, 1 + `every` ... bytes up to its last record, and all three at once."""
    draw = Random(seed)
    whole = work.folder("whole")
    ran = work.run(whole)
    faults = list(complaints(ran, may_refuse=False))
    if faults:
        yield Verdict("undisturbed", "nothing", "failed", faults)
        return
    for job in range(jobs):
        folder = killed_job(work, draw, work.counts(whole))
        ends = {name: last_record(folder / OUT / name) for name in FILES}
        for name in FILES:
            for cut in range(1, ends[name] + 1, every):
                yield _case(work, whole, folder, f"job {job}", {name: cut})
        for _ in range(-(-20 // every)):
            yield _case(work, whole, folder, f"job {job}", {name: draw.randint(0, ends[name]) for name in FILES})


def _case(work: Work, whole: Path, killed: Path, name: str, cuts: dict[str, int]) -> Verdict:
    folder = work.root / "torn"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(killed, folder)
    for file, cut in cuts.items():
        path = folder / OUT / file
        if cut:
            os.truncate(path, path.stat().st_size - cut)
    faults = list(complaints(work.run(folder), may_refuse=False))
    if not faults and results(folder) != results(whole):
        faults.append("the files differ from those of an undisturbed run")
    said = ", ".join(f"{file} lost {cut} bytes" for file, cut in cuts.items())
    return Verdict(name, said, "failed" if faults else "complete", faults)
