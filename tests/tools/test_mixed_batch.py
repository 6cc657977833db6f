"""`tools/mixed_batch` writes a job with lines of every kind, the same every time."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from flexref.batch_job.answers import LineAnswer
from flexref.batch_job.input_file import read_lines, scan
from flexref.batch_job.lines.defaults import Defaults
from flexref.batch_job.lines.prompt_tokens import ServedModel
from flexref.batch_job.lines.wrong_line import CANNOT_BE_SERVED, CODES, NO_TOKENIZER
from flexref.batch_job.request_lines import RequestReader
from flexref.loading import load

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from lib.mixed_lines import mixed_lines  # noqa: E402

LINES = 1500


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    tool = ROOT / "tools" / "mixed_batch"
    return subprocess.run(
        [sys.executable, str(tool), *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("job") / "job.jsonl"
    assert call(path, "--lines", LINES).returncode == 0
    return path


def test_the_tool_writes_the_lines_and_replaces_no_file_unasked(job: Path) -> None:
    assert job.read_bytes().split(b"\n") == [*mixed_lines(LINES), b""]
    assert list(mixed_lines(50)) == list(mixed_lines(LINES))[:50]
    assert list(mixed_lines(50, seed=1)) != list(mixed_lines(50))
    again = call(job, "--lines", 3)
    assert again.returncode == 1
    assert "it is there already" in again.stderr


def test_every_kind_of_line_is_there(job: Path) -> None:
    with load("demo") as engine:
        model = ServedModel(engine.file.spec.vocabulary, engine.file.spec.positions, engine.tokenizer)
        reader = RequestReader(model, Defaults(), as_json=True)
        found = [reader.read(line) for line in read_lines(scan(job))]
    codes = Counter(
        json.loads(each.data)["error"]["code"] if isinstance(each, LineAnswer) else "" if each is None else "asked"
        for each in found
    )
    assert set(CODES) - set(codes) == {CANNOT_BE_SERVED, NO_TOKENIZER}
    assert codes["asked"] > 0.8 * LINES
    asked = [each for each in found if each is not None and not isinstance(each, LineAnswer)]
    bodies = [each.body for each in asked]
    assert {len(each.rows) for each in asked} >= {1, 2, 3, 4, 6}
    assert {body.logprobs for body in bodies} >= {None, 0, 1, 5}
    assert {body.seeded for body in bodies} == {body.echo for body in bodies} == {True, False}
    assert any(body.request.stops for body in bodies)
    assert {type(each.custom_id) for each in asked} == {str, int, type(None)}
