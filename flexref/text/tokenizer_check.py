"""Checks a tokenizer document (`tokenizer.json`) before the library reads it; it knows no file and no library.

For some contradictory documents the library ends the process instead of raising an error, and others make it work
for minutes. Here those are refused with an error that names what is wrong (see also `tokenizer_bounds`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from flexref.errors import CheckpointError
from flexref.json_types.values import shown
from flexref.text.chat_document import CHAT, check_chat
from flexref.text.tokenizer_bounds import MOST_PARTS, check_parts, check_template_ids, check_tokens
from flexref.units import is_finite, is_integer

MAX_TOKEN_ID = (1 << 31) - 1
"""Token ids are 32-bit signed integers in every port."""

KNOWN_COMPONENTS: Mapping[str, frozenset[str]] = {
    "model": frozenset({"BPE", "Unigram", "WordLevel", "WordPiece"}),
    "normalizer": frozenset(
        {"BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace", "Strip"}
        | {"StripAccents"}
    ),
    "pre_tokenizer": frozenset(
        {"BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace", "Punctuation", "Split"}
        | {"UnicodeScripts", "Whitespace", "WhitespaceSplit"}
    ),
    "post_processor": frozenset({"BertProcessing", "ByteLevel", "RobertaProcessing", "TemplateProcessing"}),
    "decoder": frozenset(
        {"BPEDecoder", "ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Replace", "Strip", "WordPiece"}
    ),
}
"""The types of component that cannot make the tokenizers library abort once their data has passed the checks here."""

INSTEAD: Mapping[str, str] = {
    "Precompiled": "; it is a table of sentencepiece, which the tokenizers library reads unchecked; NFKC in its place "
    "does nearly the same",
}
"""What would help in place of a type that is not known."""

_SEQUENCE_FIELDS: Mapping[str, str] = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
"""The field in which a component of type `Sequence` lists its parts."""


def check_document(document: Any, source: str) -> dict[str, Any]:
    """Return the document if its parts are known and agree; else `CheckpointError`, which begins with `source`."""
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise CheckpointError(f"{source}: not a tokenizer document: needed a JSON object with a `model` object")
    for kind in KNOWN_COMPONENTS:
        components = list(_components(document.get(kind), kind, source))
        if kind != "model":
            check_parts(components, kind, source)
        for component in components:
            if component["type"] == "TemplateProcessing":
                _check_template(component, source)
    _check_model(document["model"], source)
    _check_added_tokens(document.get("added_tokens"), source)
    check_tokens(document, source)
    if CHAT in document:
        check_chat(document[CHAT], source)
    return document


def parts_of(document: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The parts of a component of a checked document, in the order in which they work."""
    return list(_components(document.get(kind), kind, ""))


def expansion_of(document: dict[str, Any]) -> int:
    """The most bytes that a checked document makes of one byte of text before it looks for tokens."""
    factors = [check_parts(parts_of(document, kind), kind, "") for kind in ("normalizer", "pre_tokenizer")]
    return factors[0] * factors[1]


def check_vocabulary(vocabulary: Any, source: str) -> dict[str, int]:
    """Return the vocabulary if it maps tokens to distinct, valid ids; else raise `CheckpointError`."""
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise CheckpointError(f"{source}: the vocabulary must be a JSON object of tokens and ids, and not empty")
    owners: dict[int, str] = {}
    for token, token_id in vocabulary.items():
        if not is_token_id(token_id):
            raise CheckpointError(f"{source}: token {token!r} has the id {token_id!r}, needed 0 to {MAX_TOKEN_ID}")
        if owners.setdefault(token_id, token) != token:
            raise CheckpointError(f"{source}: tokens {owners[token_id]!r} and {token!r} share the id {token_id}")
    return vocabulary


def is_token_id(value: Any) -> bool:
    """Whether `value` is an integer that can be a token id."""
    return is_integer(value) and 0 <= value <= MAX_TOKEN_ID


def _components(component: Any, kind: str, source: str) -> Iterator[dict[str, Any]]:
    """The component or, if it is a sequence, all its parts at any depth."""
    waiting = [component]
    seen = 0
    while waiting:
        part = waiting.pop()
        seen += 1
        if seen > MOST_PARTS + 1:
            raise CheckpointError(f"{source}: {kind} has more than the {MOST_PARTS} parts that are taken")
        if part is None:
            continue
        if not isinstance(part, dict):
            raise CheckpointError(f"{source}: {kind} must be a JSON object or null, found {type(part).__name__}")
        found, sequence = part.get("type"), _SEQUENCE_FIELDS.get(kind)
        if found == "Sequence" and sequence is not None:
            parts = part.get(sequence)
            if not isinstance(parts, list):
                raise CheckpointError(f"{source}: a {kind} of type 'Sequence' needs a list `{sequence}`")
            waiting.extend(reversed(parts))
        elif not isinstance(found, str) or found not in KNOWN_COMPONENTS[kind]:
            known = ", ".join(sorted(KNOWN_COMPONENTS[kind]))
            instead = INSTEAD.get(str(found), "")
            raise CheckpointError(
                f"{source}: {kind} has the type {found!r}, which is not supported; known: {known}{instead}"
            )
        else:
            yield part


def _check_model(model: dict[str, Any], source: str) -> None:
    if model["type"] == "Unigram":
        _check_scored(model.get("vocab"), model.get("unk_id"), source)
        return
    check_vocabulary(model.get("vocab"), source)
    if model["type"] == "BPE" and model.get("continuing_subword_prefix"):
        raise CheckpointError(f"{source}: a BPE model with a continuing_subword_prefix is not supported")


def _check_scored(vocabulary: Any, unknown: Any, source: str) -> None:
    """A Unigram model's tokens are a list, with the logarithms of their probabilities; `unknown` is an id in it."""
    if not isinstance(vocabulary, list) or not vocabulary:
        raise CheckpointError(f"{source}: the vocabulary of a Unigram model must be a list of tokens with their scores")
    seen = set[str]()
    for place, piece in enumerate(vocabulary):
        token, score = piece if isinstance(piece, list) and len(piece) == 2 else (None, None)
        if not isinstance(token, str) or not token or not is_finite(score):
            raise CheckpointError(f"{source}: token {place} must be a text and its score, found {shown(piece)}")
        if token in seen:
            raise CheckpointError(f"{source}: token {token[:40]!r} stands twice in the vocabulary")
        seen.add(token)
    if not is_token_id(unknown) or unknown >= len(vocabulary):
        most = len(vocabulary) - 1
        raise CheckpointError(f"{source}: unk_id is {unknown!r}, needed the id of a token, 0 to {most}")


def _check_added_tokens(added: Any, source: str) -> None:
    if added is None:
        return
    if not isinstance(added, list):
        raise CheckpointError(f"{source}: added_tokens must be a list, found {type(added).__name__}")
    for token in added:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str) or not token["content"]:
            raise CheckpointError(f"{source}: every added token must be an object with a non-empty `content`")
        if not is_token_id(token.get("id")):
            raise CheckpointError(
                f"{source}: added token {token['content']!r} has the id {token.get('id')!r}, needed 0 to {MAX_TOKEN_ID}"
            )


def _check_template(template: dict[str, Any], source: str) -> None:
    """The template for a single text must hold the text exactly once, and only special tokens whose ids it gives."""
    specials, pieces = template.get("special_tokens"), template.get("single")
    if not isinstance(specials, dict) or not isinstance(pieces, list):
        raise CheckpointError(f"{source}: the post_processor's template needs `single` and `special_tokens`")
    sequences = added = 0
    for piece in pieces:
        kind, content = next(iter(piece.items())) if isinstance(piece, dict) and len(piece) == 1 else ("", None)
        name = content.get("id") if isinstance(content, dict) else None
        if kind == "Sequence" and name == "A":
            sequences += 1
            continue
        special = specials.get(name) if kind == "SpecialToken" and isinstance(name, str) else None
        ids = special.get("ids") if isinstance(special, dict) else None
        if not isinstance(ids, list) or not ids or not all(is_token_id(token_id) for token_id in ids):
            raise CheckpointError(f"{source}: the post_processor's template names {name!r}, whose token ids it lacks")
        added += len(ids)
        check_template_ids(added, source)
    if sequences != 1:
        raise CheckpointError(f"{source}: the post_processor's template holds the text {sequences} times, needed once")
