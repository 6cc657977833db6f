"""Formats of `flexref bench`: the same benchmarks as a list, lines, CSV and Markdown."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.bench import benchmark
from flexref.bench.baseline import read_baselines
from flexref.bench.rates import Rates
from flexref.cli.bench.formats import FORMATS, _csv, _markdown, printing, row
from flexref.cli.main import COMMANDS, command_group, run
from flexref.errors import BaselineError

SMALL = ("--model", "tiny", "--prompt-len", "3", "--gen-len", "2", "--rows", "2")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "measure", lambda backend: Rates(1e15, 1e15, 1e15, 1e18))


def bench(*arguments: str) -> int:
    return run(command_group(COMMANDS), ["bench", *arguments])


def test_every_format_holds_the_same_columns_or_objects(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = {}
    for name in FORMATS:
        assert bench(*SMALL, "--repeat", "2", "--format", name) == 0
        out[name] = capsys.readouterr().out
    (listed,) = json.loads(out["json"])
    line = json.loads(out["jsonl"])
    assert set(listed) == set(line)
    assert listed["arguments"] == line["arguments"]
    (cells,) = csv.DictReader(io.StringIO(out["csv"]))
    assert list(cells) == list(row(line))
    assert (cells["model"], cells["backend"], cells["runs"], cells["rows"]) == ("tiny", "numpy", "2", "2")
    assert float(cells["tokens_per_s_least"]) <= float(cells["tokens_per_s_mean"])
    assert float(cells["floor_ratio"]) > 1
    heading, rule, values = out["md"].splitlines()
    assert heading == f"| {' | '.join(row(line))} |"
    assert rule.count("---") == heading.count(" | ") + 1 == values.count(" | ") + 1
    for name in ("json", "jsonl"):
        path = tmp_path / name
        path.write_text(out[name])
        (kept,) = read_baselines(str(path))
        assert kept.arguments.rows == 2
        assert bench(*SMALL, "--baseline", str(path), "--format", "json") == 0
        assert json.loads(capsys.readouterr().out)[0]["baseline"]["where"] == kept.where
    assert kept.where.endswith("jsonl, line 1")


def test_what_was_timed_before_an_error_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    def broken_off() -> None:
        with printing("json") as add:
            add({"one": 1})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert json.loads(capsys.readouterr().out) == [{"one": 1}]


def test_a_list_of_benchmarks_names_the_entry_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    for content, why in (("[]", "holds no benchmark"), ("[3]", "entry 1: is no benchmark"), ("[", "not JSON")):
        path.write_text(content)
        with pytest.raises(BaselineError, match=why):
            read_baselines(str(path))


@given(st.lists(st.none() | st.integers() | st.floats(allow_nan=False) | st.text('|\n\r", a'), min_size=2, max_size=5))
def test_no_cell_breaks_its_row(cells: list[Any]) -> None:
    (found,) = csv.reader(io.StringIO(_csv(cells), newline=""))
    assert found == ["" if cell is None else str(cell) for cell in cells]
    shown = _markdown(cells)
    assert len(shown.splitlines()) == 1
    assert shown.replace("\\|", "").count("|") == len(cells) + 1


@pytest.mark.parametrize(
    "arguments",
    [("--json", "--format", "md"), ("--format", "xml"), ("--format", "csv", "--baseline", "some.json")],
)
def test_formats_that_exclude_what_is_asked_for_are_usage_errors(arguments: Sequence[str]) -> None:
    assert bench(*SMALL, *arguments) == 2
