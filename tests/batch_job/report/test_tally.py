"""What a report counts of the answers themselves."""

import json
from pathlib import Path
from typing import Any

import pytest

from flexref.batch_job.report.tally import CODES_MOST, EXAMPLES_MOST, OTHER, FailedExample, Tally, add_answers
from flexref.errors import BatchError, StorageError


def answered(prompt: int, output: int, *reasons: str) -> dict[str, Any]:
    usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    choices = [{"index": at, "text": "x", "finish_reason": reason} for at, reason in enumerate(reasons)]
    body = {"id": "cmpl", "object": "text_completion", "choices": choices, "usage": usage}
    return {"id": "a", "custom_id": "b", "response": {"status_code": 200, "body": body}, "error": None}


def failed(code: str | None, message: str, custom_id: str | None = "c") -> dict[str, Any]:
    return {"id": "a", "custom_id": custom_id, "response": None, "error": {"code": code, "message": message}}


def tally(tmp_path: Path, *lines: dict[str, Any], torn: str = "") -> Tally:
    path = tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + torn, encoding="utf-8")
    found = Tally()
    add_answers(found, path)
    return found


def test_lengths_endings_and_failures_are_counted(tmp_path: Path) -> None:
    inside = {"custom_id": "d", "response": {"status_code": 400, "body": {"error": {"code": 400, "message": "m"}}}}
    found = tally(tmp_path, answered(3, 7, "stop", "length"), answered(3, 9, "stop"), failed("bad", "one"), inside)
    assert (found.prompt_lengths, found.output_lengths) == ({3: 2}, {7: 1, 9: 1})
    assert found.finish_reasons == {"stop": 2, "length": 1}
    assert {code: (lines.count, lines.examples) for code, lines in found.failed.items()} == {
        "bad": (1, [FailedExample("c", "one")]),
        "400": (1, [FailedExample("d", "m")]),
    }
    assert (found.answered, found.failed_lines) == (2, 2)


def test_a_line_that_is_still_being_written_is_not_read(tmp_path: Path) -> None:
    assert tally(tmp_path, answered(1, 1, "stop"), torn='{"id": "').answered == 1


def test_codes_and_examples_are_bounded(tmp_path: Path) -> None:
    many = [failed(f"code {number}", "m" * 5000, None) for number in range(CODES_MOST + 9)]
    found = tally(tmp_path, *many, *many)
    assert len(found.failed) == CODES_MOST + 1
    assert found.failed[OTHER].count == 18
    assert len(found.failed[OTHER].examples) == EXAMPLES_MOST
    assert all(len(line.message) <= 300 for lines in found.failed.values() for line in lines.examples)


@pytest.mark.parametrize(
    "line",
    [b"not json", b"[]", b'{"custom_id": []}', b'{"response": {"body": {"choices": 1}}}', b'{"custom_id": "\xff"}'],
)
def test_a_line_that_is_no_answer_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(json.dumps(answered(1, 1)).encode() + b"\n" + line + b"\n")
    with pytest.raises(BatchError, match=r"out\.jsonl, line 2: not an answer"):
        add_answers(Tally(), path)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read"):
        add_answers(Tally(), tmp_path / "none.jsonl")
