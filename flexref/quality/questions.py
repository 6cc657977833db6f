"""Questions with choices, as they are distributed in JSON lines; it knows neither tokens nor models.

Three layouts, told apart by their keys; keys that are not named are ignored.

- `last_word` (LAMBADA): {"text"}: its last word is to be predicted from all before it, greedily.
- `ending` (HellaSwag): {"ctx" or "ctx_a" with "ctx_b", "endings", "label"}, and "activity_label" where it is there.
- `letter` (MMLU): {"question", "choices", "answer"}, the answer as a letter from A on or as a number from 0 on.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexref.errors import PromptError
from flexref.files import as_text, read_bytes
from flexref.json_types.containers import ListOf
from flexref.json_types.parsing import as_json
from flexref.json_types.values import JsonType, Text, Whole, shown

MOST_CHOICES = 26
"""Choices are named by letters."""

TEXT = Text()

CHOICES = ListOf(TEXT, 2, MOST_CHOICES, said=f"a list of 2 to {MOST_CHOICES} texts")


@dataclass(frozen=True, slots=True)
class Question:
    """A context and what may follow it, of which number `answer` is right.

    With one choice alone the question is whether that is what the model would say. `place` names its file and line.
    `labels` are the choices without what joins them to the context: by them lengths are counted.
    """

    place: str
    layout: str
    context: str
    choices: tuple[str, ...]
    labels: tuple[str, ...]
    answer: int


def read_questions(path: Path | str) -> list[Question]:
    """The questions of a file in JSON lines, all of one layout; lines that are blank are skipped.

    Raises `StorageError` if it cannot be read; `PromptError` naming the line, what was found there and what was needed.
    """
    path = Path(path)
    data = read_bytes(path).removeprefix(b"\xef\xbb\xbf")
    questions: list[Question] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        question = _question(_record(line, place), place)
        first = questions[0] if questions else question
        if question.layout != first.layout:
            raise PromptError(f"{place}: found the layout {question.layout}, needed {first.layout} as in {first.place}")
        questions.append(question)
    if not questions:
        raise PromptError(f"{path}: holds no question")
    return questions


def _record(line: bytes, place: str) -> Mapping[str, Any]:
    record = as_json(as_text(line, place, PromptError), place, PromptError)
    if not isinstance(record, dict):
        raise PromptError(f"{place}: needed a JSON object, found {shown(record)}")
    return record


def _question(record: Mapping[str, Any], place: str) -> Question:
    if "endings" in record:
        return _ending(record, place)
    if "choices" in record:
        return _letter(record, place)
    if "text" in record:
        return _last_word(record, place)
    raise PromptError(
        f"{place}: needed `text` (LAMBADA), `endings` (HellaSwag) or `choices` (MMLU), found the keys "
        f"{shown(sorted(record))}"
    )


def _last_word(record: Mapping[str, Any], place: str) -> Question:
    text = _text(record, "text", place).rstrip()
    context, _, word = text.rpartition(" ")
    if not context.strip() or not word:
        raise PromptError(f"{place}: `text` must be words of which the last is predicted, found {shown(text)}")
    return Question(place, "last_word", context, (f" {word}",), (word,), 0)


def _ending(record: Mapping[str, Any], place: str) -> Question:
    if "ctx_a" in record and "ctx_b" in record:
        context = f"{_text(record, 'ctx_a', place)} {_text(record, 'ctx_b', place).capitalize()}"
    else:
        context = _text(record, "ctx", place)
    if "activity_label" in record:
        context = f"{_text(record, 'activity_label', place)}: {context}"
    endings = tuple(_cleaned(ending) for ending in _texts(record, "endings", place))
    if not all(endings):
        raise PromptError(f"{place}: every text of `endings` must hold a word, found {shown(record['endings'])}")
    answer = _answer(record, "label", len(endings), place)
    return Question(place, "ending", _cleaned(context), tuple(f" {ending}" for ending in endings), endings, answer)


def _letter(record: Mapping[str, Any], place: str) -> Question:
    choices = _texts(record, "choices", place)
    letters = [chr(ord("A") + place) for place in range(len(choices))]
    lines = [
        _text(record, "question", place).strip(),
        *(f"{name}. {text}" for name, text in zip(letters, choices, strict=True)),
    ]
    opening = ""
    if isinstance(record.get("subject"), str) and record["subject"]:
        about = _text(record, "subject", place).replace("_", " ")
        opening = f"The following are multiple choice questions (with answers) about {about}.\n\n"
    context = opening + "\n".join([*lines, "Answer:"])
    answer = _answer(record, "answer", len(choices), place)
    return Question(place, "letter", context, tuple(f" {name}" for name in letters), tuple(letters), answer)


def _cleaned(text: str) -> str:
    """HellaSwag's texts without the marks of their source, WikiHow: `[title]`, `[step]`, `[header]`."""
    return re.sub(r" {2,}", " ", re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))).strip()


def _read(kind: JsonType, record: Mapping[str, Any], key: str, place: str) -> Any:
    if key not in record:
        raise PromptError(f"{place}: `{key}` must be {kind.needed}, found none")
    return kind.read(f"{place}: `{key}`", record[key], PromptError)


def _text(record: Mapping[str, Any], key: str, place: str) -> str:
    return str(_read(TEXT, record, key, place))


def _texts(record: Mapping[str, Any], key: str, place: str) -> tuple[str, ...]:
    found: tuple[str, ...] = _read(CHOICES, record, key, place)
    return found


def _answer(record: Mapping[str, Any], key: str, choices: int, place: str) -> int:
    """The number of the right choice from 0 on: as such, in digits, or as a letter."""
    value: Any = record.get(key)
    last = chr(ord("A") + choices - 1)
    if isinstance(value, str):
        name = value.strip()
        if re.fullmatch(r"[0-9]{1,2}", name):
            value = int(name)
        elif re.fullmatch(r"[A-Za-z]", name):
            value = ord(name.upper()) - ord("A")
    kind = Whole(0, choices - 1, said=f"a number from 0 to {choices - 1} or a letter to {last}")
    return int(value if kind.takes(value) else _read(kind, record, key, place))
