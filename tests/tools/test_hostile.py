"""The hostile run itself: some cases hold, every one can be repeated, and whatever a command does wrong is caught."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from hostile_run import judging, kinds  # noqa: E402
from hostile_run.running import Runner  # noqa: E402
from hostile_run.shelf import CALL  # noqa: E402
from hostile_run.trial import HUNG, IN, MADE, OUT, Trial  # noqa: E402

PLANTED = """
import ctypes, os, pickle, signal, sys, time
from pathlib import Path

def command():
    how = sys.argv[1]
    if how == "crash":
        os.abort()
    if how == "hang":
        time.sleep(60)
    if how == "raise":
        raise ValueError("a bug")
    if how == "odd code":
        return 3
    if how == "silent":
        return 1
    if how == "talkative":
        sys.stderr.write("one\\ntwo\\nflexref: three\\n")
        return 1
    if how == "leave":
        Path("left.partial").write_text("x")
    if how == "spill":
        Path(os.environ["TMPDIR"], "spill").write_text("x")
    if how == "change":
        Path("../in/given").write_text("other")
    if how == "replace":
        Path("old.h5").unlink()
    if how == "torn":
        Path("plan.json").write_text("{")
    if how == "follow a pickle":
        pickle.loads(CALL)
    if how == "eat":
        pages = int(Path(f"/proc/{os.getppid()}/statm").read_text().split()[1])
        bytearray(pages * os.sysconf("SC_PAGE_SIZE") + (400 << 20))
    if how == "wrong tokens":
        print('{"outputs": [{"token_ids": [1, 2]}]}')
    if how == "wait":
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            sys.stderr.write("flexref: interrupted\\n")
            return 130
    if how == "murmur":
        sys.stderr.write("not even a line")
    if how == "refuse":
        sys.stderr.write("flexref: no\\n")
        return 1
    return 0
""".replace("CALL", repr(CALL + b"."))

CAUGHT = {
    "crash": f"died of signal {int(signal.SIGABRT)}",
    "hang": "hangs",
    "raise": "Traceback",
    "odd code": "exits with 3",
    "silent": "says nothing",
    "talkative": "says beside its complaint: ['one', 'two']",
    "leave": "left in the working folder: ['left.partial']",
    "spill": "left in the temporary folder: ['spill']",
    "change": "an input was changed",
    "replace": "old.h5 is gone",
    "torn": "plan.json was written and is no JSON",
    "follow a pickle": "left beside the folders of the case: ['called']",
    "eat": "MiB of memory",
    "wrong tokens": "wrong tokens: [[1, 2]], not [[1, 3]]",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a case, and a command that does what it is told in reach of Python."""
    for name in MADE:
        (tmp_path / "case" / name).mkdir(parents=True)
    (tmp_path / "case" / IN / "given").write_text("given")
    (tmp_path / "case" / OUT / "old.h5").write_text("older")
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "case"


def judged(trial: Trial, limit_s: float = 20.0) -> list[str]:
    before = judging.Before(judging.seen(trial.folder / IN), judging.seen(trial.folder / OUT), {})
    ran = Runner(("planted", "command"), limit_s).run(trial)
    # What this process holds counts as its children's, copies or not, and after a thousand tests it is much.
    return judging.faults(trial, ran, before, psutil.Process().memory_info().rss + (300 << 20))


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("how", CAUGHT)
def test_what_a_command_does_wrong_is_caught(place: Path, how: str, fresh: bool) -> None:
    trial = Trial([[how]], place, fresh=fresh, outputs=frozenset({"plan.json"}), expected=None)
    if how == "wrong tokens":
        trial.expected = [[1, 3]]
    if how == "eat":  # what a forked process has from this one counts too, and may be much
        trial.limits = {"RLIMIT_AS": 1 << 40}
    faults = judged(trial, limit_s=1.0 if how == "hang" else 20.0)
    assert [fault for fault in faults if CAUGHT[how] in fault], faults


@pytest.mark.parametrize("fresh", [False, True])
def test_what_holds_is_not_complained_of(place: Path, fresh: bool) -> None:
    assert judged(Trial([["do nothing"], ["refuse"]], place, fresh=fresh)) == []
    for number in (signal.SIGINT, signal.SIGKILL):
        ended = Trial([["wait"]], place, fresh=fresh, signals=(number,))
        ended.meddling = [(0.3, lambda process, number=number: os.kill(process, number))]  # type: ignore[misc]
        assert judged(ended) == []


def test_a_signal_that_nobody_sent_is_a_fault(place: Path) -> None:
    ended = Trial([["wait"]], place)
    ended.meddling = [(0.1, lambda process: os.kill(process, signal.SIGKILL))]
    assert judged(ended) == [f"wait died of signal {int(signal.SIGKILL)}"]


@pytest.mark.parametrize("stderr", ["full", "gone"])
def test_a_copy_ends_where_its_last_words_cannot_be_written(place: Path, stderr: str) -> None:
    trial = Trial([["murmur"]], place)
    trial.stderr = stderr
    (ran,) = Runner(("planted", "command"), 20.0).run(trial)
    assert ran.code == 120


def test_a_command_that_does_not_end_is_ended(place: Path) -> None:
    (ran,) = Runner(("planted", "command"), 0.3).run(Trial([["hang"]], place))
    assert ran.code == HUNG


def test_any_hundred_cases_hold_every_kind_as_often_as_its_share_says() -> None:
    shares = {name: kind.share for name, kind in kinds.KINDS.items()}
    assert Counter(kinds.kind_of(number) for number in range(1000, 1100)) == shares
    some = list(islice(kinds.numbers(frozenset({"signal"})), 7))
    assert {kinds.kind_of(number) for number in some} == {"signal"}


def hostile(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "hostile"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_forty_cases_hold_and_the_end_says_figures() -> None:
    done = hostile("--cases", "40", "--jobs", "2", "--seed", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^all +40 ", done.stdout, re.MULTILINE)
    assert re.search(r"40 cases of seed 3 in \d+ s: no failures", done.stdout)


def test_a_case_is_shown_alone() -> None:
    done = hostile("--case", "18", "--seed", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"case 18 ({kinds.kind_of(18)}): tools/hostile --seed 5 --case 18" in done.stdout
    assert "exit code" in done.stdout
