"""`tools/mixed_job` writes the job that its options describe, the same every time."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from flexref.block.rows import RowLengths
from flexref.planner.lengths_file import read_lengths

TOOL = Path(__file__).parents[2] / "tools" / "mixed_job"

FIRST_ROWS = [RowLengths(438, 95), RowLengths(332, 2), RowLengths(270, 67)]


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def prompts_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_job_is_the_one_that_a_distribution_draws(tmp_path: Path) -> None:
    out, drawn = tmp_path / "out.jsonl", tmp_path / "drawn.jsonl"
    assert call(out).returncode == 0
    drawn.write_text(
        '{"prompt_tokens": {"uniform": [16, 512]}, "new_tokens": {"uniform": [1, 128]}, "rows": 2000, "seed": 0}'
    )
    rows = read_lengths(out)
    assert rows == read_lengths(drawn)
    assert rows.summary.rows == 2000
    # What was measured was measured on these rows: they never change.
    assert list(rows[:3]) == FIRST_ROWS
    assert call(out).returncode == 1
    assert call(out, "--seed", 1, "--force").returncode == 0
    assert read_lengths(out) != rows


def test_prompts_have_the_lengths_and_share_what_they_are_to_share(tmp_path: Path) -> None:
    out, prompts = tmp_path / "out.jsonl", tmp_path / "prompts.jsonl"
    small = ("--rows", 20, "--prompt-tokens", 2, 9, "--new-tokens", 1, 3, "--vocabulary", 50)
    assert call(out, *small, "--prompts", prompts, "--shared", 5).returncode == 0
    found = prompts_in(prompts)
    assert [RowLengths(len(each["prompt"]), each["max_new_tokens"]) for each in found] == list(read_lengths(out))
    assert [each["id"] for each in found] == list(range(20))
    assert all(0 <= token < 50 for each in found for token in each["prompt"])
    longest = max(found, key=lambda each: len(each["prompt"]))["prompt"]
    assert all(each["prompt"][:5] == longest[: min(5, len(each["prompt"]))] for each in found)
    assert len({tuple(each["prompt"][5:]) for each in found if len(each["prompt"]) == 9}) > 1
    first = prompts.read_bytes()
    assert call(out, *small, "--prompts", prompts, "--shared", 5, "--force").returncode == 0
    assert prompts.read_bytes() == first


def test_a_range_that_is_none_is_refused(tmp_path: Path) -> None:
    done = call(tmp_path / "out.jsonl", "--prompt-tokens", 9, 2)
    assert (done.returncode, "found 9 2" in done.stderr) == (2, True)
