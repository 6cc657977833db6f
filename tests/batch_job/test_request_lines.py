"""Lines as requests: what is served becomes rows, what is not is refused by the field's name, and nothing crashes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.batch_job.answers import Line, LineAnswer
from flexref.batch_job.lines.asked_line import AskedLine
from flexref.batch_job.lines.body_fields import CHAT, COMPLETIONS, NEUTRAL_BY_URL, SERVED_BY_URL, UNREAD
from flexref.batch_job.lines.defaults import Defaults
from flexref.batch_job.lines.json_line import object_in
from flexref.batch_job.lines.prompt_tokens import ServedModel, served_model
from flexref.batch_job.lines.wrong_line import CODES, WrongLine
from flexref.batch_job.request_lines import CHOICE_BITS, RequestReader
from flexref.engine.engine import Engine
from flexref.errors import BatchError, PromptError
from flexref.json_types.parsing import as_json
from flexref.sampling.settings import MAX_SEED, SamplingSettings
from flexref.text.chat_template import ChatTemplate


class Chat:
    """A template that writes roles and contents as they come."""

    def render(self, messages: Any, /) -> str:
        if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
            raise PromptError("messages must be a list")
        return "</s>" + "".join(f"{each.get('role')}: {each.get('content')}\n" for each in messages)


@pytest.fixture(scope="module")
def model(engine: Engine) -> ServedModel:
    return replace(served_model(engine.file.spec, engine.tokenizer), chat_template=Chat())


@pytest.fixture(scope="module")
def reader(model: ServedModel) -> RequestReader:
    return RequestReader(model, Defaults(model="demo", seed=5), as_json=True)


def line(body: Mapping[str, Any], url: str = COMPLETIONS, number: int = 3, **more: Any) -> Line:
    envelope = {"custom_id": f"id {number}", "method": "POST", "url": url, "body": body, **more}
    return Line(number, json.dumps(envelope).encode())


def chat(number: int = 3, **fields: Any) -> Line:
    return line({"messages": [{"role": "user", "content": "Hello"}], **fields}, CHAT, number)


def asked(reader: RequestReader, given_line: Line) -> AskedLine:
    found = reader.read(given_line)
    assert isinstance(found, AskedLine), found
    return found


def refused(reader: RequestReader, given_line: Line) -> dict[str, Any]:
    """The error of a line that cannot be served; that its answer is one is checked."""
    found = reader.read(given_line)
    assert isinstance(found, LineAnswer)
    return error_of(found, given_line)


def error_of(found: LineAnswer, given_line: Line) -> dict[str, Any]:
    assert (found.failed, found.number) == (True, given_line.number)
    assert found.request_hash == given_line.request_hash
    assert b"\n" not in found.data
    record = json.loads(found.data)
    assert list(record) == ["id", "custom_id", "response", "error"]
    error = record["error"]
    assert error["code"] in CODES
    assert error["line"] == given_line.number
    assert error["message"].startswith(f"line {given_line.number}: ")
    response = record["response"]
    assert response["status_code"] == 400
    assert response["body"]["error"] == {
        "message": error["message"],
        "type": "invalid_request_error",
        "param": error["param"],
        "code": error["code"],
    }
    return dict(error)


def test_a_completion_becomes_a_row_with_what_its_body_says(reader: RequestReader, engine: Engine) -> None:
    body = {
        "prompt": "The king",
        "model": "opt",
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 11,
        "stop": ["a", "b"],
        "logprobs": 3,
        "ignore_eos": True,
    }
    found = asked(reader, line(body))
    (row,) = found.rows
    assert engine.tokenizer is not None
    assert list(row.prompt) == engine.tokenizer.encode("The king")
    assert row.request.sampling == SamplingSettings(0.5, 11, 0.9, 5)
    assert (row.request.max_new_tokens, row.request.stops, row.request.logprobs) == (7, ("a", "b"), 3)
    assert row.request.ignore_eos
    assert (row.draw_number, row.generated) == (2, ())
    assert (found.number, found.custom_id, found.body.model) == (3, "id 3", "opt")


@pytest.mark.parametrize(
    ("prompt", "rows"),
    [
        ([5, 6], [[5, 6]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
        (["a", [7]], [[2, 77], [7]]),
    ],
)
def test_prompts_may_be_text_token_ids_or_lists_of_either(
    reader: RequestReader, engine: Engine, prompt: Any, rows: list[list[int]]
) -> None:
    assert engine.tokenizer is not None
    wanted = [engine.tokenizer.encode("a") if row == [2, 77] else row for row in rows]
    found = asked(reader, line({"prompt": prompt, "n": 2}))
    assert [list(row.prompt) for row in found.rows] == [each for each in wanted for _ in range(2)]
    assert [row.draw_number for row in found.rows] == [2 + (index << CHOICE_BITS) for index in range(len(found.rows))]


@pytest.mark.parametrize(("seed", "key"), [(0, 0), (9, 9), (MAX_SEED, MAX_SEED), (-1, MAX_SEED), (-(1 << 63), 1 << 63)])
def test_a_seed_in_a_body_draws_the_same_in_any_line(reader: RequestReader, seed: int, key: int) -> None:
    for number in (1, 70):
        found = asked(reader, line({"prompt": [5], "seed": seed, "n": 2}, number=number))
        assert [row.draw_number for row in found.rows] == [0, 1 << CHOICE_BITS]
        assert {row.request.sampling.seed for row in found.rows} == {key}


def test_values_that_switch_a_thing_off_are_the_engine_s(reader: RequestReader) -> None:
    for top_k in (-1, 0):
        assert asked(reader, line({"prompt": [5], "top_k": top_k})).rows[0].request.sampling.top_k == 0
    found = asked(reader, line({"prompt": [5], "logprobs": 0}))
    assert (found.rows[0].request.logprobs, found.body.logprobs) == (1, 0)
    found = asked(reader, chat(logprobs=False, top_logprobs=0))
    assert (found.rows[0].request.logprobs, found.body.logprobs) == (0, None)


def test_defaults_are_those_of_a_line_s_own_format_unless_the_job_says_otherwise(model: ServedModel) -> None:
    own = RequestReader(model, Defaults(), as_json=True)
    said = RequestReader(model, Defaults(max_tokens=9, temperature=0.25, top_k=3, stops=("x",)), as_json=True)
    plain = Line(1, b'{"prompt": "a"}')
    lines = (line({"prompt": "a"}), chat(), plain)
    requests = [asked(own, each).rows[0].request for each in lines]
    assert [request.max_new_tokens for request in requests] == [16, model.positions, 32]
    assert [request.sampling.temperature for request in requests] == [1, 1, 0]
    for each in lines:
        request = asked(said, each).rows[0].request
        assert (request.max_new_tokens, request.sampling.temperature, request.stops) == (9, 0.25, ("x",))
    with pytest.raises(BatchError, match="temperature must be"):
        Defaults(temperature=-1)
    with pytest.raises(BatchError, match="new tokens must be at least 1"):
        Defaults(max_tokens=0)
    with pytest.raises(BatchError, match="UTF-8"):
        Defaults(stops=("a\udcff",))
    with pytest.raises(BatchError, match="not empty"):
        Defaults(stops=("a", ""))


def test_plain_lines_are_objects_with_settings_or_texts(model: ServedModel, reader: RequestReader) -> None:
    found = asked(reader, Line(4, b'{"prompt": "a:\\"b\\" :", "id": 7, "max_new_tokens": 5, "seed": 8}'))
    assert (found.custom_id, found.rows[0].draw_number) == (7, 0)
    assert (found.rows[0].request.max_new_tokens, found.rows[0].request.sampling.seed) == (5, 8)
    texts = RequestReader(model, Defaults(), as_json=False)
    assert asked(texts, Line(1, b'{"prompt": 1}')).custom_id is None
    assert texts.read(Line(1, b" \t")) is None
    assert "not UTF-8" in refused(texts, Line(1, b"a\xff"))["message"]


BAD_BODIES: Sequence[tuple[dict[str, Any], str, str, str]] = (
    ({}, "missing_field", "prompt", "`prompt` is missing"),
    ({"prompt": None}, "missing_field", "prompt", "`prompt` is missing"),
    ({"prompt": ""}, "invalid_value", "prompt", "empty"),
    ({"prompt": []}, "invalid_value", "prompt", "empty list"),
    ({"prompt": [[]]}, "invalid_value", "prompt", "no token"),
    ({"prompt": [1, True]}, "invalid_value", "prompt", "text, token ids, or a list of either"),
    ({"prompt": [1, "a"]}, "invalid_value", "prompt", "text, token ids, or a list of either"),
    ({"prompt": ["a", 1]}, "invalid_value", "prompt", "text, token ids, or a list of either"),
    ({"prompt": {"a": 1}}, "invalid_value", "prompt", "text, token ids, or a list of either"),
    ({"prompt": [8192]}, "invalid_value", "prompt", "needed ids from 0 to 8191"),
    ({"prompt": [-1]}, "invalid_value", "prompt", "has the token -1"),
    ({"prompt": [5] * 513}, "context_length_exceeded", "prompt", "512 positions"),
    ({"prompt": "a " * 513}, "context_length_exceeded", "prompt", "512 positions"),
    ({"prompt": "a" * 10_000}, "context_length_exceeded", "prompt", "512 positions"),
    ({"prompt": [[5]] * 33, "n": 128}, "invalid_value", "prompt", "more rows than the 4096"),
    ({"prompt": "a", "max_tokens": 0}, "invalid_value", "max_tokens", "at least 1, found 0"),
    ({"prompt": "a", "max_tokens": 1.5}, "invalid_value", "max_tokens", "found 1.5"),
    ({"prompt": "a", "max_tokens": True}, "invalid_value", "max_tokens", "found True"),
    ({"prompt": "a", "max_tokens": 3, "max_completion_tokens": 4}, "invalid_value", "max_completion_tokens", "one of"),
    ({"prompt": "a", "temperature": -0.1}, "invalid_value", "temperature", "at least 0"),
    ({"prompt": "a", "temperature": "1"}, "invalid_value", "temperature", "found '1'"),
    ({"prompt": "a", "temperature": 10**400}, "invalid_value", "temperature", "must be a number"),
    ({"prompt": "a", "top_p": 0}, "invalid_value", "top_p", "more than 0"),
    ({"prompt": "a", "top_p": 1.5}, "invalid_value", "top_p", "from 0 to 1"),
    ({"prompt": "a", "top_k": -2}, "invalid_value", "top_k", "from -1"),
    ({"prompt": "a", "seed": 1 << 64}, "invalid_value", "seed", "whole number"),
    ({"prompt": "a", "stop": ["a", ""]}, "invalid_value", "stop", "none of them empty"),
    ({"prompt": "a", "stop": 3}, "invalid_value", "stop", "found 3"),
    ({"prompt": "a", "n": 0}, "invalid_value", "n", "from 1 to 128"),
    ({"prompt": "a", "logprobs": True}, "invalid_value", "logprobs", "found True"),
    ({"prompt": "a", "logprobs": 1, "echo": True}, "unsupported_field", "echo", "`echo` with `logprobs`"),
    ({"prompt": "a", "best_of": 2}, "unsupported_field", "best_of", "found 2, `n` is 1"),
    ({"prompt": "a", "model": 3}, "invalid_value", "model", "must be text"),
    ({"prompt": "a", "presence_penalty": 0.5}, "unsupported_field", "presence_penalty", "found 0.5; only 0 is"),
    ({"prompt": "a", "stream": True}, "unsupported_field", "stream", "found True; only false is"),
    ({"prompt": "a", "stream": 0}, "unsupported_field", "stream", "found 0; only false is"),
    ({"prompt": "a", "logit_bias": {"5": 1}}, "unsupported_field", "logit_bias", "only {} is"),
    ({"prompt": "a", "suffix": "b"}, "unsupported_field", "suffix", 'only "" is'),
    ({"prompt": "a", "guided_json": {}}, "unsupported_field", "guided_json", "is not served"),
    ({"prompt": "a", "temprature": 1}, "unknown_field", "temprature", "did you mean `temperature`"),
    ({"prompt": "a", "quite_new": 1}, "unknown_field", "quite_new", "served: model, max_tokens"),
    ({"prompt": "a", "messages": []}, "unknown_field", "messages", f"belongs to {CHAT}"),
)


@pytest.mark.parametrize(("body", "code", "field", "words"), BAD_BODIES)
def test_a_body_that_is_not_served_is_refused_by_the_field_s_name(
    reader: RequestReader, body: dict[str, Any], code: str, field: str, words: str
) -> None:
    error = refused(reader, line(body))
    assert (error["code"], error["param"]) == (code, field)
    assert words in error["message"]


BAD_LINES: Sequence[tuple[bytes, str, str | None, str]] = (
    (b"{", "invalid_line", None, "not JSON"),
    (b"[]", "invalid_line", None, "must be a JSON object"),
    (b'{"prompt": "a"} x', "invalid_line", None, "not JSON"),
    (b'{"prompt": NaN}', "invalid_line", None, "not JSON"),
    (b'{"prompt": 1e999}', "invalid_line", None, "not JSON"),
    (b'{"prompt": "\\ud800"}', "invalid_line", None, "half of a surrogate pair"),
    (b'{"prompt": "a \\udc00 b"}', "invalid_line", None, "half of a surrogate pair"),
    (b'{"prompt": "a\xff"}', "invalid_line", None, "not UTF-8"),
    (b'{"prompt": "a", "prompt": "b"}', "invalid_line", None, "the key 'prompt' stands twice"),
    (b'{"prompt": "a:\\"", "\\u0070rompt": "b"}', "invalid_line", None, "the key 'prompt' stands twice"),
    (b'{"prompt": "a", "id": {"b": [{"c": 1, "d": 2, "c": 1}]}}', "invalid_line", None, "the key 'c' stands twice"),
    (b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}", "invalid_line", None, "nested more than 32"),
    (b'{"prompt": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}", "invalid_line", None, "nested more than 32"),
    (b'{"prompt": ' + b"9" * 5000 + b"}", "invalid_line", None, "not JSON"),
    (b"{}", "missing_field", "prompt", "`prompt` is missing"),
    (b'{"text": "a"}', "unknown_field", "text", "did you mean `prompt`"),
    (b'{"prompt": "a", "max_tokens": 4}', "unknown_field", "max_tokens", "did you mean `max_new_tokens`"),
    (b'{"prompt": "a", "temperature": "x"}', "invalid_value", "temperature", "must be a number"),
    (b'{"prompt": "a", "top_p": 0}', "invalid_value", "top_p", "more than 0"),
    (b'{"prompt": "a", "id": [1]}', "invalid_value", "id", "found [1]"),
    (b'{"prompt": "a", "id": 9223372036854775808}', "invalid_value", "id", "found 9223372036854775808"),
    (b'{"prompt": null, "id": 3}', "missing_field", "prompt", "`prompt` is missing"),
    (b'{"prompt": "a", "unheard_of": null}', "unknown_field", "unheard_of", "is not known"),
    (b'{"custom_id": "a"}', "missing_field", "method", "`method` is missing"),
    (b'{"url": "/v1/completions"}', "missing_field", "custom_id", "`custom_id` is missing"),
    (b'{"custom_id": ""}', "invalid_value", "custom_id", "text of 1 to 1024 characters"),
    (b'{"custom_id": 5}', "invalid_value", "custom_id", "found 5"),
    (b'{"custom_id": "a", "method": "GET", "url": "", "body": {}}', "invalid_value", "method", "found 'GET'"),
    (b'{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {}}', "unsupported_field", "url", "/v1/e"),
    (b'{"custom_id": "a", "method": "POST", "url": [], "body": {}}', "unsupported_field", "url", "found []"),
    (b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": []}', "invalid_value", "body", "object"),
    (b'{"custom_id": "a", "prompt": "a"}', "unknown_field", "prompt", "a line has the fields custom_id, method"),
)


@pytest.mark.parametrize(("data", "code", "field", "words"), BAD_LINES)
def test_a_line_that_is_no_request_is_refused_alone(
    reader: RequestReader, data: bytes, code: str, field: str | None, words: str
) -> None:
    error = refused(reader, Line(12, data))
    assert (error["code"], error["param"]) == (code, field)
    assert words in error["message"]


def test_only_options_that_the_command_has_are_recommended(reader: RequestReader) -> None:
    assert "--ignore-eos" in refused(reader, Line(1, b'{"prompt": "a", "ignore_eos": true}'))["message"]
    assert "--logprobs" not in refused(reader, Line(1, b'{"prompt": "a", "logprobs": 2}'))["message"]


def test_a_field_that_is_null_is_not_given_in_a_plain_line_either(reader: RequestReader) -> None:
    """As rows of a table have them that do not say."""
    bare = asked(reader, Line(1, b'{"prompt": "a", "top_p": 0.5}'))
    names = ("id", "max_new_tokens", "temperature", "top_k", "seed", "stop")
    full = asked(reader, Line(1, json.dumps({"prompt": "a", "top_p": 0.5, **dict.fromkeys(names)}).encode()))
    assert (full.body, full.rows) == (bare.body, bare.rows)


def test_a_line_that_is_too_long_or_has_another_s_id_is_refused(reader: RequestReader) -> None:
    error = refused(reader, Line(4, b"{", digest=77))
    assert (error["code"], error["message"]) == (
        "invalid_line",
        "line 4: it is longer than the 4194304 bytes that are read",
    )
    twice = line({"prompt": "a"}, number=9)
    error = refused(reader, Line(9, twice.data, duplicate_of=2))
    assert error["code"] == "duplicate_custom_id"
    assert "'id 9' stands in line 2, too" in error["message"]


def test_a_chat_without_a_template_and_a_text_without_a_tokenizer_are_refused(model: ServedModel) -> None:
    bare = RequestReader(ServedModel(model.vocabulary, model.positions, model.tokenizer), Defaults(), as_json=True)
    assert refused(bare, chat())["code"] == "no_chat_template"
    ids_only = RequestReader(ServedModel(100, 20), Defaults(), as_json=True)
    assert refused(ids_only, line({"prompt": "a"}))["code"] == "no_tokenizer"
    assert refused(ids_only, line({"prompt": [1], "stop": "a"}))["code"] == "no_tokenizer"
    assert asked(ids_only, line({"prompt": [1]})).rows[0].prompt == (1,)


def test_a_chat_is_read_through_the_template_without_more_special_tokens(reader: RequestReader, engine: Engine) -> None:
    found = asked(reader, chat(max_completion_tokens=4, logprobs=True, top_logprobs=2))
    assert engine.tokenizer is not None
    assert list(found.rows[0].prompt) == engine.tokenizer.encode("user: Hello\n")
    assert (found.rows[0].request.max_new_tokens, found.rows[0].request.logprobs) == (4, 2)
    assert refused(reader, line({"messages": 3}, CHAT))["message"] == "line 3: `messages`: messages must be a list"
    assert refused(reader, chat(top_logprobs=2))["param"] == "top_logprobs"
    assert refused(reader, chat(tools=[{"type": "function"}]))["code"] == "unsupported_field"


@pytest.mark.parametrize("url", [COMPLETIONS, CHAT])
def test_neutral_values_and_what_says_nothing_of_the_answer_are_taken(reader: RequestReader, url: str) -> None:
    start = {"prompt": "a"} if url == COMPLETIONS else {"messages": [{"role": "user", "content": "a"}]}
    wanted = asked(reader, line(start, url)).rows
    for name, values in NEUTRAL_BY_URL[url].items():
        for value in (*values, None):
            assert asked(reader, line({**start, name: value}, url)).rows == wanted
    for name in UNREAD:
        for value in (None, 1, "x:", "\\", {"a:": [2, [{"b": 1}], "\\", ":"]}):
            assert asked(reader, line({**start, name: value}, url)).rows == wanted
    for name in SERVED_BY_URL[url].keys() - {"prompt", "messages"}:
        assert asked(reader, line({**start, name: None}, url)).rows == wanted


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=6),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=4) | st.just("role"), part, max_size=3),
    max_leaves=8,
)

NAMES = sorted({*SERVED_BY_URL[COMPLETIONS], *SERVED_BY_URL[CHAT], *NEUTRAL_BY_URL[CHAT], *UNREAD, "id", "zzz"})


@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4), st.sampled_from([COMPLETIONS, CHAT]), st.booleans())
def test_whatever_a_line_holds_it_is_asked_or_refused(
    reader: RequestReader, body: dict[str, Any], url: str, enveloped: bool
) -> None:
    start = {"prompt": "a"} if url == COMPLETIONS else {"messages": [{"role": "user", "content": "a"}]}
    plain = Line(3, json.dumps({"prompt": "a", **body}).encode())
    given_line = line({**start, **body}, url) if enveloped else plain
    found = reader.read(given_line)
    assert found is not None
    assert found.number == 3
    if isinstance(found, LineAnswer):
        error_of(found, given_line)
    assert reader.read(given_line) == found


CHATML = """{% for message in messages %}<|{{ message.role }}|>
{% if message.role == 'tool' %}{{ raise_exception('no tools: ' ~ message.content) }}{% endif %}
{{ message.content | trim }}</s>
{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""

ROLES = st.sampled_from(["user", "system", "tool", ""])

MESSAGES = JSON | st.lists(
    JSON | st.fixed_dictionaries({"role": JSON | ROLES, "content": JSON | st.text(max_size=9)}), max_size=3
)


@given(MESSAGES)
def test_whatever_a_chat_holds_its_template_writes_it_or_the_line_is_refused(model: ServedModel, messages: Any) -> None:
    template = ChatTemplate(CHATML, {"eos_token": "</s>"})
    given_line = line({"messages": messages}, CHAT)
    found = RequestReader(replace(model, chat_template=template), Defaults(), as_json=True).read(given_line)
    if isinstance(found, LineAnswer):
        error = error_of(found, given_line)
        assert error["param"] == "messages" or error["code"] == "invalid_line"
    else:
        assert found is not None
        assert all(set(message) >= {"role", "content"} for message in messages)


def test_a_template_that_refuses_says_why_in_so_many_words(model: ServedModel) -> None:
    template = ChatTemplate(CHATML, {"eos_token": "</s>"})
    reader = RequestReader(replace(model, chat_template=template), Defaults(), as_json=True)
    error = refused(reader, line({"messages": [{"role": "tool", "content": "abc"}]}, CHAT))
    assert (error["code"], error["param"]) == ("invalid_value", "messages")
    assert "no tools: abc" in error["message"]


def test_requests_are_kept_only_where_they_are_short(model: ServedModel) -> None:
    reader = RequestReader(model, Defaults(), as_json=True)
    short, long = ({"prompt": [5], "stop": ["x" * length]} for length in (9, 5000))
    assert asked(reader, line(short)).body.request is asked(reader, line(short)).body.request
    assert asked(reader, line(long)).body.request is not asked(reader, line(long)).body.request
    assert asked(reader, line(long)).body.request == asked(reader, line(long)).body.request


@given(st.binary(max_size=40))
def test_whatever_bytes_a_line_has_it_is_asked_refused_or_blank(reader: RequestReader, data: bytes) -> None:
    for each in (data, b'{"prompt": "' + data + b'"}', b'{"prompt": ' + data + b"}"):
        found = reader.read(Line(1, each))
        assert (found is None) == (not each.strip())


@given(JSON)
def test_an_object_is_what_json_says_unless_a_key_stands_twice(value: Any) -> None:
    """Of a line of a job, and of other files: both readers take the same."""

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError
        return dict(pairs)

    text = json.dumps({"a": value, ":": '":"'}).replace('"role"', '"a"')
    try:
        wanted = json.loads(text, object_pairs_hook=checked)
        msgspec.json.decode(text)
    except ValueError:
        with pytest.raises(WrongLine):
            object_in(text.encode())
        with pytest.raises(PromptError):
            as_json(text, "here", PromptError)
    except msgspec.MsgspecError:
        with pytest.raises(WrongLine, match="not JSON"):
            object_in(text.encode())
    else:
        assert object_in(text.encode()) == as_json(text, "here", PromptError) == wanted


@pytest.mark.parametrize("more", [{"logprobs": 128, "n": 9}, {"logprobs": 5, "n": 128}])
def test_a_line_whose_answer_would_be_too_long_is_refused_before_it_runs(
    reader: RequestReader, more: Mapping[str, Any]
) -> None:
    body = {"prompt": ["a", "b"] * 8, "max_tokens": 1 << 40, **more}
    error = refused(reader, line(body))
    assert (error["code"], error["param"]) == ("invalid_value", "logprobs")
    assert "of an answer; divide it" in error["message"]
    assert asked(reader, line({**body, "max_tokens": 2}))
    assert asked(reader, line({**body, "logprobs": None}))
