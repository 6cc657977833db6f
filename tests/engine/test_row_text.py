"""The text of a growing row is the same whenever it is asked for, and where nothing is looked for in it, only then."""

from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from flexref.engine.row_text import RowText
from flexref.loading import load
from flexref.storage.names import resolve
from flexref.storage.weightfile import open_weight_file
from flexref.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    found = Tokenizer.if_any(open_weight_file(resolve("demo")).tokenizer_json, "demo")
    assert found is not None
    return found


IDS = st.lists(st.integers(0, 8191), max_size=12)
STOPS = st.sampled_from([(), ("e",), ("a", " ")])


@given(IDS, STOPS, st.lists(st.booleans(), min_size=12, max_size=12))
def test_a_text_is_the_same_however_often_it_is_asked_for(
    tokenizer: Tokenizer, ids: list[int], stops: tuple[str, ...], asks: list[bool]
) -> None:
    often, once = RowText(tokenizer, stops, (7,)), RowText(tokenizer, stops, (7,))
    last = ""
    for token, ask in zip(ids, asks, strict=False):
        ended = often.push(token)
        assert once.push(token) == ended
        if ask:
            assert often.text.startswith(last)
            last = often.text
        if ended:
            break
    assert often.finish("length") == once.finish("length")
    assert often.text == once.text
    if not stops:
        given_ids = ids[: ids.index(7)] if 7 in ids else ids
        assert once.text == tokenizer.decode(given_ids)


@pytest.mark.parametrize("stops", [(), ("\x00",)])
def test_tokens_are_spelled_when_they_come_only_for_stop_strings(
    tokenizer: Tokenizer, stops: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    spelled: list[int] = []

    def noted(self: Any, token_id: int, skip_special: bool = True) -> bytes:
        spelled.append(token_id)
        return b"a"

    monkeypatch.setattr(Tokenizer, "token_bytes", noted)
    row = RowText(tokenizer, stops, (7,))
    assert [row.push(300), row.push(301), row.push(7)] == [None, None, "stop"]
    assert spelled == ([300, 301] if stops else [])
    assert row.text == "aa"
    assert spelled == [300, 301]


@pytest.fixture(scope="module")
def by_words() -> Tokenizer:
    """A tokenizer that is not byte-level: its decoder takes the space before a comma away."""
    words = {word: place for place, word in enumerate(["[UNK]", "sea", "##s", "wind", ",", "s,", "</s>"])}
    plain = tokenizers.Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.decoder = decoders.WordPiece()
    return Tokenizer.from_json(plain.to_str().encode())


@pytest.mark.parametrize(
    ("stops", "ids", "text"),
    [
        (("seas wi",), [3, 1, 2, 3], "wind "),
        (("sea",), [3, 1], "wind "),
        (("a", "s,"), [3, 1], "wind se"),
        (("d,",), [1, 3, 4], "sea win"),
    ],
)
def test_a_stop_string_ends_a_row_at_once_whatever_the_tokenizer(
    by_words: Tokenizer, stops: tuple[str, ...], ids: list[int], text: str
) -> None:
    assert not by_words.byte_level
    row = RowText(by_words, stops, (6,))
    assert [row.push(token) for token in ids] == [None] * (len(ids) - 1) + ["stop"]
    assert row.finish("stop") == "stop"
    assert row.text == text


@given(IDS, STOPS)
def test_a_row_has_stopped_if_its_text_was_cut(tokenizer: Tokenizer, ids: list[int], stops: tuple[str, ...]) -> None:
    row = RowText(tokenizer, stops, ())
    for token in ids:
        if row.push(token):
            break
    cut = any(stop in tokenizer.decode(ids) for stop in stops)
    assert row.finish("length") == ("stop" if cut else "length")


def test_a_row_at_its_limit_that_a_stop_string_cuts_ends_with_stop() -> None:
    """The stop string is whole before the limit and waits for an earlier one, which never comes."""
    with load("demo", device_mem_gib=0.1, host_mem_gib=0.1) as engine:
        whole = engine.generate(["The king said"], max_new_tokens=8).outputs[0]
        assert whole.text is not None
        last = whole.text[-3:]
        stops = (whole.text[1:] + "\x00", last)
        (cut,) = engine.generate(["The king said"], max_new_tokens=8, stops=stops).outputs
        *_, token = engine.stream(["The king said"], max_new_tokens=8, stops=stops)
    assert cut.text == whole.text[: whole.text.index(last)]
    assert cut.finish_reason == token.finish_reason == "stop"
