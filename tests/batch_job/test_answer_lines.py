"""Answers are objects of the OpenAI format that say what the engine's outputs say, the same bytes every time."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.batch_job.answers import Line, LineAnswer
from flexref.batch_job.lines.asked_line import AskedLine
from flexref.batch_job.lines.body_fields import CHAT, COMPLETIONS
from flexref.batch_job.lines.defaults import Defaults
from flexref.batch_job.lines.prompt_tokens import ServedModel, served_model
from flexref.batch_job.lines.token_logprobs import completion_logprobs
from flexref.batch_job.request_lines import RequestReader
from flexref.batch_job.serve import Serving
from flexref.engine.engine import Engine
from flexref.engine.results import ChosenToken, Output, TokenLogprob
from flexref.engine.row_text import RowText
from flexref.errors import PromptError
from flexref.text.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from lib.mixed_lines import mixed_lines


class Joined:
    """A template that writes contents as they come."""

    def render(self, messages: Any, /) -> str:
        return "".join(each["content"] for each in messages)


@pytest.fixture(scope="module")
def model(engine: Engine) -> ServedModel:
    return replace(served_model(engine.file.spec, engine.tokenizer), chat_template=Joined())


@pytest.fixture(scope="module")
def tokenizer(engine: Engine) -> Tokenizer:
    assert engine.tokenizer is not None
    return engine.tokenizer


def line(body: dict[str, Any], url: str = COMPLETIONS, number: int = 3) -> Line:
    return Line(number, json.dumps({"custom_id": "x", "method": "POST", "url": url, "body": body}).encode())


def asked(model: ServedModel, given_line: Line, defaults: Defaults | None = None) -> AskedLine:
    found = RequestReader(model, defaults or Defaults(model="served"), as_json=True).read(given_line)
    assert isinstance(found, AskedLine), found
    return found


def output(
    ids: list[int], text: str | None = "", reason: str = "length", prompt_tokens: int = 2, **more: Any
) -> Output:
    return Output([1], text, ids, reason, prompt_tokens, **more)


def body_of(answer: LineAnswer) -> dict[str, Any]:
    """The response's body; what stands around it is checked."""
    record = json.loads(answer.data)
    assert not answer.failed
    assert list(record) == ["id", "custom_id", "response", "error"]
    assert list(record["response"]) == ["status_code", "request_id", "body"]
    assert (record["error"], record["response"]["status_code"]) == (None, 200)
    assert record["id"].removeprefix("batch_req_") == record["response"]["request_id"].removeprefix("req_")
    return dict(record["response"]["body"])


def test_a_completion_is_the_object_of_the_format_to_the_byte(model: ServedModel) -> None:
    found = asked(model, line({"prompt": [5, 6], "model": "opt"}), Defaults(created=7))
    answer = found.answer([output([8, 9], "a\n\u2028é")])
    own = found.request_hash
    start = answer.data.split(f"{own:016x}".encode(), 1)[0]
    placed = start.removeprefix(b'{"id":"batch_req_').decode()
    assert len(placed) == 16
    name = f"{placed}{own:016x}"
    wanted = (
        f'{{"id":"batch_req_{name}","custom_id":"x","response":{{"status_code":200,"request_id":"req_{name}",'
        f'"body":{{"id":"cmpl-{name}","object":"text_completion","created":7,"model":"opt","choices":[{{"text":'
        '"a\\n\u2028é","index":0,"logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":2,'
        '"completion_tokens":2,"total_tokens":4}}},"error":null}'
    )
    assert answer.data.decode() == wanted
    assert (answer.number, answer.custom_id, answer.request_hash) == (3, "x", own)
    assert (answer.prompt_tokens, answer.generated_tokens) == (2, 2)


def test_names_tell_answers_of_equal_lines_apart_and_are_the_same_every_time(model: ServedModel) -> None:
    def name(number: int) -> str:
        found = asked(model, Line(number, b'{"prompt": [5]}'))
        return str(body_of(found.answer([output([8])]))["id"])

    assert name(1) == name(1) != name(2)


def test_prompts_are_counted_once_and_choices_stand_in_their_order(model: ServedModel) -> None:
    found = asked(model, line({"prompt": ["The king", [5]], "n": 2, "echo": True}))
    outputs = [output([number], f" {number}", prompt_tokens=length) for number, length in enumerate([3, 3, 1, 1])]
    answer = found.answer(outputs)
    body = body_of(answer)
    assert body["model"] == "served"
    assert body["usage"] == {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8}
    echoed = ["The king 0", "The king 1", '" 2', '" 3']
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == list(enumerate(echoed))
    assert (answer.prompt_tokens, answer.generated_tokens) == (4, 4)


def test_a_token_that_the_tokenizer_does_not_have_is_named_by_its_id(model: ServedModel) -> None:
    """OPT's head has seven more rows than its tokenizer has tokens, and a run may choose one of them."""
    few = replace(model, vocabulary=8200)
    tops = [TokenLogprob(8195, -0.5, ""), TokenLogprob(8196, -1.5, ""), TokenLogprob(8, -2.0, "&")]
    tokens = [ChosenToken(tops[0], tops)]
    asked_line = asked(few, line({"prompt": [5], "logprobs": 3}))
    (choice,) = body_of(asked_line.answer([output([8195], "", logprobs=tokens)]))["choices"]
    assert choice["logprobs"]["tokens"] == ["token_id:8195"]
    assert list(choice["logprobs"]["top_logprobs"][0])[:2] == ["token_id:8195", "token_id:8196"]


def test_a_model_without_a_tokenizer_answers_in_token_ids() -> None:
    bare = ServedModel(50, 20)
    tokens = [ChosenToken(TokenLogprob(8, -0.5, None), [TokenLogprob(8, -0.5, None), TokenLogprob(9, -1.5, None)])]
    body = body_of(asked(bare, line({"prompt": [5], "logprobs": 2})).answer([output([8], None, logprobs=tokens)]))
    assert body["choices"] == [
        {
            "text": "",
            "index": 0,
            "logprobs": {
                "text_offset": [0],
                "token_logprobs": [-0.5],
                "tokens": ["token_id:8"],
                "top_logprobs": [{"token_id:8": -0.5, "token_id:9": -1.5}],
            },
            "finish_reason": "length",
            "token_ids": [8],
        }
    ]
    body = body_of(asked(bare, line({"prompt": [5, 6], "echo": True})).answer([output([8], None)]))
    assert body["choices"][0]["token_ids"] == [5, 6, 8]


def chosen(tokenizer: Tokenizer, ids: Sequence[int]) -> list[ChosenToken]:
    """Tokens of which each is the most probable one beside `</s>`."""
    found = []
    for place, token in enumerate(ids):
        known = TokenLogprob(token, -0.25 - place, tokenizer.decode([token], skip_special=False))
        found.append(ChosenToken(known, [known, TokenLogprob(2, -9.5, "</s>")]))
    return found


def test_a_chat_s_answer_has_its_message_and_its_tokens_with_their_bytes(
    model: ServedModel, tokenizer: Tokenizer
) -> None:
    part = tokenizer.encode("é", add_special=False) if len(tokenizer.encode("é", add_special=False)) > 1 else None
    ids = part or tokenizer.encode("東", add_special=False)
    assert len(ids) > 1  # a character in parts
    messages = [{"role": "user", "content": "Hello"}]
    found = asked(model, line({"messages": messages, "logprobs": True, "top_logprobs": 1}, CHAT))
    body = body_of(found.answer([output(ids, "é", "stop", logprobs=chosen(tokenizer, ids))]))
    assert list(body) == ["id", "object", "created", "model", "choices", "usage"]
    assert (body["id"][:9], body["object"], body["created"]) == ("chatcmpl-", "chat.completion", 0)
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "é", "refusal": None}
    assert (choice["index"], choice["finish_reason"]) == (0, "stop")
    first = choice["logprobs"]["content"][0]
    data = tokenizer.token_bytes(ids[0])
    assert first["bytes"] == list(data)
    assert first["token"] == "bytes:" + "".join(f"\\x{value:02x}" for value in data)
    assert [top["token"] for top in first["top_logprobs"]] == [first["token"]]
    silent = body_of(asked(model, line({"messages": messages}, CHAT)).answer([output([8], "a")]))
    assert silent["choices"][0]["logprobs"] is None
    alone = asked(model, line({"messages": messages, "logprobs": True}, CHAT))
    told = body_of(alone.answer([output(ids[:1], "a", logprobs=chosen(tokenizer, ids[:1]))]))
    assert told["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


@given(ids=st.lists(st.integers(0, 8191), max_size=12), stop=st.sampled_from([(), ("e",), ("a", " ")]))
def test_every_token_begins_where_the_text_before_it_ends(
    tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...]
) -> None:
    row = RowText(tokenizer, stop, ())
    given_ids = []
    for token in ids:
        given_ids.append(token)
        if row.push(token):
            break
    row.finish("length")
    known = completion_logprobs(chosen(tokenizer, given_ids), 1, row.text, tokenizer)
    assert known.token_logprobs == [-0.25 - place for place in range(len(given_ids))]
    assert all(len(top) <= 1 or "</s>" in top for top in known.top_logprobs)
    offsets = [*known.text_offset, len(row.text)]
    assert offsets == sorted(offsets)
    assert offsets[0] == 0
    whole = b"".join(tokenizer.token_bytes(token) for token in given_ids)
    try:
        whole.decode()
    except UnicodeDecodeError:
        return
    before = b""
    for token, begin in zip(given_ids, offsets, strict=False):
        assert begin == min(len(before.decode("utf-8", "ignore")), len(row.text))
        before += tokenizer.token_bytes(token)


def test_a_text_that_a_stop_has_cut_holds_all_offsets_and_special_tokens_take_no_room(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("</s> The king said", add_special=False)
    assert ids[0] == 2
    known = completion_logprobs(chosen(tokenizer, ids), 0, " The", tokenizer)
    assert known.tokens == ["</s>", " The", " king", " said"]
    assert known.text_offset == [0, 0, 4, 4]
    assert known.top_logprobs == [{token: -0.25 - place} for place, token in enumerate(known.tokens)]


def other_tokenizer(decoder: dict[str, Any], words: Sequence[str], special: Sequence[str] = ()) -> Tokenizer:
    """One that is not byte-level: words, bytes and special tokens, in this order."""
    known = [*words, *(f"<0x{value:02X}>" for value in range(256)), *special]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": known.index(token), "content": token, **flags} for token in special]
    model = {"type": "WordLevel", "vocab": {word: place for place, word in enumerate(known)}, "unk_token": words[0]}
    document = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None}
    return Tokenizer.from_json(
        json.dumps(
            {**document, "pre_tokenizer": None, "post_processor": None, "decoder": decoder, "model": model}
        ).encode()
    )


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
LLAMA = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}
WORD_PIECE = {"type": "WordPiece", "prefix": "##", "cleanup": False}
SUFFIX = {"type": "BPEDecoder", "suffix": "</w>"}


@pytest.mark.parametrize(
    ("decoder", "tokens", "text", "offsets"),
    [
        (METASPACE, ["▁The", "▁king", "s", "</s>", "▁said"], "The kings said", [0, 3, 8, 9, 9]),
        (
            LLAMA,
            ["▁The", "▁", "<0xE6>", "<0x9D>", "<0xB1>", "<0xC3>", "<0xA9>", "s"],
            "The 東és",
            [0, 3, 4, 4, 4, 5, 5, 6],
        ),
        (WORD_PIECE, ["The", "king", "##s", "said"], "The kings said", [0, 3, 8, 9]),
        (SUFFIX, ["The</w>", "king", "s</w>", "said</w>"], "The kings said", [0, 3, 8, 9]),
    ],
)
def test_tokens_that_are_not_byte_level_begin_where_the_text_before_them_ends(
    decoder: dict[str, Any], tokens: list[str], text: str, offsets: list[int]
) -> None:
    """A space before a word is there only where the word is not the first one."""
    words = list(dict.fromkeys(token for token in tokens if token[0] != "<"))
    other = other_tokenizer(decoder, words, ["</s>"])
    known = [*words, *(f"<0x{value:02X}>" for value in range(256)), "</s>"]
    ids = [known.index(token) for token in tokens]
    assert other.decode(ids) == text
    assert completion_logprobs(chosen(other, ids), 0, text, other).text_offset == offsets
    cut = text[:5]
    assert completion_logprobs(chosen(other, ids), 0, cut, other).text_offset == [min(place, 5) for place in offsets]


@given(
    decoder=st.sampled_from([METASPACE, LLAMA, WORD_PIECE, SUFFIX]),
    ids=st.lists(
        st.integers(0, 5) | st.sampled_from([6 + byte for byte in "é東".encode()]) | st.just(262), max_size=12
    ),
)
def test_whatever_the_tokenizer_offsets_rise_and_divide_the_text(decoder: dict[str, Any], ids: list[int]) -> None:
    other = other_tokenizer(decoder, ["▁The", "king", "##s", "a</w>", "▁", "b"], ["</s>"])
    text = other.decode(ids)
    offsets = completion_logprobs(chosen(other, ids), 0, text, other).text_offset
    assert offsets == sorted(offsets)
    for number, begin in enumerate(offsets):
        assert 0 <= begin <= len(text)
        before = other.decode(ids[:number])
        if text.startswith(before):
            assert begin == len(before)


def test_what_the_engine_refuses_is_the_line_s_error(model: ServedModel) -> None:
    answer = asked(model, line({"prompt": [5]})).refused(PromptError("it does not fit"))
    error = json.loads(answer.data)["error"]
    assert error == {"code": "cannot_be_served", "message": "line 3: it does not fit", "param": None, "line": 3}
    assert (answer.failed, answer.custom_id) == (True, "x")
    much = asked(model, line({"prompt": [5]})).refused(PromptError("many\nwords " * 1000))
    said = json.loads(much.data)["error"]["message"]
    assert (said[:21], len(said)) == ("line 3: many words ma", 1000)


def test_mixed_lines_are_answered_with_what_each_of_their_rows_becomes_alone(
    engine: Engine, model: ServedModel
) -> None:
    reader = RequestReader(model, Defaults(model="demo", seed=3), as_json=True)
    lines = [Line(number, data) for number, data in enumerate(mixed_lines(60, 4, 5, 9), start=1)]
    found = [each for each in map(reader.read, lines) if each is not None]
    answers = {answer.number: answer for answer in Serving(iter(found)).run(engine)}
    assert sorted(answers) == [each.number for each in found]
    served = [each for each in found if isinstance(each, AskedLine)]
    assert len(served) > 40
    for each in served[::4]:
        results = sorted(engine.run(each.rows), key=lambda result: result.number)
        outputs = [result.output for result in results if result.output is not None]
        assert len(outputs) == len(each.rows)
        assert each.answer(outputs) == answers[each.number]
        choices = body_of(answers[each.number])["choices"]
        assert [choice["finish_reason"] for choice in choices] == [result.finish_reason for result in outputs]
        if not each.body.chat and not each.body.echo:
            assert [choice["text"] for choice in choices] == [result.text for result in outputs]
