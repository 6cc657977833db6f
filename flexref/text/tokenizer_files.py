"""One tokenizer document from the files that a Hugging Face folder keeps a tokenizer in; it knows no tokenizer library.

What the files mean is what `transformers` makes of them:

- `tokenizer.json` stands for itself. Its post-processor alone decides whether `</s>` is put first (Galactica's does
  not); an `add_bos_token` in `tokenizer_config.json` has no say where there is a `tokenizer.json`.
- `vocab.json` with `merges.txt` is GPT-2's byte-level BPE, and `add_bos_token` decides. Where there is no
  `tokenizer_config.json` the one that every published OPT has is assumed: `</s>` first, `</s>` and `<pad>` special.
- Special tokens that `tokenizer_config.json`, `special_tokens_map.json` or `added_tokens.json` name are added.
- A chat template and the names of special tokens are kept beside the tokenizer (`chat_document`).
"""

from os.path import lexists  # a link to nowhere is a damaged file, not a missing one
from pathlib import Path
from typing import Any

from flexref.errors import CheckpointError
from flexref.files import LARGEST_JSON_BYTES, as_text, read_bytes
from flexref.json_types.parsing import as_json
from flexref.text.chat_document import CHAT, NAMED_TOKENS, chat_from_files
from flexref.text.tokenizer_bounds import tokens_of
from flexref.text.tokenizer_check import check_document, check_vocabulary, is_token_id

OPT_CONFIG = {
    "bos_token": "</s>",
    "eos_token": "</s>",
    "unk_token": "</s>",
    "pad_token": "<pad>",
    "add_bos_token": True,
}
"""What the published OPT folders' tokenizer_config.json says."""

AddedToken = dict[str, Any]
"""One entry of a tokenizer document's `added_tokens`."""


def document_from_files(folder: Path) -> dict[str, Any] | None:
    """The tokenizer document of `folder`, or None if it has no tokenizer; `CheckpointError` names the damaged file."""
    config = _read_object(folder / "tokenizer_config.json")
    document_path, vocabulary_path, merges_path = (
        folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt")
    )
    if lexists(document_path):
        document = check_document(_without_chat(_parse(document_path)), str(document_path))
        config = config or {}
        named = _named_tokens(config, folder)
        _add_tokens(document, config, named, folder)
        _add_chat(document, config, named, folder)
        return document
    if not lexists(vocabulary_path) and not lexists(merges_path):
        return None
    vocabulary = check_vocabulary(_parse(vocabulary_path), str(vocabulary_path))
    if config is None:
        config = {key: value for key, value in OPT_CONFIG.items() if value is True or value in vocabulary}
    document = _byte_level(vocabulary, _read_merges(merges_path), _flag(config, "add_prefix_space", folder))
    named = _named_tokens(config, folder)
    _add_tokens(document, config, named, folder)
    document["post_processor"] = _post_processor(document, config, named, folder)
    _add_chat(document, config, named, folder)
    return document


def _without_chat(document: Any) -> Any:
    """A `tokenizer.json` without a key that is ours and means something else there, if anything."""
    return {key: value for key, value in document.items() if key != CHAT} if isinstance(document, dict) else document


def _add_chat(document: dict[str, Any], config: dict[str, Any], named: dict[str, Any], folder: Path) -> None:
    """Add the folder's chat template to the document, if it has one."""
    tokens = {
        name: _added_token(named[name], special=True, source=folder)["content"]
        for name in NAMED_TOKENS
        if named.get(name) is not None
    }
    chat = chat_from_files(folder, config, tokens)
    if chat is not None:
        document[CHAT] = chat


def _read_text(path: Path) -> str:
    return as_text(read_bytes(path, CheckpointError, most_bytes=LARGEST_JSON_BYTES), path, CheckpointError)


def _parse(path: Path) -> Any:
    return as_json(_read_text(path), path, CheckpointError)


def _read_object(path: Path) -> dict[str, Any] | None:
    if not lexists(path):
        return None
    value = _parse(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: needed a JSON object, found {type(value).__name__}")
    return value


def _read_merges(path: Path) -> list[list[str]]:
    """The merges in order; lines end in a line feed alone, since other separators are legal inside a token."""
    lines = _read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    merges = []
    for number, line in enumerate(lines, start=1):
        if line.startswith("#version"):
            continue
        pair = line.removesuffix("\r").split(" ")
        if len(pair) != 2 or not all(pair):
            raise CheckpointError(f"{path}: line {number} is no merge of two tokens: {line[:80]!r}")
        merges.append(pair)
    return merges


def _byte_level(vocabulary: dict[str, int], merges: list[list[str]], add_prefix_space: bool) -> dict[str, Any]:
    """GPT-2's byte-level BPE (Radford et al. 2019, section 2.2) as a document without special tokens."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _named_tokens(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration, joined with special_tokens_map.json.

    A newer tokenizer_config.json lists every added token, and then stands for the two older files as well.
    """
    if "added_tokens_decoder" in config:
        return config
    return {**config, **(_read_object(folder / "special_tokens_map.json") or {})}


def _add_tokens(document: dict[str, Any], config: dict[str, Any], named: dict[str, Any], folder: Path) -> None:
    """Append to the document's added tokens those that the other files have and it lacks."""
    specials = _special_tokens(named, folder)
    if "added_tokens_decoder" in config:
        listed = _listed_tokens(config["added_tokens_decoder"], folder / "tokenizer_config.json")
    else:
        listed = _older_added_tokens(folder / "added_tokens.json", {token["content"] for token in specials})
    added: list[AddedToken] = document.get("added_tokens") or []
    document["added_tokens"] = added
    vocabulary = tokens_of(document["model"])
    known = {token["content"] for token in added}
    for token in [*listed, *specials]:
        if token["content"] not in known:
            known.add(token["content"])
            highest = max((entry["id"] for entry in added), default=-1)
            token.setdefault("id", vocabulary.get(token["content"], max(len(vocabulary), highest + 1)))
            added.append(token)


def _listed_tokens(decoder: Any, source: Path) -> list[AddedToken]:
    """The tokens of `added_tokens_decoder`, by id."""
    if not isinstance(decoder, dict):
        raise CheckpointError(f"{source}: added_tokens_decoder must be an object, found {type(decoder).__name__}")
    tokens = []
    for text, token in decoder.items():
        token_id = int(text) if text.isascii() and text.isdigit() and len(text) < 11 else -1
        if not is_token_id(token_id):
            raise CheckpointError(f"{source}: added_tokens_decoder has the key {text!r}, needed a token id")
        tokens.append({**_added_token(token, special=False, source=source), "id": token_id})
    return sorted(tokens, key=lambda token: token["id"])


def _older_added_tokens(source: Path, special: set[str]) -> list[AddedToken]:
    """The tokens of `added_tokens.json`, by id; those in `special` are special."""
    tokens = []
    for content, token_id in (_read_object(source) or {}).items():
        if not is_token_id(token_id):
            raise CheckpointError(f"{source}: {content!r} has the id {token_id!r}, needed a token id")
        token = _added_token(content, special=content in special, source=source)
        tokens.append({**token, "normalized": content not in special, "id": token_id})
    return sorted(tokens, key=lambda token: token["id"])


def _special_tokens(named: dict[str, Any], folder: Path) -> list[AddedToken]:
    """The named special tokens in `transformers`' order, then the unnamed ones."""
    tokens = [named[name] for name in NAMED_TOKENS if named.get(name) is not None]
    for key in ("extra_special_tokens", "additional_special_tokens"):
        extra = named.get(key) or []
        if not isinstance(extra, list | dict):
            raise CheckpointError(f"{folder}: {key} must be a list, found {type(extra).__name__}")
        tokens.extend(extra.values() if isinstance(extra, dict) else extra)
    return [_added_token(token, special=True, source=folder) for token in tokens]


def _added_token(token: Any, special: bool, source: Path) -> AddedToken:
    """A token given as text or as an object, without its id."""
    fields = {"content": token} if isinstance(token, str) else token
    if not isinstance(fields, dict) or not isinstance(fields.get("content"), str) or not fields["content"]:
        raise CheckpointError(f"{source}: a special token must be text or an object with `content`, found {token!r}")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    for flag, default in flags.items():
        # Named tokens are special whatever their object says; the older format does not say it.
        flags[flag] = default if special and flag == "special" else fields.get(flag, default)
        if not isinstance(flags[flag], bool):
            raise CheckpointError(f"{source}: special token {fields['content']!r} has a {flag} that is no boolean")
    return {"content": fields["content"], **flags}


def _flag(config: dict[str, Any], key: str, folder: Path) -> bool:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{folder / 'tokenizer_config.json'}: {key} must be true or false, found {value!r}")
    return bool(value)


def _post_processor(
    document: dict[str, Any], config: dict[str, Any], named: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """The template that puts around a text the special tokens that the configuration asks for."""
    ids = {entry["content"]: entry["id"] for entry in document["added_tokens"]}
    specials: dict[str, Any] = {}
    before: list[Any] = []
    after: list[Any] = []
    for name, pieces in (("bos_token", before), ("eos_token", after)):
        if named.get(name) is None or not _flag(config, f"add_{name}", folder):
            continue
        content = _added_token(named[name], special=True, source=folder)["content"]
        specials[content] = {"id": content, "ids": [ids[content]], "tokens": [content]}
        pieces.append({"SpecialToken": {"id": content, "type_id": 0}})
    single = [*before, {"Sequence": {"id": "A", "type_id": 0}}, *after]
    pair = [*single, *before, {"Sequence": {"id": "B", "type_id": 1}}, *after]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": specials}
