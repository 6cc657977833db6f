"""A benchmark beside an earlier one: what is compared, between what it lies, and what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.bench.baseline import Baseline, baseline_of, read_baselines
from flexref.bench.suites import Arguments
from flexref.errors import BaselineError, StorageError

JOB = Arguments("tiny", rows=4, prompt_len=12, gen_len=4)

MACHINE = {"cpu": "one", "cpu_cores": 2, "memory_bytes": 1 << 30, "gpu": [], "link_gb_per_s": None}


def line(steps: Sequence[float], job: Arguments = JOB, **changes: Any) -> dict[str, Any]:
    """What `flexref bench --json` prints of runs whose decode steps took so long, as far as it is read."""
    runs = [
        {"prefill_s": step, "decode_s": 3 * step, "decode_step_s": step, "tokens_per_s": 1 / step} for step in steps
    ]
    return {
        "arguments": job.to_json(),
        "model": "tiny",
        "weights_scheme": "none",
        "weights_dtype": "float16",
        "cut_short": None,
        "machine": MACHINE,
        "versions": {"flexref": "1"},
        "policy": {"rows_per_group": 4},
        "runs": runs,
        **changes,
    }


def written(folder: Path, *lines: Any) -> str:
    path = folder / "yesterday.json"
    path.write_text("\n".join(json.dumps(one) for one in lines) + "\n", encoding="utf-8")
    return str(path)


def of(values: dict[str, Any]) -> Baseline:
    return Baseline("yesterday.json, line 1", Arguments.from_mapping(values["arguments"], "here"), values)


SECONDS = st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=5)


@given(before=SECONDS, now=SECONDS)
def test_every_ratio_of_two_runs_lies_within_the_spread_and_the_verdict_follows_it(
    before: list[float], now: list[float]
) -> None:
    for change in of(line(before)).compare(line(now)).changes:
        olds, news = ([run[change.figure] for run in line(steps)["runs"]] for steps in (before, now))
        ratios = [new / old for new in news for old in olds]
        assert (change.least, change.most) == (min(ratios), max(ratios))
        assert min(ratios) <= change.ratio * (1 + 1e-12)
        assert change.ratio <= max(ratios) * (1 + 1e-12)
        faster = all(ratio > 1 for ratio in ratios) if change.figure == "tokens_per_s" else max(ratios) < 1
        slower = all(ratio < 1 for ratio in ratios) if change.figure == "tokens_per_s" else min(ratios) > 1
        assert change.verdict == ("faster" if faster else "slower" if slower else "no change")


def test_one_run_says_nothing_of_its_spread() -> None:
    (change, *_) = of(line([1.0])).compare(line([2.0, 2.1])).changes
    assert (change.least, change.most, change.verdict) == (None, None, "unknown")
    assert change.ratio == pytest.approx(2.05)


def test_a_figure_that_a_job_has_not_is_left_out() -> None:
    run = {"prefill_s": 1.0, "decode_s": 1.0, "decode_step_s": None, "tokens_per_s": 1.0}
    found = of(line([], runs=[run])).compare(line([], runs=[run]))
    assert [change.figure for change in found.changes] == ["prefill_s", "decode_s", "tokens_per_s"]


def test_versions_and_policies_may_differ_and_are_told() -> None:
    now = line([1.0], versions={"flexref": "2", "blas": "x"}, policy={"rows_per_group": 2})
    assert of(line([1.0])).compare(now).differs == {
        "flexref": ("1", "2"),
        "blas": ("none", "x"),
        "policy's rows_per_group": ("4", "2"),
    }


def test_the_last_line_of_the_same_job_is_the_baseline_whatever_its_repeats(tmp_path: Path) -> None:
    other = Arguments("tiny", rows=8)
    repeated = Arguments("tiny", rows=4, prompt_len=12, gen_len=4, repeat=3)
    found = read_baselines(written(tmp_path, line([1.0]), line([2.0], repeated), line([3.0], other)))
    assert baseline_of(found, JOB).where.endswith("yesterday.json, line 2")


def test_another_job_is_refused_by_the_first_option_of_the_most_similar_line(tmp_path: Path) -> None:
    found = read_baselines(written(tmp_path, line([1.0], Arguments("1.3b")), line([1.0])))
    with pytest.raises(BaselineError, match=r"line 2: rows was 4, is 5: another job$"):
        baseline_of(found, Arguments("tiny", rows=5, prompt_len=12, gen_len=4))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"weights_scheme": "int4"}, "weights_scheme was 'int4', is 'none'"),
        ({"machine": {**MACHINE, "cpu": "two"}}, "cpu was 'two', is 'one'"),
        ({"machine": {**MACHINE, "gpu": ["T4"]}}, "gpu was ['T4'], is []"),
        ({"machine": {}}, "cpu was None, is 'one'"),
        ({"machine": {**MACHINE, "memory_bytes": 3}}, None),
    ],
)
def test_other_weights_and_other_machines_are_refused_by_name(changes: dict[str, Any], why: str | None) -> None:
    about = {"model": "tiny", "weights_scheme": "none", "weights_dtype": "float16", "machine": MACHINE}
    baseline = of(line([1.0], **changes))
    if why is None:
        baseline.check(about)
        return
    with pytest.raises(BaselineError) as refused:
        baseline.check(about)
    assert str(refused.value) == f"yesterday.json, line 1: {why}: nothing to compare"


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (None, "is no benchmark"),
        ([], "is no benchmark"),
        (line([1.0], cut_short="interrupted in run 1"), "did not end"),
        (line([]), "did not end"),
        (line([1.0], runs=[3]), "prefill_s of a run must be a finite number above 0, found 0"),
        (line([1.0], runs=[{"prefill_s": "1"}]), "prefill_s of a run must be a finite number above 0, found '1'"),
        (line([1.0], runs=[{"prefill_s": -1}]), "above 0, found -1"),
        (line([1.0], runs=[{"prefill_s": 10**400}]), "must be a finite number above 0, found 1000"),
        (line([1.0], machine=3), "lacks the object 'machine'"),
        (line([1.0], policy=None), "lacks the object 'policy'"),
        (line([1.0], arguments={"model": "tiny", "new": 3}), "unknown field 'new'"),
        (line([1.0], arguments={}), "lacks the field 'model'"),
    ],
)
def test_what_is_no_benchmark_is_named_by_its_line(wrong: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(BaselineError) as refused:
        read_baselines(written(tmp_path, line([1.0]), wrong))
    assert str(refused.value).startswith(f"{tmp_path}/yesterday.json, line 2: ")
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)


def test_files_that_hold_nothing_or_no_json_or_are_not_there_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    with pytest.raises(StorageError, match="cannot be read"):
        read_baselines(str(path))
    for content, why in ((b"\n\n", "holds no benchmark"), (b"{", "line 1: not JSON"), (b"\xff", "not UTF-8")):
        path.write_bytes(content)
        with pytest.raises(BaselineError, match=why):
            read_baselines(str(path))
