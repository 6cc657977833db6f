"""The text of a growing row is the same whenever it is asked for, and where nothing is looked for in it, only then."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.engine.row_text import RowText
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
    often.finish()
    once.finish()
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
