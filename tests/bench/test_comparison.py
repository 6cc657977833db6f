"""Two files of benchmarks: which are joined, and what Welch's test says of their runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.bench.baseline import Baseline
from flexref.bench.comparison import compare
from flexref.bench.suites import Arguments
from flexref.bench.welch import p_value
from flexref.cli.main import COMMANDS, command_group, run
from flexref.errors import BaselineError

MACHINE = {"cpu": "one", "cpu_cores": 2, "memory_bytes": 1 << 30, "gpu": []}
SAMPLES = st.lists(st.floats(0.5, 2), min_size=2, max_size=8)


def line(speeds: list[float], rows: int = 4, repeat: int | str = 1, **changes: Any) -> dict[str, Any]:
    """What `flexref bench --json` prints of runs of so many tokens/s, as far as it is read."""
    arguments = Arguments("tiny", rows=rows, prompt_len=12, gen_len=4, repeat=repeat).to_json()
    runs = [{"prefill_s": 1 / s, "decode_s": 3 / s, "decode_step_s": None, "tokens_per_s": s} for s in speeds]
    about = {"model": "tiny", "weights_scheme": "none", "weights_dtype": "float16", "cut_short": None}
    settings: dict[str, Any] = {"machine": MACHINE, "versions": {"flexref": "1"}, "policy": {"rows_per_group": 4}}
    return {"arguments": arguments, **about, **settings, "runs": runs, **changes}


def kept(*lines: dict[str, Any]) -> list[Baseline]:
    return [
        Baseline(f"line {number}", Arguments.from_mapping(one["arguments"], "here"), one)
        for number, one in enumerate(lines, start=1)
    ]


@given(SAMPLES, SAMPLES)
def test_the_chance_is_that_of_scipys_welch_and_the_verdict_follows_it(before: list[float], now: list[float]) -> None:
    from scipy.stats import ttest_ind  # a second, which whoever collects the tests need not wait for

    found = p_value(before, now)
    assert found is not None
    if len(set(before)) > 1 and len(set(now)) > 1:
        needed = ttest_ind(before, now, equal_var=False).pvalue
        assert found == pytest.approx(needed, rel=1e-6, abs=1e-12)
    (joined,) = compare(kept(line(before)), kept(line(now))).joined
    for change in joined.changes:
        assert (change.verdict == "not told apart") == (change.p_value is None or change.p_value >= 0.05)
        if change.verdict != "not told apart":
            more = change.now > change.before
            assert (change.verdict == "faster") == (more if change.figure == "tokens_per_s" else not more)
    back = compare(kept(line(now)), kept(line(before))).joined[0].verdict
    assert {joined.verdict, back} in ({"faster", "slower"}, {"not told apart"})


def test_one_run_and_runs_without_any_spread() -> None:
    assert compare(kept(line([1.0])), kept(line([9.0, 9.1]))).joined[0].verdict == "not told apart"
    assert compare(kept(line([1.0, 1.0])), kept(line([2.0, 2.0]))).joined[0].verdict == "faster"
    assert compare(kept(line([1.0, 1.0])), kept(line([1.0, 1.0]))).joined[0].verdict == "not told apart"


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_the_last_of_equal_jobs_are_joined_and_all_others_are_told(before: list[int], now: list[int]) -> None:
    old, new = ([line([1.0], rows, repeat=n + 1) for n, rows in enumerate(some)] for some in (before, now))
    if not set(before) & set(now):
        with pytest.raises(BaselineError, match=r"^no benchmark is in both: rows was \d in line \d+, is \d in line"):
            compare(kept(*old), kept(*new))
        return
    found = compare(kept(*old), kept(*new))

    def last(rows: int, some: list[int]) -> str:
        return f"line {max(number for number, one in enumerate(some, start=1) if one == rows)}"

    assert {(one.before.where, one.now.where) for one in found.joined} == {
        (last(rows, before), last(rows, now)) for rows in set(before) & set(now)
    }
    assert set(found.only_before) == {last(rows, before) for rows in set(before) - set(now)}
    assert set(found.only_now) == {last(rows, now) for rows in set(now) - set(before)}


def test_other_hardware_and_other_weights_are_not_joined_and_versions_are_told() -> None:
    for change in ({"machine": {**MACHINE, "cpu": "two"}}, {"weights_scheme": "int4"}):
        with pytest.raises(BaselineError, match=r"no benchmark is in both: (machine's cpu|weights-scheme) was"):
            compare(kept(line([1.0])), kept(line([1.0], **change)))
    (joined,) = compare(kept(line([1.0])), kept(line([1.0], versions={"flexref": "2"}))).joined
    assert joined.differs == {"flexref": ("1", "2")}


def test_the_command_prints_verdicts_and_fails_if_asked_to(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fast, slow = tmp_path / "fast.jsonl", tmp_path / "slow.jsonl"
    fast.write_text(json.dumps(line([2.0, 2.1])) + "\n" + json.dumps(line([1.0], 9)) + "\n")
    slow.write_text(json.dumps(line([1.0, 1.1])) + "\n")

    def bench(*arguments: str) -> int:
        return run(command_group(COMMANDS), ["bench", "compare", *arguments])

    assert bench(str(fast), str(slow)) == 0
    shown = capsys.readouterr().out
    assert "slower" in shown
    assert "in one alone" in shown
    assert bench(str(fast), str(slow), "--fail-if-slower", "--json") == 3
    found = json.loads(capsys.readouterr().out)
    assert found["joined"][0]["verdict"] == "slower"
    assert found["only_before"] == [f"{fast}, line 2"]
    assert bench(str(slow), str(fast), "--fail-if-slower") == 0
    assert bench(str(slow), str(tmp_path / "none.json")) == 1
    assert "cannot be read" in capsys.readouterr().err
