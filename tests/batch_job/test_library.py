"""`flexref.batch`: the same answers as from files, in order, no more taken than is needed, nothing left behind."""

import json
import threading
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flexref
from flexref.architecture.spec import ModelSpec
from flexref.batch_job.states import JobEvent, JobFacts, JobState
from flexref.check.models import write_model
from flexref.engine.generation import FIRST_LOOK
from flexref.errors import BatchError, JobPaused, StorageError
from flexref.storage.names import DEMO, demo_file, resolve
from flexref.storage.weightfile import open_weight_file, read_tensor
from flexref.storage.writer import WeightFileWriter
from flexref.text.chat_document import CHAT
from flexref.text.tokenizer import Tokenizer

SPEC = ModelSpec("tiny", 50, 48, 16, 16, 2, 2, 32, eos_token_ids=(7, 11, 20))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model without a tokenizer."""
    path = tmp_path_factory.mktemp("model") / "tiny.h5"
    write_model(path, SPEC)
    return path


def line(number: int, **body: Any) -> dict[str, Any]:
    """A line of the OpenAI batch format."""
    asked = {"prompt": [number % 50, 3], "max_tokens": 1 + number % 9, "temperature": number % 2, **body}
    return {"custom_id": f"row {number}", "method": "POST", "url": "/v1/completions", "body": asked}


REQUESTS = st.lists(
    st.lists(st.integers(0, 60), max_size=5)
    | st.fixed_dictionaries({"prompt": st.lists(st.integers(0, 49), min_size=1, max_size=3), "id": st.integers(0, 9)})
    | st.builds(line, st.integers(0, 5), n=st.integers(1, 2)),
    max_size=8,
)


def written(folder: Path, name: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_bytes().splitlines()]


@settings(max_examples=8)
@given(requests=REQUESTS)
def test_answers_are_those_of_the_same_lines_in_a_file_kept_or_not(
    model: Path, tmp_path_factory: pytest.TempPathFactory, requests: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("job")
    lines = [request if isinstance(request, dict) else {"prompt": request} for request in requests]
    (folder / "in.jsonl").write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    passing = list(flexref.batch(requests, model=model, max_tokens=4))
    assert [answer["custom_id"] for answer in passing] == [line.get("custom_id", line.get("id")) for line in lines]
    assert list(flexref.batch(folder / "in.jsonl", model=model, max_tokens=4)) == passing
    out, err = folder / "out.jsonl", folder / "err.jsonl"
    assert list(flexref.batch(iter(requests), model=model, max_tokens=4, output=out, errors=err)) == passing
    assert written(folder) == [answer for answer in passing if answer["error"] is None]
    assert written(folder, "err.jsonl") == [answer for answer in passing if answer["error"] is not None]


def test_an_endless_stream_of_requests_is_taken_as_it_is_needed(model: Path) -> None:
    taken = 0

    def requests() -> Iterator[list[int]]:
        nonlocal taken
        for taken in count(1):
            yield [taken % 50]

    before = set(threading.enumerate())
    policy = flexref.Policy(rows_per_group=4, groups_per_block=1)
    answers = flexref.batch(requests(), model=model, policy=policy, max_tokens=3)
    assert taken == 0
    for number, answer in enumerate(islice(answers, 300), start=1):
        assert answer["error"] is None
        assert taken <= number + FIRST_LOOK
    answers.close()
    assert set(threading.enumerate()) <= before


class Stopping:
    """Stops a job after some passes, and knows how it ended."""

    def __init__(self, passes: int) -> None:
        self.passes, self.endings = passes, list[str]()

    def begin(self, facts: JobFacts) -> None:
        self.facts = facts

    def passed(self, state: JobState) -> None:
        self.passes -= 1
        if self.passes < 0:
            raise JobPaused("enough")

    def happened(self, event: JobEvent) -> None:
        pass

    def end(self, state: JobState, ending: str) -> None:
        self.endings.append(ending)


def test_a_job_that_is_left_or_stopped_anywhere_goes_on_where_it_was(model: Path, tmp_path: Path) -> None:
    requests = [line(number) for number in range(20)]
    expected = list(flexref.batch(requests, model=model))
    before = set(threading.enumerate())
    for taken in (0, 1, 7, 20):
        watching = Stopping(1000)
        answers = flexref.batch(requests, model=model, output=tmp_path / "out.jsonl", watchers=[watching])
        assert list(islice(answers, taken)) == expected[:taken]
        answers.close()
        assert set(threading.enumerate()) <= before
        assert watching.endings in ([], ["paused"], ["done"])
    stopped = 0
    for passes in (1, 2, 4, 1000):
        watching = Stopping(passes)
        told = []
        try:
            for answer in flexref.batch(requests, model=model, output=tmp_path / "new.jsonl", watchers=[watching]):
                told.append(answer)
        except JobPaused:
            stopped += 1
            assert watching.endings == ["paused"]
        assert told == expected[: len(told)]
    assert stopped
    assert told == expected
    assert (tmp_path / "new.jsonl").read_bytes().count(b"\n") == 20
    assert sorted(path.name for path in tmp_path.iterdir() if "new" in path.name) == ["new.jsonl", "new.jsonl.journal"]
    assert list(flexref.batch(requests, model=model, output=tmp_path / "new.jsonl")) == expected
    with pytest.raises(BatchError, match="temperature"):
        next(flexref.batch(requests, model=model, output=tmp_path / "new.jsonl", temperature=0.5))
    with pytest.raises(BatchError, match="input"):
        next(flexref.batch(requests[1:], model=model, output=tmp_path / "new.jsonl"))
    assert list(flexref.batch(requests[:2], model=model, output=tmp_path / "new.jsonl", force=True)) == expected[:2]


def test_what_the_iterable_raises_is_raised_after_the_answers_before_it(model: Path) -> None:
    def requests() -> Iterator[list[int]]:
        yield from ([1], [2])
        raise ValueError("mine")

    answers = flexref.batch(requests(), model=model)
    assert [answer["error"] for answer in islice(answers, 2)] == [None, None]
    with pytest.raises(ValueError, match=r"^mine$"):
        next(answers)


def test_requests_may_hold_what_numpy_and_tables_hold(model: Path) -> None:
    table = {"prompt": np.array([1, 2]), "max_new_tokens": np.int64(2), "seed": np.uint8(3)}
    plain = {"prompt": [1, 2], "max_new_tokens": 2, "seed": 3}
    first, second = flexref.batch([table, plain], model=model)
    assert first["response"]["body"]["choices"] == second["response"]["body"]["choices"]
    (answer,) = flexref.batch([np.array([1, 2])], model=model)
    assert answer["response"]["body"]["usage"]["prompt_tokens"] == 2


@pytest.mark.parametrize(
    ("requests", "said"),
    [
        ([[1], 5], "request 2 must be text, token ids or an object, found int"),
        ([b"bytes"], "request 1 must be text"),
        ([{"prompt": object()}], "request 1 cannot be written as JSON: object is no type of JSON"),
        ([{"prompt": "\ud800"}], "request 1 cannot be written as JSON"),
        ([{(1, 2): 3}], "request 1 cannot be written as JSON"),
    ],
)
def test_what_is_no_request_is_told_by_its_number(model: Path, tmp_path: Path, requests: list[Any], said: str) -> None:
    for output in (None, tmp_path / "out.jsonl"):
        with pytest.raises(BatchError, match=rf"^{said}[^\n]*$"):
            list(flexref.batch(requests, model=model, output=output))


def test_errors_need_an_output_and_a_path_is_a_file(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BatchError, match="need an output"):
        next(flexref.batch([], model=model, errors=tmp_path / "err.jsonl"))
    with pytest.raises(StorageError, match="nowhere"):
        next(flexref.batch(str(tmp_path / "nowhere"), model=model))
    with pytest.raises(StorageError, match="no folder"):
        next(flexref.batch([[1]], model=model, output=tmp_path / "nowhere" / "out.jsonl"))


def test_equal_custom_ids_are_told_with_both_lines(model: Path) -> None:
    answers = list(flexref.batch([line(1), [5], line(1)], model=model))
    assert [answer["error"] is None for answer in answers] == [True, True, False]
    assert "line 1" in answers[2]["error"]["message"]


def test_a_chat_is_answered_by_way_of_the_models_template(tmp_path: Path) -> None:
    shipped = open_weight_file(resolve(DEMO))
    document = json.loads(shipped.tokenizer_json or b"")
    template = "{% for message in messages %}{{ bos_token }}{{ message.content }}{% endfor %}"
    document[CHAT] = {"template": template, "special_tokens": {"bos_token": "</s>"}}
    with WeightFileWriter(
        tmp_path / "chat.h5", shipped.spec, "none", None, shipped.dtype, json.dumps(document).encode()
    ) as writer:
        for tensor in writer.tensors:
            writer.write(tensor.name, read_tensor(shipped.tensors[tensor.name]))
    chat = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": [{"role": "user", "content": "The king said"}], "max_tokens": 5, "temperature": 0},
    }
    plain, answered = flexref.batch(["The king said", chat], model=tmp_path / "chat.h5", max_tokens=5)
    choice = answered["response"]["body"]["choices"][0]
    assert choice["message"]["content"] == plain["response"]["body"]["choices"][0]["text"] != ""
    wrong = chat["body"] | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}
    (refused,) = flexref.batch([chat | {"body": wrong}], model=tmp_path / "chat.h5")
    assert "content of type 'image_url' is not served" in refused["error"]["message"]
    (without,) = flexref.batch([chat], model=DEMO)
    assert without["error"]["code"] == "no_chat_template"


def test_a_tokenizer_is_made_once_for_requests_and_all_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    really_made = Tokenizer.__init__

    def noted(self: Tokenizer, *document: Any) -> None:
        made.append(self)
        really_made(self, *document)

    monkeypatch.setattr(Tokenizer, "__init__", noted)
    assert len(list(flexref.batch([{"prompt": "The king", "max_tokens": 1}], model=DEMO))) == 1
    assert len(made) == 1


def test_a_model_that_is_truncated_is_read_from_its_mirror(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (wanted,) = flexref.batch(["The king"], model="demo", max_tokens=2)
    data = demo_file().read_bytes()
    (tmp_path / "copy.h5").write_bytes(data)
    (tmp_path / "demo.h5").write_bytes(data[:-100])
    found = flexref.batch(["The king"], model=tmp_path / "demo.h5", max_tokens=2, mirror=tmp_path / "copy.h5")
    assert next(iter(found))["response"] == wanted["response"]
    assert "copy.h5 is read in its place" in caplog.text


def test_a_mirror_is_the_engines(tmp_path: Path) -> None:
    copy = tmp_path / "copy.h5"
    copy.write_bytes(Path(resolve(DEMO)).read_bytes())
    (answer,) = flexref.batch(["The king"], model="demo", max_tokens=2, mirror=copy)
    assert answer["error"] is None
