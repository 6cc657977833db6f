"""Small byte-level tokenizers in every layout in which a Hugging Face folder keeps one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

CORPUS = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must want a wife.",
    "However little known the feelings or views of such a man may be on his first entering a neighbourhood, 1813!",
    "naïve café, Straße, Привет мир, 日本語の文章, emoji 🙂🙃 and tabs\tand\nnew lines; the the the 2024 3.14159",
)

OPT_SPECIAL_TOKENS = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}


def token_object(content: str) -> dict[str, Any]:
    """A special token in the long form of the published OPT folders."""
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {"__type": "AddedToken", "content": content, **flags}


@pytest.fixture(scope="session")
def document() -> dict[str, Any]:
    """A trained byte-level BPE as a tokenizer document: no post-processor, OPT's first four tokens."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(CORPUS * 3, trainer)
    return json.loads(trained.to_str())


@pytest.fixture(scope="session")
def bos_document(document: dict[str, Any]) -> dict[str, Any]:
    """The same with OPT's post-processor: `</s>` before every text."""
    piece, text = {"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [piece, text],
        "pair": [piece, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}},
    }
    return {**document, "post_processor": template}


@pytest.fixture(scope="session")
def galactica_document(document: dict[str, Any]) -> dict[str, Any]:
    """As Galactica has it: digits alone, tokens in brackets, no `</s>` first, padding and truncation left on."""
    split = {"type": "Split", "pattern": {"Regex": r"(\[START_REF\]|\[END_REF\])"}, "behavior": "Isolated"}
    digits = {"type": "Digits", "individual_digits": True}
    parts = [{**split, "invert": False}, digits, {**document["pre_tokenizer"]}]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    size = len(document["model"]["vocab"])
    added = [{"id": size + place, "content": name, **flags} for place, name in enumerate(("[START_REF]", "[END_REF]"))]
    padding = {"strategy": {"Fixed": 16}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 1}
    return {
        **document,
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {**padding, "pad_type_id": 0, "pad_token": "<pad>"},
        "added_tokens": [*document["added_tokens"], *added],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts},
    }


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture(scope="session")
def write_gpt2(document: dict[str, Any]) -> Callable[..., Path]:
    """Write vocab.json and merges.txt into a folder, and the JSON files given by name."""

    def write(folder: Path, **files: Any) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "vocab.json", document["model"]["vocab"])
        merges = "".join(f"{left} {right}\n" for left, right in document["model"]["merges"])
        (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
        for name, value in files.items():
            write_json(folder / f"{name}.json", value)
        return folder

    return write


@pytest.fixture(scope="session")
def layouts(
    tmp_path_factory: pytest.TempPathFactory,
    write_gpt2: Callable[..., Path],
    document: dict[str, Any],
    bos_document: dict[str, Any],
    galactica_document: dict[str, Any],
) -> dict[str, Path]:
    """A folder for every layout, by name; each has a config.json of OPT, which the oracle asks for."""
    transformers = pytest.importorskip("transformers", reason="the oracle needs transformers: pip install '.[oracle]'")

    root = tmp_path_factory.mktemp("layouts")
    published = {name: token_object(content) for name, content in OPT_SPECIAL_TOKENS.items()}
    published |= {
        "errors": "replace",
        "add_prefix_space": False,
        "add_bos_token": True,
        "tokenizer_class": "GPT2Tokenizer",
    }
    flags = {key: value for key, value in token_object("").items() if key not in ("__type", "content")}
    size = len(document["model"]["vocab"])
    listed = {"1": "<pad>", "2": "</s>", str(size): "<ask>", str(size + 1): "<tell>"}
    decoder = {key: {"content": content, **flags, "special": content[1] != "t"} for key, content in listed.items()}
    named = {**OPT_SPECIAL_TOKENS, "add_bos_token": True}
    # `x<` would hide the beginning of a special token, were it not looked for after them.
    added = {"<ask>": size, "<tell>": size + 1, "x<": size + 2}
    extra, ignored = {**published, "additional_special_tokens": ["<ask>"]}, {"pad_token": "<never>"}
    write_gpt2(root / "published", tokenizer_config=published, special_tokens_map=OPT_SPECIAL_TOKENS)
    write_gpt2(
        root / "named in the map",
        tokenizer_config={"add_bos_token": True},
        special_tokens_map=OPT_SPECIAL_TOKENS,
        added_tokens={"x<": size},
    )
    write_gpt2(root / "no bos", tokenizer_config={**named, "add_bos_token": False})
    write_gpt2(root / "bos and eos", tokenizer_config={**named, "add_eos_token": True})
    write_gpt2(root / "prefix space", tokenizer_config={**published, "add_prefix_space": True})
    write_gpt2(root / "added", tokenizer_config=extra, special_tokens_map=OPT_SPECIAL_TOKENS, added_tokens=added)
    listing = {**published, "added_tokens_decoder": decoder}
    write_gpt2(root / "listed", tokenizer_config=listing, special_tokens_map=ignored)
    for name, content in (("plain", document), ("template", bos_document), ("galactica", galactica_document)):
        (root / name).mkdir()
        write_json(root / name / "tokenizer.json", content)
        write_json(root / name / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    transformers.GPT2Tokenizer.from_pretrained(root / "published").save_pretrained(root / "saved again")
    write_gpt2(root / "both", tokenizer=bos_document, tokenizer_config={**named, "add_bos_token": False})
    for folder in root.iterdir():
        write_json(folder / "config.json", {"model_type": "opt"})
    return {folder.name: folder for folder in root.iterdir()}
