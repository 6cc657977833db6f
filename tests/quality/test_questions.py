"""Questions in the layouts in which they are distributed, and one clear line for every other file."""

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.errors import FlexrefError, PromptError, StorageError
from flexref.quality.questions import Question, read_questions

HELLASWAG = {
    "ind": 24,
    "activity_label": "Roof shingle removal",
    "ctx_a": "A man is sitting on a roof.",
    "ctx_b": "he",
    "ctx": "A man is sitting on a roof. he",
    "split": "val",
    "endings": ["is using wrap.", "is ripping  tiles [step] off.", "holds a cube.", "starts pulling up roofing."],
    "label": 3,
}
MMLU = {
    "question": "Find the degree for the given field extension Q(sqrt(2)) over Q.\n",
    "subject": "abstract_algebra",
    "choices": ["0", "4", "2", "6"],
    "answer": 2,
}


def read(*records: Any) -> list[Question]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "q.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return read_questions(path)


def test_lambada_asks_for_the_last_word() -> None:
    (question,) = read({"text": "he had a dark and thick voice.\nhe said, yes\n", "domain": None})
    assert question == Question(
        question.place, "last_word", "he had a dark and thick voice.\nhe said,", (" yes",), ("yes",), 0
    )


def test_hellaswag_joins_label_and_both_contexts_and_takes_marks_out() -> None:
    (question,) = read(HELLASWAG)
    assert question.context == "Roof shingle removal: A man is sitting on a roof. He"
    assert question.labels[1] == "is ripping tiles off."
    assert question.choices == tuple(f" {label}" for label in question.labels)
    assert (question.layout, question.answer) == ("ending", 3)
    (title,) = read({"ctx": "How to dry [title] Hang it up. [step] Wait.", "endings": ["a [x] b", "c"], "label": "1"})
    assert (title.context, title.labels, title.answer) == ("How to dry. Hang it up. Wait.", ("a b", "c"), 1)


def test_mmlu_names_choices_by_letters() -> None:
    (question,) = read(MMLU)
    assert question.context == (
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
        "Find the degree for the given field extension Q(sqrt(2)) over Q.\nA. 0\nB. 4\nC. 2\nD. 6\nAnswer:"
    )
    assert (question.choices, question.labels) == ((" A", " B", " C", " D"), ("A", "B", "C", "D"))


@pytest.mark.parametrize("answer", [2, "2", "C", "c", " C "])
def test_an_answer_is_a_number_digits_or_a_letter(answer: object) -> None:
    (question,) = read({**MMLU, "answer": answer})
    assert question.answer == 2


def test_blank_lines_count_and_are_skipped() -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "q.jsonl"
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(MMLU).encode() + b"\r\n\n  \n" + json.dumps(MMLU).encode())
        assert [question.place for question in read_questions(path)] == [f"{path}, line {line}" for line in (1, 4)]


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ([1], "needed a JSON object, found [1]"),
        ({}, "needed `text` (LAMBADA), `endings` (HellaSwag) or `choices` (MMLU), found the keys []"),
        ({"text": 3}, "`text` must be text, found 3"),
        ({"text": "word"}, "`text` must be words of which the last is predicted, found 'word'"),
        ({"text": ""}, "found ''"),
        ({"text": "half a \ud800"}, "is half of a surrogate pair"),
        ({**HELLASWAG, "label": ""}, "`label` must be a number from 0 to 3 or a letter to D, found ''"),
        ({**HELLASWAG, "label": 4}, "found 4"),
        ({**HELLASWAG, "label": True}, "found True"),
        ({key: value for key, value in HELLASWAG.items() if key != "label"}, "found none"),
        ({**HELLASWAG, "endings": ["one"]}, "`endings` must be a list of 2 to 26 texts, found ['one']"),
        ({**HELLASWAG, "endings": ["one", "[step] "]}, "every text of `endings` must hold a word"),
        ({**HELLASWAG, "endings": ["one", 2]}, "`endings` must be text, found 2"),
        ({"endings": ["one", "two"], "label": 0}, "`ctx` must be text, found none"),
        ({**MMLU, "choices": "ABCD"}, "`choices` must be a list of 2 to 26 texts, found 'ABCD'"),
        ({**MMLU, "choices": ["x"] * 27}, "`choices` must be a list"),
        ({**MMLU, "answer": "E"}, "`answer` must be a number from 0 to 3 or a letter to D, found 'E'"),
        ({**MMLU, "answer": -1}, "found -1"),
        ({**MMLU, "answer": 1.0}, "found 1.0"),
        ({**MMLU, "question": None}, "`question` must be text, found None"),
        ({**MMLU, "subject": "half a \ud800"}, "is half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_with_what_was_found_and_needed(record: object, complaint: str) -> None:
    with pytest.raises(PromptError, match=r"q\.jsonl, line 1: ") as refused:
        read(record)
    assert complaint in str(refused.value)


def test_layouts_are_not_mixed() -> None:
    with pytest.raises(PromptError, match=r"2: found the layout last_word, needed letter as in .*q\.jsonl, line 1"):
        read(MMLU, {"text": "one two"})


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "holds no question"),
        (b"\n\n", "holds no question"),
        (b"{", "line 1: not JSON"),
        (b'{"text": "a b"}\n\xff', "line 2: not UTF-8"),
        (b"[" * 100_000, "line 1: not JSON"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, data: bytes, complaint: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(data)
    with pytest.raises(PromptError, match=complaint):
        read_questions(path)
    with pytest.raises(StorageError, match="cannot be read"):
        read_questions(tmp_path)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 30) | st.floats() | st.text(max_size=8) | st.sampled_from("ABCDa"),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
KEYS = (
    "text",
    "ctx",
    "ctx_a",
    "ctx_b",
    "endings",
    "label",
    "activity_label",
    "question",
    "choices",
    "answer",
    "subject",
)
RECORDS = st.dictionaries(st.sampled_from(KEYS), ANY | st.lists(st.text(max_size=5), max_size=5), max_size=8)


@given(st.lists(st.one_of(RECORDS.map(lambda record: json.dumps(record).encode()), st.binary(max_size=30)), max_size=4))
def test_hostile_lines_are_questions_or_one_clear_line(lines: list[bytes]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "q.jsonl"
        path.write_bytes(b"\n".join(lines))
        try:
            questions = read_questions(path)
        except FlexrefError as error:
            assert type(error) is PromptError and re.search(r"line [1-9]\d*: |holds no question", str(error))  # noqa: PT017, PT018
            return
    for question in questions:
        assert 0 <= question.answer < len(question.choices) == len(question.labels)
        assert all(choice.strip() and label for choice, label in zip(question.choices, question.labels, strict=True))
