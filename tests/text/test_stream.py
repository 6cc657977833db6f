"""The detokenizer against decoding all at once: nothing lost, nothing taken back, nothing held back without need."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.text.stream import Detokenizer
from flexref.text.tokenizer import Tokenizer

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
ODD_TOKENS = ("<ask>", "café", "日本", "two words", "Ġ", "é")
"""Some spell bytes in the byte-level alphabet, some cannot; `é` alone is a byte that is no UTF-8."""


@pytest.fixture(scope="module")
def tokenizer(document: dict[str, Any]) -> Tokenizer:
    size = len(document["model"]["vocab"])
    known = document["model"]["vocab"]
    odd = [token for token in ODD_TOKENS if token not in known]
    added = [
        {"id": size + place, "content": token, "special": token == "<ask>", **FLAGS} for place, token in enumerate(odd)
    ]
    return Tokenizer.from_json(json.dumps({**document, "added_tokens": [*document["added_tokens"], *added]}).encode())


@pytest.fixture(scope="module")
def bytewise(document: dict[str, Any]) -> Tokenizer:
    """A BPE without merges: every token of a text is one byte."""
    model = {**document["model"], "merges": []}
    return Tokenizer.from_json(json.dumps({**document, "model": model}).encode())


@pytest.mark.parametrize("skip_special", [True, False])
@given(data=st.data())
def test_the_pieces_joined_are_the_whole(tokenizer: Tokenizer, skip_special: bool, data: st.DataObject) -> None:
    top = tokenizer.vocabulary_size + 3
    # The first 260 tokens are single bytes and special ones: most of the difficulties.
    ids = data.draw(st.lists(st.integers(0, 260) | st.integers(0, top) | st.integers(top - 12, top), max_size=20))
    stream = Detokenizer(tokenizer, skip_special)
    pieces = [stream.push(token) for token in ids]
    assert "".join([*pieces, stream.finish()]) == tokenizer.decode(ids, skip_special)


@given(data=st.data())
def test_text_that_was_given_out_is_never_taken_back(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = st.lists(st.integers(0, tokenizer.vocabulary_size - 1), max_size=8)
    stream = Detokenizer(tokenizer)
    beginning = data.draw(ids)
    shown = "".join(stream.push(token) for token in beginning)
    assert tokenizer.decode([*beginning, *data.draw(ids)]).startswith(shown)


@given(text=st.text(max_size=12))
def test_a_character_comes_with_the_token_that_completes_it(bytewise: Tokenizer, text: str) -> None:
    plain = text.replace("<", "")
    stream, ids = Detokenizer(bytewise), iter(bytewise.encode(plain))
    for character in plain:
        *parts, last = (next(ids) for _ in character.encode("utf-8"))
        assert [stream.push(token) for token in parts] == [""] * len(parts)
        assert stream.push(last) == character
    assert stream.finish() == ""


def test_an_incomplete_character_at_the_end_is_marked(bytewise: Tokenizer) -> None:
    stream = Detokenizer(bytewise)
    first, *_ = bytewise.encode("🙂")
    assert stream.push(first) == ""
    assert stream.finish() == "\ufffd"


def test_a_tokenizer_that_rewrites_earlier_text_speaks_at_the_end(document: dict[str, Any]) -> None:
    words = {
        **document,
        "model": {"type": "WordLevel", "vocab": {"a": 0, "wife</w>": 1, "[unk]": 2}, "unk_token": "[unk]"},
        "added_tokens": [],
        "decoder": {"type": "BPEDecoder", "suffix": "</w>"},
    }
    tokenizer = Tokenizer.from_json(json.dumps(words).encode())
    stream = Detokenizer(tokenizer)
    ids = [0, 1, 0, 1]
    assert [stream.push(token) for token in ids] == ["", "", "", ""]
    assert stream.finish() == tokenizer.decode(ids) == "awife awife"
