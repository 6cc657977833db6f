"""What a mutant that hangs is known by, on a machine as slow and as busy as it may be."""

import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from mutate_operators_run import hanging
from mutate_operators_run.hanging import BUSY_S, SLEEPS, Hanging, Seen

from flexref.testing.conformance.processes import run_apart

SPIN = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass"


def looked(limit_s: float, looks: list[Seen]) -> int | None:
    """At which look the work hangs."""
    waiting = iter(looks)
    hangs = Hanging(limit_s, lambda group: next(waiting))
    return next((number for number in range(len(looks)) if hangs(0) is not None), None)


STRETCHES = st.lists(
    st.tuples(st.integers(1, 2 * SLEEPS), st.sampled_from([0.0, 0.001, 0.02, 1.0]), st.booleans()), max_size=6
)
"""Looks one after the other: how many, what the work takes in each, whether it is seen asleep."""


@given(STRETCHES, st.floats(1, 100))
def test_work_hangs_only_by_what_it_takes_or_by_sleeping_all_the_time(
    stretches: list[tuple[int, float, bool]], limit_s: float
) -> None:
    taken, looks = 0.0, list[Seen]()
    for count, more, asleep in stretches:
        for _ in range(count):
            taken += more
            looks.append(Seen(taken, asleep))
    found = looked(limit_s, looks)
    for number, look in enumerate(looks):
        last = looks[max(0, number - SLEEPS + 1) : number + 1]
        before = looks[number - SLEEPS].taken_s if number >= SLEEPS else 0.0
        slept = len(last) == SLEEPS and all(one.asleep for one in last)
        if look.taken_s > limit_s or (slept and look.taken_s - before <= BUSY_S / 2):
            assert found is not None
            assert found <= number
        if found == number:
            assert look.taken_s > limit_s or (slept and look.taken_s - before <= BUSY_S + 1)
    if found is None:
        assert taken <= limit_s


def test_work_that_waits_for_the_processor_does_not_hang_however_long() -> None:
    assert looked(60.0, [Seen(0.001 * look, asleep=False) for look in range(10_000)]) is None


def test_work_that_takes_what_it_gets_in_small_parts_does_not_hang_though_it_is_seen_asleep() -> None:
    assert looked(60.0, [Seen(0.02 * look, asleep=True) for look in range(1_000)]) is None


def spins(box: object, tell: object, seconds: float) -> str:
    """Takes so many seconds of the processor."""
    exec(SPIN.format(seconds))
    return "spun"


def sleeps(box: object, tell: object, seconds: float) -> str:
    """Takes none."""
    time.sleep(seconds)
    return "slept"


def waits(box: object, tell: object, seconds: float) -> str:
    """Sleeps while a process that it has started takes these seconds, as a compiler."""
    subprocess.run([sys.executable, "-c", SPIN.format(seconds)], check=True)
    return "waited"


def test_work_that_takes_too_much_of_the_processor_hangs() -> None:
    end = run_apart(spins, (1000.0,), math.inf, Hanging(0.5))
    assert (end.kind, end.how) == ("hung", "it took more than 0.5 s of the processor")


def test_what_is_started_counts_like_the_work_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hanging, "SLEEPS", 1)
    assert run_apart(waits, (1.5,), math.inf, Hanging(60.0)).result == "waited"
    assert run_apart(waits, (1000.0,), math.inf, Hanging(0.5)).kind == "hung"


def test_work_that_sleeps_for_ever_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hanging, "SLEEPS", 2)
    end = run_apart(sleeps, (1000.0,), math.inf, Hanging(60.0))
    assert (end.kind, end.how) == ("hung", "all its threads slept, 2 times on end")
    assert run_apart(sleeps, (0.1,), math.inf, Hanging(60.0)).result == "slept"
