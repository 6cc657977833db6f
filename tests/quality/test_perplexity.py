"""Windows that score every token once, protocols that say what was done, and perplexities of the built-in model."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.engine.engine import Engine
from flexref.engine.scoring import ScoredRow
from flexref.errors import PromptError, StorageError
from flexref.loading import load
from flexref.policy import Policy
from flexref.quality.perplexity import exponential, perplexity, read_text, sample_text, windows

HELD = Path(__file__).parents[1] / "data" / "heldout"


@pytest.fixture(scope="module")
def demo() -> Iterator[Engine]:
    with load("demo", policy=Policy(rows_per_group=4)) as engine:
        yield engine


@given(st.integers(0, 200), st.integers(2, 60), st.data())
def test_every_token_with_a_context_is_scored_exactly_once(tokens: int, window: int, data: st.DataObject) -> None:
    first = data.draw(st.sampled_from((0, 1)))
    stride = data.draw(st.integers(1, window - first))
    found = list(windows(tokens, window, stride, first))
    scored = [token for at in found for token in range(at.scored, at.end)]
    assert scored == list(range(first, tokens))
    for at in found:
        assert at.begin % stride == 0
        assert at.end == min(at.begin + window, tokens)
        assert at.scored >= at.begin + first, "something stands before it in its window"
    if tokens > window:
        assert min(at.scored - at.begin for at in found[1:]) >= window - stride, "the overlap is its context"


@given(st.integers(2, 120), st.integers(2, 40), st.data())
def test_windows_are_those_of_hugging_faces_guide(tokens: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window - 1))
    expected, previous = [], 0
    for begin in range(0, tokens, stride):
        end = min(begin + window, tokens)
        target = end - previous
        expected.append((begin, end, max(end - target, begin + 1)))  # labels are shifted: the first is never one
        previous = end
        if end == tokens:
            break
    assert [(at.begin, at.end, at.scored) for at in windows(tokens, window, stride, 1)] == expected


@pytest.mark.parametrize("bos", ["first", "every"])
@given(text=st.text("ab c.\n", min_size=2, max_size=80), window=st.integers(3, 20), data=st.data())
def test_rows_hold_the_text_and_the_protocol_says_how(
    demo: Engine, bos: str, text: str, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window - 1))
    sample = sample_text(demo, text, window, stride, bos)
    assert demo.tokenizer is not None
    begin, *ids = demo.tokenizer.encode(text)
    targets = [token for row in sample.rows for token in row.token_ids[row.first :]]
    assert targets == ids, "every token of the text, once, in order"
    protocol = sample.protocol
    assert (protocol.tokens, protocol.windows, protocol.window, protocol.stride) == (
        *(len(ids), len(sample.rows)),
        *(window, stride),
    )
    assert (protocol.bos, protocol.begin_token, protocol.unscored_tokens) == (bos, begin, 0)
    assert all(len(row.token_ids) <= window + (bos == "every") for row in sample.rows)
    if bos == "every":
        assert all(row.token_ids[0] == begin for row in sample.rows)
    contexts = [token for row in sample.rows for token in range(row.first, len(row.token_ids))]
    assert protocol.context_mean == pytest.approx(np.mean(contexts))
    assert protocol.context_least == min(row.first for row in sample.rows[1:] or sample.rows)
    assert sample.nbytes == len(text.encode())
    assert sample.words == len(text.split())


def test_the_sum_does_not_depend_on_windows_where_the_context_is_full(demo: Engine) -> None:
    # Up to the first window's length every protocol has the whole text before every token.
    text = read_text(HELD / "story.txt")[:600]
    samples = [sample_text(demo, text, window, stride) for window, stride in ((512, 256), (512, 511), (300, 1))]
    whole, other, third = (perplexity(demo, sample) for sample in samples)
    assert whole.sample.protocol.windows == other.sample.protocol.windows == 1
    assert whole.nats == other.nats
    assert third.nats == pytest.approx(whole.nats, rel=1e-6)


def test_a_longer_context_predicts_better_and_figures_are_of_one_sum(demo: Engine) -> None:
    text = read_text(HELD / "bible_king_james.txt")[:4000]
    short, long = (perplexity(demo, sample_text(demo, text, window, None)).to_json() for window in (16, 256))
    assert long["perplexity"] < short["perplexity"]
    nats = long["nats_per_token"] * long["tokens"]
    assert long["perplexity"] == pytest.approx(math.exp(long["nats_per_token"]))
    assert long["bits_per_byte"] == pytest.approx(nats / math.log(2) / 4000)
    assert long["word_perplexity"] == pytest.approx(math.exp(nats / len(text.split())))


def test_the_built_in_model_has_the_perplexity_that_its_page_tells(demo: Engine) -> None:
    text = read_text(HELD / "bible_world_english.txt")
    page = (Path(__file__).parents[2] / "flexref" / "data" / "README.md").read_text()
    (line,) = (line for line in page.splitlines() if line.startswith("| `bible_world_english.txt`"))
    tokens, told, bits = (float(cell.strip().replace(",", "")) for cell in line.split("|")[2:5])
    found = perplexity(demo, sample_text(demo, text, 512, 512, "every")).to_json()
    assert found["tokens"] == tokens
    assert found["perplexity"] == pytest.approx(told, abs=0.006)
    assert found["bits_per_byte"] == pytest.approx(bits, abs=0.0006)


def test_a_text_without_a_begin_token_leaves_its_first_token_out(demo: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert demo.tokenizer is not None
    encode = demo.tokenizer.encode
    monkeypatch.setattr(demo.tokenizer, "encode", lambda text: encode(text)[1:])
    sample = sample_text(demo, "The king said to his servant", 4, 2)
    assert (sample.protocol.bos, sample.protocol.unscored_tokens) == ("none", 1)
    assert (sample.nbytes, sample.words) == (len(" king said to his servant"), 5)
    assert "1 without context not scored" in str(sample.protocol)
    cut = sample_text(demo, "語 king", 4, 2)  # its first character takes several tokens, and counts as the first
    assert (cut.nbytes, cut.words) == (len(" king"), 1)
    with pytest.raises(PromptError, match=r"the text has 1 token, of which none has a context"):
        sample_text(demo, "a", 4, 2)
    assert sample_text(demo, "a", 4, 2, "every").protocol.tokens == 1


@pytest.mark.parametrize(
    ("window", "stride", "bos", "complaint"),
    [
        (513, None, "first", "window must be from 2 to the model's 512 positions, found 513"),
        (1, None, "first", "window must be from 2 to"),
        (0, None, "every", "window must be from 1 to"),
        (8, 8, "first", "stride must be from 1 to 7 for a window of 8, found 8: no window's first token has a context"),
        (8, 9, "every", "stride must be from 1 to 8 for a window of 8, found 9"),
        (8, 0, "every", "found 0"),
        (8, 4, "some", "the begin token stands before first or every, found 'some'"),
    ],
)
def test_a_protocol_that_leaves_tokens_without_context_is_refused(
    demo: Engine, window: int, stride: int | None, bos: str, complaint: str
) -> None:
    with pytest.raises(PromptError) as refused:
        sample_text(demo, "some text", window, stride, bos)
    assert complaint in str(refused.value)


def test_a_text_needs_a_tokenizer(model_file: Any) -> None:
    path = model_file(ModelSpec("tiny", 90, 40, 32, 32, 2, 2, 64))
    with load(path) as engine, pytest.raises(PromptError, match="holds no tokenizer"):
        sample_text(engine, "text", None, None)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [(b"", "the text is empty"), (b"\xef\xbb\xbf", "the text is empty"), (b"ab\xff", "not UTF-8: .* at byte 2")],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, data: bytes, complaint: str) -> None:
    path = tmp_path / "text"
    path.write_bytes(data)
    with pytest.raises(PromptError, match=complaint):
        read_text(path)
    with pytest.raises(StorageError, match="cannot be read"):
        read_text(tmp_path / "nowhere")


def test_a_text_is_read_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert read_text(path) == "one\r\ntwo\n"


def test_a_perplexity_beyond_a_float_is_none() -> None:
    assert exponential(1000.0) is None
    assert exponential(0.0) == 1
    assert ScoredRow((1, 2, 3), 1).scored == 2
