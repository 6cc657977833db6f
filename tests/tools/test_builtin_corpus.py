"""The making of the built-in model's corpus: cleaning, holding out and packing, without network, package or GPU."""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from builtin import clean, corpus, packed, rdata, vocabulary  # noqa: E402

WORD = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=6)
WORDS = st.lists(WORD, min_size=corpus.SHARED_WORDS, max_size=40)
SHORT_RUN = st.lists(WORD, max_size=30)


def dressed(words: list[str]) -> str:
    """The words with other capitals, marks and line breaks, as another edition would print them."""
    return ",\n".join(word.title() if place % 3 else word.upper() for place, word in enumerate(words)) + "!"


@given(before=SHORT_RUN, held=WORDS, after=SHORT_RUN)
def test_a_quotation_of_held_out_text_is_found_in_any_dress_and_anywhere(
    before: list[str], held: list[str], after: list[str]
) -> None:
    shingles = corpus.held_shingles([" ".join(held)])
    assert corpus.quoted(dressed(before + held + after), shingles)


@given(training=st.lists(SHORT_RUN, max_size=8), held=st.lists(WORDS, min_size=1, max_size=3), place=st.integers(0, 8))
def test_no_training_paragraph_shares_thirteen_words_with_held_out_text(
    training: list[list[str]], held: list[list[str]], place: int
) -> None:
    shingles = corpus.held_shingles(" ".join(words) for words in held)
    texts = [dressed(words) for words in training]
    texts.insert(min(place, len(texts)), dressed(held[0]))
    kept = corpus.without_quotations(texts, shingles, clean.is_coarse)
    length = corpus.SHARED_WORDS
    runs = {tuple(words[at : at + length]) for words in held for at in range(len(words) - length + 1)}
    for text in kept:
        found = corpus.words(text)
        assert runs.isdisjoint(tuple(found[at : at + length]) for at in range(len(found) - length + 1))
    assert dressed(held[0]) not in kept
    assert kept == [text for text in texts if text in kept]


def test_a_short_gloss_that_another_entry_repeats_counts_as_held_out() -> None:
    held = corpus.held_shingles(["cat: a small animal that people keep"])
    assert corpus.without_quotations(["puss: a small animal that people keep"], held, clean.is_coarse) == [
        "puss: a small animal that people keep"
    ]
    assert corpus.quoted("a small animal that people keep", held)


@given(paragraphs=st.lists(st.text("ab \n", min_size=1), max_size=30), size=st.integers(1, 60))
def test_documents_hold_every_paragraph_once_and_in_order(paragraphs: list[str], size: int) -> None:
    documents = list(corpus.chunked(paragraphs, "|", size))
    assert [part for document in documents for part in document.removesuffix("\n").split("|")] == paragraphs
    assert all(len(document) - 1 >= size - 1 for document in documents[:-1])


def test_wrapped_prose_is_joined_and_verse_keeps_its_lines() -> None:
    wrapped = (
        "It is a truth universally acknowledged, that a single man in possession\n"
        "of a fortune \u201cmust\u201d _want_ a wife."
    )
    verse = "Tyger Tyger, burning bright,\n  In the forests of the night;\nWhat immortal hand or eye"
    assert list(clean.prose(f"{wrapped}\n\n * * *\n\n{verse}\n")) == [
        'It is a truth universally acknowledged, that a single man in possession of a fortune "must" want a wife.',
        "Tyger Tyger, burning bright,\nIn the forests of the night;\nWhat immortal hand or eye",
    ]


def test_line_numbers_of_an_edition_are_left_out_and_numbers_in_a_line_stay() -> None:
    assert list(clean.lines("And brought'st him thence        10\nIn 1600 he wrote 20")) == [
        "And brought'st him thence\nIn 1600 he wrote 20"
    ]


def test_only_the_work_is_left_of_a_framed_text() -> None:
    framed = (
        "Title\n*** START OF THIS PROJECT GUTENBERG EBOOK X ***\nThe work.\nEnd of the Project Gutenberg EBook\nLicence"
    )
    assert clean.without_gutenberg_frame(framed).strip() == "The work."
    assert clean.without_gutenberg_frame("The work.") == "The work."


def test_a_page_gives_its_sentences_and_neither_code_nor_tables_nor_headings() -> None:
    sentence = "A view is a stored query, and it can be used <code>wherever</code> a table can be used in a query."
    page = (
        f"<html><head><title>{sentence}</title></head><body><nav>{sentence}</nav><h1>{sentence}</h1><p>{sentence}\n"
        f"<pre>{sentence}</pre><table><tr><td>{sentence}</table><ul><li>Short.<li>{sentence} It is named.</ul></body>"
    )
    plain = sentence.replace("<code>", "").replace("</code>", "")
    assert clean.html_prose(page) == [plain, f"{plain} It is named."]


def test_a_gloss_is_read_with_its_lemma_and_a_licence_line_is_not_a_gloss() -> None:
    line = '00003356 00 a 01 nascent(a) 0 001 & 00003553 a 0000 |  being born or beginning; "the nascent chicks"   '
    assert clean.gloss(line) == ("nascent", 'being born or beginning; "the nascent chicks"')
    assert clean.gloss("  1 This software and database is being provided | to you") is None


def test_coarse_paragraphs_are_told_from_words_that_contain_their_letters() -> None:
    assert clean.is_coarse("(ethnic slur) an offensive name for somebody")
    assert not clean.is_coarse("The grape, the cocktail, the constant intercourse of neighbours, and Scunthorpe.")


def test_chapters_of_a_bible_come_without_notes_and_marks() -> None:
    markup = (
        '<chapter osisID="Ruth.1" sID="Ruth.1"/><div sID="a" type="x-p"/><w lemma="x">In</w> <w>the</w> days,'
        '<note placement="foot">A note.</note><w>then</w>. He said, "<w>Go</w>!"<div eID="a" type="x-p"/>'
        '<div sID="b" type="x-p"/>And he went.<chapter eID="Ruth.1" osisID="Ruth.1"/> <title>Not this</title>'
    )
    assert list(clean.osis_chapters(markup)) == [("Ruth", ['In the days, then. He said, "Go!"', "And he went."])]
    verses = "Ge1:1 In the beginning.\nGe1:2 And the earth.\nGe2:1 Thus.\n1Chr1:1 Adam.\n"
    assert list(clean.verses(verses)) == [
        ("Ge", ["In the beginning. And the earth."]),
        ("Ge", ["Thus."]),
        ("1Chr", ["Adam."]),
    ]


def _strings(values: list[str]) -> bytes:
    encoded = [value.encode() for value in values]
    items = b"".join(struct.pack(">ii", 0x00040009, len(item)) + item for item in encoded)
    return struct.pack(">ii", 16, len(values)) + items


def _stream(body: bytes) -> bytes:
    return b"X\n" + struct.pack(">iii", 3, 0, 0) + struct.pack(">i", 5) + b"UTF-8" + body


@given(values=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), max_size=8))
@settings(max_examples=30)
def test_strings_of_an_r_package_are_read_as_they_were_written(
    values: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    database = tmp_path_factory.mktemp("r") / "Rdata.rdb"
    stored = zlib.compress(_stream(_strings(values)))
    record = struct.pack(">i", len(_stream(_strings(values)))) + stored
    database.write_bytes(b"junk" + record)
    place = struct.pack(">iiii", 13, 2, 4, len(record))  # integers: offset and length
    names = struct.pack(">i", 0x402) + struct.pack(">i", 1) + struct.pack(">ii", 0x00040009, 5) + b"names"

    def named(item: bytes, name: str) -> bytes:
        return struct.pack(">ii", 0x213, 1) + item + names + _strings([name]) + struct.pack(">i", 254)

    database.with_suffix(".rdx").write_bytes(zlib.compress(_stream(named(named(place, "novel"), "variables"))))
    assert rdata.lazy_strings(database) == {"novel": values}


DOCUMENTS = st.lists(st.lists(st.integers(3, 60000), max_size=30), min_size=1, max_size=12)


def _packed(documents: list[list[int]], weights: list[float]) -> packed.Packed:
    pieces = [np.asarray([vocabulary.END, *document], np.uint16) for document in documents]
    begins = np.cumsum([0, *map(len, pieces)])
    held = {"novel": np.asarray([vocabulary.END, 5, 6, 7, 8, 9], np.uint16)}
    return packed.Packed(np.concatenate(pieces), begins, np.asarray(weights), held, {"novel": 20})


@given(documents=DOCUMENTS)
def test_packed_ids_are_read_back_as_they_were_written(
    documents: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("packed") / "packed.xz"
    written = _packed(documents, [1.0] * len(documents))
    packed.write(written, path)
    back = packed.read(path)
    np.testing.assert_array_equal(back.ids, written.ids)
    np.testing.assert_array_equal(back.begins, written.begins)
    np.testing.assert_array_equal(back.weights, written.weights)
    np.testing.assert_array_equal(back.held["novel"], written.held["novel"])
    assert back.held_bytes == written.held_bytes


@given(documents=DOCUMENTS, weight=st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0]), seed=st.integers(0, 9))
def test_an_epoch_repeats_a_document_as_its_weight_says(documents: list[list[int]], weight: float, seed: int) -> None:
    source = _packed([*documents, [1]], [weight] * len(documents) + [1.0])
    stream, begins = packed.epoch_stream(source, np.random.default_rng(seed))
    ends = [*begins[1:], len(stream)]
    found = [tuple(stream[begin:end]) for begin, end in zip(begins, ends, strict=True)]
    for document in {tuple(document) for document in documents} - {(1,)}:
        copies = documents.count(list(document))
        assert copies * int(weight) <= found.count((vocabulary.END, *document)) <= copies * int(np.ceil(weight))


@given(lengths=st.lists(st.integers(1, 40), min_size=5, max_size=30), seed=st.integers(0, 9))
def test_windows_lie_in_the_stream_and_about_half_begin_a_document(lengths: list[int], seed: int) -> None:
    begins = np.cumsum([0, *lengths[:-1]])
    stream = np.zeros(sum(lengths), np.uint16)
    starts = packed.windows(stream, begins, 8, np.random.default_rng(seed))
    assert ((starts >= 0) & (starts + 8 < len(stream))).all()
    assert len(starts) <= len(stream) // 8


@given(length=st.integers(2, 9), count=st.integers(1, 40))
def test_every_held_out_token_is_predicted_exactly_once_after_a_beginning(length: int, count: int) -> None:
    ids = np.arange(count, dtype=np.uint16)
    runs = packed.held_windows(ids, length)
    assert all(run[0] == ids[0] and len(run) <= length for run in runs)
    predicted = np.concatenate([run[1:] for run in runs]) if runs else np.empty(0, np.uint16)
    np.testing.assert_array_equal(predicted, ids[1:])


def test_a_thinned_source_is_taken_evenly() -> None:
    assert packed.thinned(list("abcdefgh"), 0.5) == list("bdfh")
    assert packed.thinned(list("abc"), 1.0) == list("abc")


def test_the_vocabulary_begins_every_text_as_opt_does(tmp_path: Path) -> None:
    tokenizer = vocabulary.train(["a cat and a dog and a cat"] * 3, 300)
    vocabulary.save(tokenizer, tmp_path, 512)
    back = tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert back.encode("a cat").ids[0] == vocabulary.END == back.token_to_id("</s>")
    assert [back.id_to_token(index) for index in range(4)] == list(vocabulary.SPECIAL)
    assert back.decode(back.encode("a cat, a caf\u00e9\n").ids) == "a cat, a caf\u00e9\n"


def test_every_held_out_text_is_shipped_and_named_in_its_readme() -> None:
    folder = ROOT / "tests/data/heldout"
    readme = (folder / "README.md").read_text("utf-8")
    texts = sorted(folder.glob("*.txt"))
    assert texts, "no held-out text is shipped"
    for path in texts:
        assert f"`{path.name}`" in readme
        assert len(path.read_text("utf-8")) > 10000


@given(
    weights=st.lists(st.sampled_from([0.0, 0.5, 1.5]), min_size=1, max_size=5).filter(any), tokens=st.integers(1, 60)
)
def test_a_sample_is_whole_documents_that_count_and_no_more_than_needed(weights: list[float], tokens: int) -> None:
    ids, length = np.arange(7 * len(weights), dtype=np.uint16), 7
    begins = np.arange(0, len(ids) + 1, length)
    found = packed.drawn(packed.Packed(ids, begins, np.array(weights), {}, {}), tokens, np.random.default_rng(tokens))
    assert sum(map(len, found)) - length < tokens <= sum(map(len, found))
    for document in found:
        assert weights[document[0] // length] > 0
        assert document.tolist() == list(range(document[0], document[0] + length))
