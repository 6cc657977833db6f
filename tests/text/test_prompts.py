"""Prompts in files and in lists: what is read, and which line or number a complaint names."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.errors import FlexrefError, PromptError, StorageError
from flexref.text.prompts import Prompt, all_token_ids, new_token_room, read_prompts, to_token_ids
from flexref.text.tokenizer import Tokenizer

LINES = st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), min_size=1).filter(str.strip)
IDS = st.lists(st.integers(0, 99), min_size=1, max_size=8)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prompts")


@pytest.fixture(scope="module")
def tokenizer(bos_document: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_json(json.dumps(bos_document).encode())


@given(
    # A first line that is a JSON object would make it another kind of file, a mark at the start is not text.
    lines=st.lists(LINES, min_size=1, max_size=5).filter(lambda lines: lines[0][0] not in "{ \t\ufeff"),
    end=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
)
def test_each_line_of_a_text_file_is_a_prompt_as_it_stands(
    folder: Path, lines: list[str], end: str, mark: bool
) -> None:
    path = folder / "prompts.txt"
    path.write_bytes((("\ufeff" if mark else "") + end.join(lines) + end).encode())
    assert read_prompts(path) == [Prompt(text=line) for line in lines]
    path.write_bytes(end.join(lines).encode())
    assert read_prompts(path) == [Prompt(text=line) for line in lines]


@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.JSON", "prompts.txt"])
@given(values=st.lists(st.text(min_size=1).filter(str.strip) | IDS, min_size=1, max_size=5))
def test_json_lines_hold_text_or_token_ids_whatever_the_file_is_called(
    folder: Path, name: str, values: list[str | list[int]]
) -> None:
    path = folder / name
    path.write_text("".join(json.dumps({"id": 7, "prompt": value}) + "\n" for value in values))
    expected = [
        Prompt(text=value, record_id=7) if isinstance(value, str) else Prompt(token_ids=tuple(value), record_id=7)
        for value in values
    ]
    assert read_prompts(path, vocabulary=100) == expected


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"one\ntw\xff\n", "UTF-8"),
        ("a.jsonl", b'{"prompt": "one"}\n{"prompt": ""}\n', "empty"),
        ("a.jsonl", b'{"prompt": "one"}\n{"prompt": []}\n', "empty"),
        (
            "a.jsonl",
            b'{"prompt": "one"}\n{"prompt": "a", "max_tokens": 3}',
            "'max_tokens'.*: prompt, id; .*--max-new-tokens",
        ),
        ("a.jsonl", b'{"prompt": "one"}\n{"prompt": "a", "id": 1, "id": 2}', "the key 'id' stands twice"),
        ("a.jsonl", b'{"prompt": "one"}\n{"prompt": "a", "id": "\\ud800"}', "half of a surrogate pair"),
        ("a.jsonl", b'{"prompt": "one"}\n{"promt": "a"}', "'promt' is not known.*did you mean `prompt`"),
        ("a.jsonl", b'{"prompt": "one"}\n{"prompt": "a", "zzz": 3}', "'zzz' is not known; known: prompt, id$"),
        ("a.jsonl", b'{"prompt": "one"}\n{"prompt": "a", "id": 1.5}', "`id` must be an integer or text"),
        ("a.jsonl", b'{"prompt": "one"}\n{"prompt": "a", "id": [1]}', "`id` must be an integer or text"),
        ("a.jsonl", b'{"prompt": "one"}\n{"prompt": \n', "not JSON"),
        ("a.jsonl", b'{"prompt": "one"}\n' + b"[" * 100_000, "not JSON"),
        ("a.jsonl", b'{"prompt": "one"}\n{"prompt": [' + b"9" * 5000 + b"]}", "not JSON"),
        ("a.jsonl", b'{"prompt": "one"}\n["two"]\n', "prompt"),
        ("a.jsonl", b'{"prompt": "one"}\n{"text": "two"}\n', "prompt"),
        ("a.jsonl", b'{"prompt": "one"}\n{"prompt": 2}\n', "int"),
        ("a.jsonl", b'{"prompt": "one"}\n{"prompt": null}\n', "NoneType"),
        ("a.jsonl", b'{"prompt": "one"}\n{"prompt": [1, "2"]}\n', "'2'"),
        ("a.jsonl", b'{"prompt": "one"}\n{"prompt": [1, 2.0]}\n', "2.0"),
        ("a.jsonl", b'{"prompt": "one"}\n{"prompt": [1, true]}\n', "True"),
        ("a.jsonl", b'{"prompt": "one"}\n{"prompt": [1, -1]}\n', "-1"),
        ("a.jsonl", b'{"prompt": "one"}\n{"prompt": [1, 100]}\n', "100"),
        ("a.txt", b'{"prompt": "one"}\ntwo\n', "not JSON"),
    ],
)
def test_a_bad_line_is_named_with_its_file(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PromptError, match=reason) as error:
        read_prompts(path, vocabulary=100)
    assert str(error.value).startswith(f"{path}, line 2: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xef\xbb\xbf"])
def test_a_file_without_prompts_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "empty.txt").write_bytes(content)
    with pytest.raises(PromptError, match=r"empty\.txt"):
        read_prompts(tmp_path / "empty.txt")


@pytest.mark.parametrize("name", ["nowhere.txt", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        read_prompts(tmp_path / name)


def prompts_or_error(path: Path) -> list[Prompt] | FlexrefError:
    try:
        return read_prompts(path)
    except FlexrefError as error:
        return error


@given(junk=st.binary(max_size=60), name=st.sampled_from(["junk.txt", "junk.jsonl"]))
def test_any_file_gives_prompts_or_one_line(folder: Path, junk: bytes, name: str) -> None:
    path = folder / name
    path.write_bytes(junk)
    outcome = prompts_or_error(path)
    if isinstance(outcome, FlexrefError):
        assert str(outcome).startswith(str(path))
        assert "\n" not in str(outcome)
    else:
        assert len(outcome) >= 1


def test_text_becomes_what_the_tokenizer_makes_of_it(tokenizer: Tokenizer) -> None:
    ids = to_token_ids(Prompt(text="a wife"), tokenizer, 400, 64, 1)
    assert ids == tuple(tokenizer.encode("a wife"))
    assert ids[0] == 2


def test_token_ids_are_taken_as_they_are_and_need_no_tokenizer() -> None:
    assert to_token_ids(Prompt(token_ids=(7, 2, 399)), None, 400, 64, 1) == (7, 2, 399)


@given(positions=st.integers(1, 12), prompt=st.integers(1, 14), new=st.integers(1, 14))
def test_a_prompt_fits_if_it_has_no_more_tokens_than_there_are_positions(positions: int, prompt: int, new: int) -> None:
    row = Prompt(token_ids=(5,) * prompt)
    room = new_token_room(prompt, positions, new)
    if prompt <= positions:
        assert to_token_ids(row, None, 400, positions, new) == row.token_ids
        assert prompt + room == min(prompt + new, positions + 1)
    else:
        assert room == 0
        with pytest.raises(PromptError, match=f"^prompt 1: {prompt} tokens.* {positions} positions"):
            to_token_ids(row, None, 400, positions, new)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Prompt(text=""), "empty"),
        (Prompt(token_ids=()), "empty"),
        (Prompt(text="a wife"), "no tokenizer"),
        (Prompt(token_ids=(1, -2)), "token 2 is -2"),
        (Prompt(token_ids=(1, 400)), "token 2 is 400.* 400 tokens"),
        (Prompt(token_ids=(True,)), "True"),
        (Prompt(token_ids=("a",)), "'a'"),  # type: ignore[arg-type]
    ],
)
def test_a_bad_prompt_is_named_by_its_number(bad: Prompt, reason: str, tokenizer: Tokenizer) -> None:
    reader = None if "tokenizer" in reason else tokenizer
    with pytest.raises(PromptError, match=f"^prompt 2: .*{reason}"):
        all_token_ids([Prompt(token_ids=(1, 2)), bad], reader, 400, 64, 8)


def test_text_that_is_not_unicode_is_named_by_its_number(tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptError, match=r"^prompt 3: .*not valid Unicode"):
        to_token_ids(Prompt(text="\udcff"), tokenizer, 400, 64, 8, number=3)


def test_a_tokenizer_larger_than_the_model_is_caught(tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptError, match=r"^prompt 1: token 1 is 2"):
        to_token_ids(Prompt(text="a wife"), tokenizer, 2, 64, 8)


@pytest.mark.parametrize("both", [{}, {"text": "a", "token_ids": (1,)}])
def test_a_prompt_is_either_text_or_token_ids(both: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match="either"):
        Prompt(**both)


@pytest.mark.parametrize("new", [0, -3])
def test_no_new_tokens_is_no_job(new: int) -> None:
    with pytest.raises(PromptError, match=str(new)):
        new_token_room(1, 8, new)


def test_a_text_that_cannot_fit_is_refused_by_its_bytes_and_not_tokenized(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text: pytest.fail("it was tokenized"))
    most = tokenizer.token_bytes_most
    assert most is not None
    with pytest.raises(PromptError, match=f"^prompt 1: 10000000 bytes of text are too many: .*more than {most} bytes"):
        to_token_ids(Prompt(text="a" * 10_000_000), tokenizer, 400, 64, 1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"\none\n\n \t\ntwo\n"),
        ("a.jsonl", b'\r\n{"prompt": "one"}\n\n  \n{"prompt": "two"}\n'),
        ("a.txt", b'\n{"prompt": "one"}\n\n\n{"prompt": "two"}'),
    ],
)
def test_blank_lines_are_skipped_and_told_once(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    told: list[int] = []
    assert [prompt.text for prompt in read_prompts(tmp_path / name, on_blank=told.append)] == ["one", "two"]
    assert told == [3]


def test_lines_after_blank_ones_keep_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "one"}\n\n\n{"prompt": 2}\n')
    with pytest.raises(PromptError, match=r"a\.jsonl, line 4: "):
        read_prompts(tmp_path / "a.jsonl")


@pytest.mark.parametrize("content", [b"one\ntwo\n", b'{"prompt": "one"}\n{"prompt": "two"}\n'])
def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert [prompt.text for prompt in read_prompts("-")] == ["one", "two"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content + b"\xff")))
    with pytest.raises(PromptError, match=r"^standard input, line 3: not UTF-8"):
        read_prompts("-")


def test_a_closed_standard_input_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(StorageError, match="standard input cannot be read"):
        read_prompts("-")
