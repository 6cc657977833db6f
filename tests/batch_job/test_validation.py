"""Validation finds what the job would refuse, and lengths as they are, however little it counts."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.batch_job import validation
from flexref.batch_job.answers import LineAnswer
from flexref.batch_job.input_file import Scan, read_lines, scan
from flexref.batch_job.lines.asked_line import AskedLine
from flexref.batch_job.lines.defaults import Defaults
from flexref.batch_job.lines.prompt_tokens import ServedModel, served_model
from flexref.batch_job.request_lines import RequestReader
from flexref.batch_job.validation import Validation, check_openai_limits, validate
from flexref.block.rows import RowLengths
from flexref.engine.engine import Engine
from flexref.errors import BatchError


@pytest.fixture(scope="module")
def model(engine: Engine) -> ServedModel:
    return served_model(engine.file.spec, engine.tokenizer)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("job") / "job.jsonl"


PROMPTS = st.sampled_from(["The king", "a " * 200, "a " * 600, "x" * 9000, [5, 6], [9999], ["a", [7], "b c d"]])

GOOD = st.fixed_dictionaries(
    {"prompt": PROMPTS, "max_tokens": st.sampled_from([1, 9, 600])}, optional={"n": st.sampled_from([1, 3])}
)

BAD = st.sampled_from([{"suffix": "x"}, {"zzz": 1}, {"top_p": 0}])

BODIES: st.SearchStrategy[dict[str, Any]] = GOOD | GOOD | st.builds(lambda good, bad: {**good, **bad}, GOOD, BAD)


def written(path: Path, bodies: list[dict[str, Any] | None]) -> Scan:
    """A file of these bodies; None stands for a blank line."""
    envelope = {"method": "POST", "url": "/v1/completions"}
    lines = [
        "" if body is None else json.dumps({"custom_id": f"{number % 25}", **envelope, "body": body})
        for number, body in enumerate(bodies)
    ]
    path.write_text("".join(f"{line}\n" for line in lines))
    return scan(path)


def rows_of(found: Scan, reader: RequestReader, positions: int) -> list[list[RowLengths]]:
    """By filled line, the lengths of its rows, none of a line that fails."""
    rows = []
    for line in read_lines(found):
        asked = reader.read(line)
        if isinstance(asked, AskedLine):
            pairs = [(len(list(row.prompt)), row.request.max_new_tokens) for row in asked.rows]  # type: ignore[arg-type]
            rows.append([RowLengths(tokens, min(most, positions - tokens + 1)) for tokens, most in pairs])
        elif asked is not None:
            rows.append([])
    return rows


@given(st.lists(st.none() | BODIES, max_size=40), st.sampled_from([4, 1 << 14]))
def test_it_finds_what_the_job_would_refuse_and_the_lengths_of_all_other_rows(
    path: Path, model: ServedModel, bodies: list[dict[str, Any] | None], sample_rows: int
) -> None:
    found, reader = written(path, bodies), RequestReader(model, Defaults(), as_json=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "SAMPLE_ROWS", sample_rows)
        result = validate(found, reader, model.positions)
    answers = [reader.read(line) for line in read_lines(found)]
    failed = [answer for answer in answers if isinstance(answer, LineAnswer)]
    rows = rows_of(found, reader, model.positions)
    assert (result.lines, result.blank) == (len(bodies) - bodies.count(None), bodies.count(None))
    assert (result.failed, result.rows) == (len(failed), sum(map(len, rows)))
    check_errors(result, failed)
    every = 1
    while sum(map(len, rows[::every])) > sample_rows and every <= len(rows):
        every *= 2
    assert list(map(pair, result.sample)) == [pair(row) for line in rows[::every] for row in line]
    if result.counted:
        prompts = [asked for asked in answers if isinstance(asked, AskedLine)]
        assert result.prompt_tokens == sum(
            len(list(row.prompt))  # type: ignore[arg-type]
            for asked in prompts
            for row in asked.rows[:: asked.body.choices]
        )
        assert result.new_tokens == sum(row.new_tokens for line in rows for row in line)
    assert result.counted or every > 1
    json.dumps(result.to_json())


def pair(row: RowLengths) -> tuple[int, int]:
    return row.prompt_tokens, row.new_tokens


def check_errors(result: Validation, failed: list[LineAnswer]) -> None:
    """The kinds of errors are those of the answers."""
    wanted: Counter[tuple[str, str | None]] = Counter()
    lines: dict[tuple[str, str | None], list[int]] = {}
    for answer in failed:
        error = json.loads(answer.data)["error"]
        wanted[error["code"], error["param"]] += 1
        lines.setdefault((error["code"], error["param"]), []).append(answer.number)
    assert {(kind.code, kind.field): kind.count for kind in result.errors} == wanted
    for kind in result.errors:
        assert list(kind.lines) == lines[kind.code, kind.field][:3]


def test_tokens_that_are_not_counted_are_estimated_from_bytes(path: Path, model: ServedModel) -> None:
    found = written(path, [{"prompt": "The king said unto them", "max_tokens": 4}] * 60)
    reader = RequestReader(model, Defaults(), as_json=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "SAMPLE_ROWS", 8)
        result = validate(found, reader, model.positions)
    exact = validate(found, reader, model.positions)
    assert (result.counted, exact.counted) == (False, True)
    assert (result.prompt_tokens, result.new_tokens) == (exact.prompt_tokens, exact.new_tokens)
    assert 4 <= len(result.sample) <= 8
    assert len(exact.sample) == 25  # the others have the custom_ids of these


def test_a_text_whose_bytes_may_all_be_tokens_is_counted(path: Path, model: ServedModel) -> None:
    texts = ["a"] * 20 + ["\x01" * 511, "\x01" * 512]
    found = written(path, [{"prompt": text} for text in texts])
    assert model.tokenizer is not None
    assert [len(model.tokenizer.encode(text)) for text in texts[-2:]] == [512, 513]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "SAMPLE_ROWS", 2)
        result = validate(found, RequestReader(model, Defaults(), as_json=True), model.positions)
    assert [(kind.code, kind.lines) for kind in result.errors] == [("context_length_exceeded", (22,))]


def test_kinds_of_errors_are_few_even_of_fields_that_nobody_knows(path: Path, model: ServedModel) -> None:
    found = written(path, [{"prompt": "a", f"field{number}": 1} for number in range(25)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "KINDS_MOST", 4)
        result = validate(found, RequestReader(model, Defaults(), as_json=True), model.positions)
    assert [(kind.field, kind.count) for kind in result.errors] == [
        (None, 21),
        *((f"field{number}", 1) for number in range(4)),
    ]


def test_lines_that_are_no_requests_are_told_apart_by_what_is_said_of_them(path: Path, model: ServedModel) -> None:
    path.write_bytes(b'{\n[]\n{x}\n"\xff"\n\n[1]\n{')
    result = validate(scan(path), RequestReader(model, Defaults(), as_json=True), model.positions)
    assert {kind.message.partition(":")[0]: kind.lines for kind in result.errors} == {
        "it is not JSON": (1, 3, 7),
        "it must be a JSON object": (2, 6),
        "it is not UTF-8": (4,),
    }
    assert {kind.code for kind in result.errors} == {"invalid_line"}


PEAKS = """
import gc, json, sys, tracemalloc
from pathlib import Path
from flexref.batch_job import validation
from flexref.batch_job.input_file import scan
from flexref.batch_job.lines.defaults import Defaults
from flexref.batch_job.lines.prompt_tokens import ServedModel
from flexref.batch_job.request_lines import RequestReader

path, validation.SAMPLE_ROWS = Path(sys.argv[1]), 128
reader = RequestReader(ServedModel(vocabulary=512, positions=512), Defaults(), as_json=True)
envelope = '{"custom_id": "%07d", "method": "POST", "url": "/v1/completions", "body": {"prompt": [5, 6, 7]}}\\n'
gc.disable()

def peak(lines):
    path.write_text("".join(envelope % number for number in range(lines)))
    gc.collect()
    tracemalloc.start()
    assert validation.validate(scan(path), reader, 512).lines == lines
    _, found = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return found

peak(200)  # what is made once
print(json.dumps([peak(1000), peak(3000)]))
"""
"""The most memory that validation takes for 1000 and 3000 lines, in a process without other threads, whose memory
would count, and without collections of garbage, which come when they like."""


def test_memory_grows_by_some_bytes_a_line(path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, str(path)], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    least, most = json.loads(done.stdout)
    # A line itself has 100 bytes, as an object 150.
    assert most - least < 2000 * 110


def test_a_job_beyond_openai_s_limits_is_refused_in_one_line(path: Path) -> None:
    found = written(path, [{"prompt": "a"}, None, {"prompt": "b"}])
    check_openai_limits(found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "OPENAI_LINES", 2)
        check_openai_limits(found)
        patch.setattr(validation, "OPENAI_LINES", 1)
        with pytest.raises(BatchError, match=r"has 2 requests, the limit is 1; divide it"):
            check_openai_limits(found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "OPENAI_BYTES", 10)
        with pytest.raises(BatchError, match=r"bytes, the limit is 10 \(200 MB\); divide it"):
            check_openai_limits(found)
