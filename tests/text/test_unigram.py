"""Unigram tokenizers, as sentencepiece trains them: read as transformers reads them, or refused in one line."""

import json
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from flexref.errors import CheckpointError
from flexref.text.tokenizer import Tokenizer

TEXTS = ["the king of the hill said to his servant that all was well"] * 9 + ["once upon a time in a wood"] * 5


@pytest.fixture(scope="module")
def rust() -> tokenizers.Tokenizer:
    """With the parts that a converted sentencepiece model has, and NFKC in place of its own table."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    return made


@pytest.fixture(scope="module")
def document(rust: tokenizers.Tokenizer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(rust.to_str())
    return found


def read(document: dict[str, Any], **model: Any) -> Tokenizer:
    return Tokenizer.from_json(json.dumps({**document, "model": {**document["model"], **model}}).encode(), "here")


@given(text=st.text(max_size=60) | st.sampled_from(TEXTS))
def test_it_encodes_and_decodes_as_the_library_does(
    rust: tokenizers.Tokenizer, document: dict[str, Any], text: str
) -> None:
    tokenizer = read(document)
    ids = tokenizer.encode(text)
    assert ids == rust.encode(text).ids
    assert tokenizer.decode(ids) == rust.decode(ids)
    assert len(ids) <= tokenizer.tokens_most(len(text.encode()))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ({"vocab": {"a": 0}}, "the vocabulary of a Unigram model must be a list of tokens with their scores"),
        ({"vocab": []}, "the vocabulary of a Unigram model must be a list of tokens with their scores"),
        ({"vocab": [["a", -1.0, 2]], "unk_id": 0}, r"token 0 must be a text and its score, found \['a', -1.0, 2\]"),
        ({"vocab": [["a", "b"]], "unk_id": 0}, r"token 0 must be a text and its score, found \['a', 'b'\]"),
        ({"vocab": [["a", -1], ["", -2]], "unk_id": 0}, r"token 1 must be a text and its score, found \['', -2\]"),
        ({"vocab": [["a", -1], ["a", -2]], "unk_id": 0}, "token 'a' stands twice in the vocabulary"),
        ({"vocab": [["a", -1]], "unk_id": 1}, "unk_id is 1, needed the id of a token, 0 to 0"),
        ({"unk_id": None}, "unk_id is None, needed the id of a token"),
        ({"vocab": [["a" * 2_000_000, -1]], "unk_id": 0}, "has 2000000 characters"),
    ],
)
def test_a_vocabulary_that_is_none_is_refused(document: dict[str, Any], model: dict[str, Any], why: str) -> None:
    with pytest.raises(CheckpointError, match=f"^here: .*{why}") as error:
        read(document, **model)
    assert "\n" not in str(error.value)


def test_a_table_of_sentencepiece_is_refused_with_what_would_help(document: dict[str, Any]) -> None:
    table = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    with pytest.raises(
        CheckpointError, match=r"'Precompiled', which is not supported.*; NFKC in its place does nearly"
    ):
        read({**document, "normalizer": table})


def test_a_token_is_named_as_it_stands_inside_a_text(document: dict[str, Any], rust: tokenizers.Tokenizer) -> None:
    tokenizer = read(document)
    for token, token_id in rust.get_vocab().items():
        assert tokenizer.token_text(token_id) == token.replace("▁", " ")


@pytest.mark.parametrize(
    ("decoder", "texts"),
    [
        ({"type": "WordPiece", "prefix": "##", "cleanup": False}, [" king", "s", " [UNK]"]),
        (None, [" king", " ##s", " [UNK]"]),
    ],
)
def test_so_is_one_of_a_tokenizer_of_words(decoder: Any, texts: list[str]) -> None:
    model = {"type": "WordPiece", "vocab": {"king": 0, "##s": 1, "[UNK]": 2}, "unk_token": "[UNK]"}
    model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    tokenizer = read({"model": model, "decoder": decoder})
    assert [tokenizer.token_text(number) for number in range(3)] == texts
    assert tokenizer.token_text(7) == ""
