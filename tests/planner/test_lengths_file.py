"""Files of lengths: rows come as the lines say, the same seed draws the same, and what is wrong is told by its line."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.block.counted_rows import CountedRows
from flexref.block.rows import RowLengths
from flexref.errors import PromptError, StorageError
from flexref.planner import lengths_file
from flexref.planner.lengths_file import read_lengths

DRAWN = {"prompt_tokens": {"uniform": [16, 512]}, "new_tokens": {"uniform": [1, 128]}, "rows": 2000, "seed": 0}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lengths.jsonl"


def written(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=20))
def test_rows_stand_in_the_order_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[int, int, int]]
) -> None:
    path = tmp_path_factory.mktemp("lengths") / "given.jsonl"
    written(path, *({"prompt_tokens": prompt, "new_tokens": new, "rows": rows} for prompt, new, rows in lines))
    assert list(read_lengths(path)) == [RowLengths(prompt, new) for prompt, new, rows in lines for _ in range(rows)]


def test_a_line_without_rows_is_one_and_blank_lines_are_none(file: Path) -> None:
    written(file, {"prompt_tokens": 37, "new_tokens": 12}, "", {"new_tokens": 1, "prompt_tokens": 2, "rows": 10**9})
    rows = read_lengths(file)
    assert rows == CountedRows.of_runs([37, 2], [12, 1], [1, 10**9])


def test_what_is_drawn_follows_from_the_seed_and_keeps_its_bounds(file: Path) -> None:
    first = read_lengths(written(file, DRAWN))
    summary = first.summary
    assert (summary.rows, summary.prompt_tokens.least, summary.prompt_tokens.most) == (2000, 16, 512)
    assert (summary.new_tokens.least, summary.new_tokens.most) == (1, 128)
    assert summary.prompt_tokens.mean == pytest.approx(264, rel=0.05)
    assert read_lengths(file) == first
    assert read_lengths(written(file, {**DRAWN, "seed": 1})) != first
    twice = read_lengths(written(file, DRAWN, {"prompt_tokens": 7, "new_tokens": 7}, {**DRAWN, "rows": 1}))
    assert twice[:2000] == first
    assert twice[2000] == RowLengths(7, 7)
    assert twice[2001].prompt_tokens >= 16


def test_values_are_drawn_by_their_weights(file: Path) -> None:
    weighted = {"values": [16, 64, 5], "weights": [3, 1, 0]}
    rows = read_lengths(written(file, {"prompt_tokens": weighted, "new_tokens": {"values": [2]}, "rows": 4000}))
    share = sum(row.prompt_tokens == 16 for row in rows) / 4000
    assert share == pytest.approx(0.75, abs=0.03)
    assert {row.prompt_tokens for row in rows} == {16, 64}
    alike = read_lengths(written(file, {"prompt_tokens": {"values": [1, 2]}, "new_tokens": 3, "rows": 4000}))
    assert alike.summary.prompt_tokens.mean == pytest.approx(1.5, abs=0.05)


WRONG = (
    ("[1]", "needed a JSON object with prompt_tokens, new_tokens, found [1]"),
    ("{", "not JSON"),
    ({"prompt_tokens": 1}, "field 'new_tokens' is missing"),
    ({"prompt_tokens": 1, "new_tokens": 1, "row": 2}, "unknown field 'row'"),
    ({"prompt_tokens": 0, "new_tokens": 1}, "prompt_tokens must be a whole number from 1"),
    ({"prompt_tokens": True, "new_tokens": 1}, "prompt_tokens must be"),
    ({"prompt_tokens": 1, "new_tokens": 1.0}, "new_tokens must be"),
    ({"prompt_tokens": 1, "new_tokens": 1 << 25}, "new_tokens must be"),
    ({"prompt_tokens": 1, "new_tokens": 1, "rows": 0}, "rows must be"),
    ({"prompt_tokens": 1, "new_tokens": 1, "rows": 10**12}, "more than 1000000000000 rows in all"),
    ({"prompt_tokens": 1, "new_tokens": 1, "seed": 1}, "has a seed, and nothing is drawn"),
    ({**DRAWN, "seed": -1}, "seed must be"),
    ({**DRAWN, "rows": 1 << 23}, "rows are drawn in all"),
    ({**DRAWN, "new_tokens": {"uniform": [3, 2]}}, "the first number of uniform is above the last"),
    ({**DRAWN, "new_tokens": {"uniform": [3]}}, "uniform must be"),
    ({**DRAWN, "new_tokens": {"uniform": [1, 2], "values": [1]}}, "unknown field 'values'"),
    ({**DRAWN, "new_tokens": {"values": []}}, "values must be"),
    ({**DRAWN, "new_tokens": {"values": [1], "weights": [1, 2]}}, "a weight for each of the values"),
    ({**DRAWN, "new_tokens": {"values": [1, 2], "weights": [0, 0]}}, "a weight for each of the values"),
    ({**DRAWN, "new_tokens": {"values": [1, 2], "weights": [1e308, 1e308]}}, "a weight for each of the values"),
    ({**DRAWN, "new_tokens": {"values": [1], "weights": [-1]}}, "weights must be"),
    ({**DRAWN, "new_tokens": {"normal": [1]}}, "new_tokens must be"),
    ("\x00", "not JSON"),
    ('{"prompt_tokens": ' + "9" * 5000 + ', "new_tokens": 1}', "line 2: "),
    ("[" * 100_000, "line 2: not JSON"),
)


@pytest.mark.parametrize(("line", "expected"), WRONG)
def test_a_wrong_line_is_told_with_its_number(file: Path, line: Any, expected: str) -> None:
    written(file, {"prompt_tokens": 1, "new_tokens": 1}, line)
    with pytest.raises(PromptError) as found:
        read_lengths(file)
    said = str(found.value)
    assert said.startswith(f"{file}, line 2: ")
    assert expected in said
    assert "\n" not in said


def test_a_file_without_rows_or_that_cannot_be_read_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*lengths\.jsonl"):
        read_lengths(file)
    with pytest.raises(StorageError):
        read_lengths(file.parent)
    with pytest.raises(PromptError, match="holds no row"):
        read_lengths(written(file, "", " "))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(PromptError, match="line 1: not UTF-8"):
        read_lengths(file)
    monkeypatch.setattr("flexref.files.LONGEST_LINE_BYTES", 20)
    with pytest.raises(PromptError, match="line 1: is too long"):
        read_lengths(written(file, {"prompt_tokens": 1, "new_tokens": 1}))
    monkeypatch.setattr("flexref.files.LONGEST_LINE_BYTES", 200)
    monkeypatch.setattr("flexref.files.LARGEST_TEXT_BYTES", 60)
    with pytest.raises(PromptError, match="is too long: at most 60 bytes"):
        read_lengths(written(file, *[{"prompt_tokens": 1, "new_tokens": 1}] * 3))


def test_a_million_lines_take_little_memory(file: Path) -> None:
    with file.open("w") as out:
        for number in range(10**6):
            out.write(f'{{"prompt_tokens": {16 + number % 497}, "new_tokens": {1 + number % 128}}}\n')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = read_lengths(file)
    assert len(rows) == 10**6
    assert len(rows.kinds) == lengths_file.KNOWN_LINES - 1920
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


def test_rows_of_a_line_share_whole_chunks_of_what_it_says_and_lines_share_nothing(file: Path) -> None:
    shared = {"prompt_tokens": 160, "new_tokens": 3, "rows": 2, "shared_tokens": 150}
    drawn = {"prompt_tokens": {"values": [70, 90]}, "new_tokens": 2, "rows": 9, "shared_tokens": 64}
    few = {"prompt_tokens": 160, "new_tokens": 3, "rows": 2, "shared_tokens": 63}
    alone = {"prompt_tokens": 160, "new_tokens": 3, "shared_tokens": 150}
    rows = list(read_lengths(written(file, shared, shared, drawn, few, alone)))
    assert rows[:4] == [RowLengths(160, 3, 0, 128, prefix) for prefix in (1, 1, 2, 2)]
    assert {(row.shared_tokens, row.prefix) for row in rows[4:13]} == {(64, 3)}
    assert [(row.shared_tokens, row.prompt_tokens) for row in rows[13:]] == [(0, 160)] * 3


@pytest.mark.parametrize("prompt", [64, {"uniform": [64, 70]}])
def test_the_last_token_of_a_prompt_is_not_shared(file: Path, prompt: Any) -> None:
    line = {"prompt_tokens": prompt, "new_tokens": 3, "rows": 200, "shared_tokens": 64}
    with pytest.raises(PromptError, match=r"lengths.jsonl, line 1: shared_tokens is 64, and a prompt has 64"):
        read_lengths(written(file, line))
