"""The tokenizer against `transformers` in every layout, and against documents that are damaged on purpose."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.errors import CheckpointError, FlexrefError, PromptError
from flexref.text.tokenizer import Tokenizer, tokenizer_json_from_files

LAYOUTS = (
    *("published", "named in the map", "no bos", "bos and eos", "prefix space", "added", "listed"),
    *("plain", "template", "galactica", "saved again", "both"),
)
ADDED = (
    "</s>",
    "<pad>",
    "<s>",
    "<unk>",
    "<ask>",
    "<tell>",
    "[START_REF]",
    "[END_REF]",
    "<t",
    " the",
    "2024",
    " ",
    "\n",
)
TEXTS = st.lists(st.text(max_size=6) | st.sampled_from(ADDED), max_size=8).map("".join)


def tokenizer_of(folder: Path) -> Tokenizer:
    data = tokenizer_json_from_files(folder)
    assert data is not None
    return Tokenizer.from_json(data)


@pytest.fixture(scope="module")
def pairs(layouts: dict[str, Path]) -> dict[str, tuple[Tokenizer, Any]]:
    """By layout: our tokenizer, and the oracle that `transformers` makes of the same folder."""
    transformers = pytest.importorskip("transformers", reason="the oracle needs transformers")

    assert set(layouts) == set(LAYOUTS)
    return {
        name: (tokenizer_of(folder), transformers.AutoTokenizer.from_pretrained(folder))
        for name, folder in layouts.items()
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@given(text=TEXTS)
def test_every_layout_encodes_as_transformers_does(
    pairs: dict[str, tuple[Tokenizer, Any]], layout: str, text: str
) -> None:
    tokenizer, oracle = pairs[layout]
    assert tokenizer.encode(text) == oracle(text)["input_ids"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("text", ["x</s>", "x<ask>", "x<tell>", "x<x<ask></s><t", "", " ", "</s>", "</s></s>a"])
def test_added_tokens_that_overlap_are_found_as_transformers_finds_them(
    pairs: dict[str, tuple[Tokenizer, Any]], layout: str, text: str
) -> None:
    tokenizer, oracle = pairs[layout]
    assert tokenizer.encode(text) == oracle(text)["input_ids"]


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
def test_every_layout_decodes_as_transformers_does(
    pairs: dict[str, tuple[Tokenizer, Any]], layout: str, data: st.DataObject
) -> None:
    tokenizer, oracle = pairs[layout]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocabulary_size + 3), max_size=12))
    assert tokenizer.decode(ids) == oracle.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert tokenizer.decode(ids, skip_special=False) == oracle.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("layout", ["published", "named in the map", "prefix space", "template", "saved again", "both"])
def test_opt_puts_its_beginning_first_exactly_once(layouts: dict[str, Path], layout: str) -> None:
    ids = tokenizer_of(layouts[layout]).encode("a good fortune")
    assert ids[0] == 2
    assert ids.count(2) == 1


@pytest.mark.parametrize("layout", ["galactica", "plain", "no bos"])
def test_a_folder_that_asks_for_no_beginning_gets_none(layouts: dict[str, Path], layout: str) -> None:
    assert 2 not in tokenizer_of(layouts[layout]).encode("a good fortune")


def test_without_a_configuration_the_published_one_is_assumed(
    tmp_path: Path, layouts: dict[str, Path], write_gpt2: Callable[..., Path]
) -> None:
    text = "want of</s> a wife<pad>"
    assert tokenizer_of(write_gpt2(tmp_path)).encode(text) == tokenizer_of(layouts["published"]).encode(text)


def test_windows_line_ends_in_merges_change_nothing(
    tmp_path: Path, layouts: dict[str, Path], write_gpt2: Callable[..., Path]
) -> None:
    merges = write_gpt2(tmp_path) / "merges.txt"
    merges.write_bytes(merges.read_bytes().replace(b"\n", b"\r\n"))
    text = "a truth universally acknowledged"
    assert tokenizer_of(tmp_path).encode(text) == tokenizer_of(layouts["published"]).encode(text)


@given(text=st.text(max_size=40))
def test_decoding_what_was_encoded_gives_the_text(bos_document: dict[str, Any], text: str) -> None:
    tokenizer = Tokenizer.from_json(json.dumps(bos_document).encode())
    # A `<` may begin the spelling of a special token, which decoding leaves out.
    plain = text.replace("<", "")
    assert tokenizer.decode(tokenizer.encode(plain)) == plain


def test_a_folder_without_a_tokenizer_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert tokenizer_json_from_files(tmp_path) is None


def test_the_vocabulary_counts_added_tokens(layouts: dict[str, Path], document: dict[str, Any]) -> None:
    size = len(document["model"]["vocab"])
    assert tokenizer_of(layouts["published"]).vocabulary_size == size
    assert tokenizer_of(layouts["added"]).vocabulary_size == size + 3
    assert tokenizer_of(layouts["listed"]).vocabulary_size == size + 2


def test_dropout_is_switched_off(document: dict[str, Any]) -> None:
    random = {**document, "model": {**document["model"], "dropout": 0.9}}
    plain = Tokenizer.from_json(json.dumps(document).encode())
    tokenizer = Tokenizer.from_json(json.dumps(random).encode())
    text = "universally acknowledged in possession of a good fortune"
    assert all(tokenizer.encode(text) == plain.encode(text) for _ in range(5))


def test_text_that_is_not_unicode_is_the_prompts_fault(document: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match="not valid Unicode"):
        Tokenizer.from_json(json.dumps(document).encode()).encode("half a pair: \ud83d")


def one_line(error: pytest.ExceptionInfo[FlexrefError]) -> str:
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


VOCABULARY_FAULTS = {
    "vocab.json": [
        b"",
        b"{",
        b"\xff{}",
        b"[]",
        b'{"a": -1}',
        b'{"a": 1.5}',
        b'{"a": true}',
        b'{"a": 0, "b": 0}',
        b"{}",
    ],
    "merges.txt": [b"\xff\xfe", b"#version: 0.2\na b c\n", b"#version: 0.2\na\n", b"qqqq zzzz\n"],
    "tokenizer_config.json": [
        *(b"[]", b"nul", b'{"add_bos_token": "yes", "bos_token": "</s>"}', b'{"bos_token": 7}', b'{"pad_token": {}}'),
        *(b'{"added_tokens_decoder": []}', b'{"added_tokens_decoder": {"x": "<x>"}}'),
        *(
            b'{"added_tokens_decoder": {"7": {"content": "<x>"}}}',
            b'{"added_tokens_decoder": {"2": {"content": "<x>"}}}',
        ),
        *(b'{"pad_token": {"content": "<pad>", "lstrip": 3}}', b'{"additional_special_tokens": "<x>"}'),
    ],
    "special_tokens_map.json": [b"3", b'{"bos_token": []}'],
    "added_tokens.json": [b"[1]", b'{"<x>": "7"}', b'{"<x>": 7}', b'{"": 9999}', b'{"<x>": 99999}'],
}


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name, contents in VOCABULARY_FAULTS.items() for content in contents]
)
def test_a_damaged_file_is_reported_in_one_line_with_its_folder(
    tmp_path: Path, write_gpt2: Callable[..., Path], name: str, content: bytes
) -> None:
    (write_gpt2(tmp_path) / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=str(tmp_path)) as error:
        tokenizer_json_from_files(tmp_path)
    one_line(error)


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_half_a_tokenizer_is_reported_by_the_missing_file(
    tmp_path: Path, write_gpt2: Callable[..., Path], missing: str
) -> None:
    (write_gpt2(tmp_path) / missing).unlink()
    with pytest.raises(CheckpointError, match=missing):
        tokenizer_json_from_files(tmp_path)


def test_a_link_to_nowhere_is_damage_and_not_a_missing_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        tokenizer_json_from_files(tmp_path)


ABORTS = {
    "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    "pre_tokenizer": {"type": "FixedLength", "length": 0},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    },
    "added_tokens": [{"id": 7, "content": "</s>", "special": True}],
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "é": 2}, "merges": [], "continuing_subword_prefix": "##"},
    "decoder": {"type": "CTC"},
}


@pytest.mark.parametrize("part", ABORTS)
def test_what_would_make_the_library_abort_is_refused_before(
    document: dict[str, Any], part: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CheckpointError, match="where it came from: ") as error:
        Tokenizer.from_json(json.dumps({**document, part: ABORTS[part]}).encode(), "where it came from")
    one_line(error)
    assert "panicked" not in capfd.readouterr().err


TEXT = {"Sequence": {"id": "A", "type_id": 0}}
CONTRADICTIONS = {
    "share the id 1": {"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 1}, "unk_token": "a"}},
    "holds the text 0 times": {
        "post_processor": {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}
    },
    "holds the text 2 times": {
        "post_processor": {"type": "TemplateProcessing", "single": [TEXT, TEXT], "pair": [], "special_tokens": {}}
    },
}


@pytest.mark.parametrize("reason", CONTRADICTIONS)
def test_what_the_library_would_take_but_no_model_can_mean_is_refused(document: dict[str, Any], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        Tokenizer.from_json(json.dumps({**document, **CONTRADICTIONS[reason]}).encode())


def use(data: bytes) -> FlexrefError | None:
    """Load a hostile document and, if it loads, use it; the error if there was one."""
    try:
        tokenizer = Tokenizer.from_json(data)
        ids = tokenizer.encode("a good fortune, 1813 🙂</s>")
        tokenizer.decode([*ids, 0, 5, 10**6])
        b"".join(tokenizer.token_bytes(token) for token in ids)
    except FlexrefError as error:
        return error
    return None


def assert_one_line_if_refused(data: bytes) -> None:
    error = use(data)
    assert error is None or (str(error) and "\n" not in str(error))


PATHS = (
    *(
        ("model",),
        ("model", "type"),
        ("model", "vocab"),
        ("model", "merges"),
        ("model", "unk_token"),
        ("model", "vocab", "a"),
    ),
    *(("model", "merges", 3), ("model", "merges", 3, 0), ("model", "end_of_word_suffix"), ("model", "byte_fallback")),
    *(("added_tokens",), ("added_tokens", 2), ("added_tokens", 2, "id"), ("added_tokens", 2, "content")),
    *(("added_tokens", 2, "special"), ("normalizer",), ("pre_tokenizer",), ("pre_tokenizer", "type"), ("decoder",)),
    *(("decoder", "type"), ("post_processor",), ("post_processor", "type"), ("post_processor", "single")),
    *(("post_processor", "single", 0), ("post_processor", "single", 1), ("post_processor", "special_tokens")),
    *(("post_processor", "special_tokens", "</s>"), ("post_processor", "special_tokens", "</s>", "ids")),
    *(("post_processor", "pair"), ("version",), ("truncation",), ("padding",)),
)
LEAVES = st.none() | st.booleans() | st.integers(-3, 2**33) | st.text(max_size=4) | st.sampled_from(["A", "B", "</s>"])
JUNK = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))


@given(path=st.sampled_from(PATHS), junk=JUNK)
def test_junk_in_any_place_is_refused_or_harmless(
    bos_document: dict[str, Any], path: tuple[Any, ...], junk: Any
) -> None:
    hostile = copy.deepcopy(bos_document)
    place = hostile
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = junk
    assert_one_line_if_refused(json.dumps(hostile).encode())


@given(data=st.data())
def test_random_damage_to_the_bytes_is_refused_or_harmless(bos_document: dict[str, Any], data: st.DataObject) -> None:
    damaged = bytearray(json.dumps(bos_document).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))
    assert_one_line_if_refused(bytes(damaged[:end]))


@given(junk=st.binary(max_size=64))
def test_bytes_that_are_no_document_are_refused(junk: bytes) -> None:
    with pytest.raises(CheckpointError) as error:
        Tokenizer.from_json(junk)
    one_line(error)


def test_endless_nesting_is_refused() -> None:
    with pytest.raises(CheckpointError, match="not JSON"):
        Tokenizer.from_json(b'{"model":' * 100_000)


def chained(kind: str, field: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {kind: {"type": "Sequence", field: list(parts)}}


def replace(found: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": found}, "content": content}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


MULTIPLIES = {
    "normalizer can make 1000 bytes of one": chained("normalizer", "normalizers", *[replace("t", "t" * 1000)] * 3),
    "normalizer has 10000": {"normalizer": {"type": "Prepend", "prepend": "t" * 10_000_000}},
    "normalizer has more than the 32 parts": chained("normalizer", "normalizers", *[{"type": "NFC"}] * 20_000),
    "pre_tokenizer has more than the 32 parts": chained(
        "pre_tokenizer", "pretokenizers", *[{"type": "Whitespace"}] * 20_000
    ),
    "decoder can make 1000000 bytes of one": chained(
        "decoder", "decoders", replace("t", "a" * 200), replace("a", "b" * 5000)
    ),
    "pre_tokenizer can make 343 bytes of one": chained(
        "pre_tokenizer", "pretokenizers", *[{"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"}] * 9
    ),
    "a repetition of what repeats itself": {"pre_tokenizer": split("(a+)+$")},
    "more than 2 repetitions without end": {"pre_tokenizer": split("a*a*a*a*b")},
    "a group of a kind that is not known": {"pre_tokenizer": split("(?#[)(a+)+$(?#])")},
    "a repetition of more than 256": {"pre_tokenizer": split("a{1,100000}")},
    "refers back to what it found": {"pre_tokenizer": split(r"(a*)\1b")},
    "more than 2 repetitions without": {"pre_tokenizer": split("(?:a*|b)(?:a*|b)(?:a*|b)c")},
    "template adds 65 tokens": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "x", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"x": {"id": "x", "ids": [2] * 65, "tokens": ["</s>"] * 65}},
        }
    },
    "has 2000000 characters": {"model": {"type": "WordLevel", "vocab": {"a" * 2_000_000: 0, "b": 1}, "unk_token": "b"}},
    "max_input_chars_per_word is 1000000": {
        "model": {
            "type": "WordPiece",
            "vocab": {"a": 0},
            "unk_token": "a",
            "max_input_chars_per_word": 1_000_000,
            "continuing_subword_prefix": "##",
        }
    },
}


@pytest.mark.parametrize("reason", MULTIPLIES)
def test_what_would_fill_the_memory_or_take_minutes_is_refused_before_it_is_tried(
    document: dict[str, Any], reason: str
) -> None:
    hostile = {"pre_tokenizer": None, **MULTIPLIES[reason]}
    if "model" in hostile:
        hostile["added_tokens"] = []
    with pytest.raises(CheckpointError, match=reason) as error:
        Tokenizer.from_json(json.dumps({**document, **hostile}).encode())
    assert len(one_line(error)) < 300


PUBLISHED_PATTERNS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"\n",
    r"[\x{2581}\x{0020}]|\x{2581}+|(?>\p{L}+)",
)


@pytest.mark.parametrize("pattern", PUBLISHED_PATTERNS)
def test_patterns_of_published_tokenizers_are_taken(document: dict[str, Any], pattern: str) -> None:
    parts = [split(pattern), document["pre_tokenizer"]]
    changed = {**document, "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts}}
    tokenizer = Tokenizer.from_json(json.dumps(changed).encode())
    assert tokenizer.decode(tokenizer.encode("a good fortune\n")) == "a good fortune\n"


def test_a_chain_of_moderate_parts_is_taken(document: dict[str, Any]) -> None:
    parts = [replace(" ", "\u2581"), {"type": "NFKC"}, {"type": "Lowercase"}]
    changed = {**document, **chained("normalizer", "normalizers", *parts)}
    assert Tokenizer.from_json(json.dumps(changed).encode()).encode("A b")


def test_a_text_beyond_what_a_tokenizer_can_work_on_is_refused(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flexref.text.tokenizer.MAX_EXPANDED_BYTES", 4000)
    tokenizer = Tokenizer.from_json(json.dumps(document).encode())
    assert tokenizer.encode("a" * 1000)
    with pytest.raises(PromptError, match="1001 bytes, at most 1000 are taken"):
        tokenizer.encode("a" * 1001)


@given(text=TEXTS | st.text(max_size=60))
def test_no_token_stands_for_more_bytes_than_the_bound_says(document: dict[str, Any], text: str) -> None:
    tokenizer = Tokenizer.from_json(json.dumps(document).encode())
    assert tokenizer.token_bytes_most is not None
    assert len(text.encode()) <= tokenizer.token_bytes_most * len(tokenizer.encode(text))


@given(text=TEXTS | st.text(max_size=60), prefix_space=st.booleans())
def test_no_text_becomes_more_tokens_than_the_bound_says(
    bos_document: dict[str, Any], galactica_document: dict[str, Any], text: str, prefix_space: bool
) -> None:
    before = {**bos_document["pre_tokenizer"], "add_prefix_space": prefix_space}
    for document in ({**bos_document, "pre_tokenizer": before}, galactica_document):
        tokenizer = Tokenizer.from_json(json.dumps(document).encode())
        assert len(tokenizer.encode(text)) <= tokenizer.tokens_most(len(text.encode()))
    plain = Tokenizer.from_json(json.dumps(bos_document).encode())
    assert plain.tokens_most(100) == 101


def test_there_is_no_such_bound_where_text_may_be_dropped(document: dict[str, Any]) -> None:
    stripping = {**document["added_tokens"][0], "lstrip": True}
    removed = {"type": "Split", "pattern": {"String": "x"}, "behavior": "Removed", "invert": False}
    for change in (
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"added_tokens": [stripping, *document["added_tokens"][1:]]},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [removed, document["pre_tokenizer"]]}},
        {"pre_tokenizer": {"type": "Whitespace"}},
    ):
        assert Tokenizer.from_json(json.dumps({**document, **change}).encode()).token_bytes_most is None
