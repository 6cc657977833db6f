"""How much a tokenizer document can make of a text, counted before it is used; it knows no file and no library.

The library works with as much text as the parts of a document make of it, in chains of any length, and ends the process
when memory ends. Here every part has a factor: the most bytes that it makes of one.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from flexref.errors import CheckpointError

Part = Mapping[str, Any]

MOST_PARTS = 32
"""Bounds the parts of a normalizer, a pre-tokenizer, a post-processor or a decoder; published ones have up to 7."""

MOST_PART_BYTES = 1 << 16
"""Bounds each of these as JSON; Galactica's pre-tokenizer has 600 bytes."""

MOST_EXPANSION = 256
"""Bytes that become of one, at most. OPT has 4, a long chain (NFKD, three replacements, Metaspace) 132."""

MOST_TOKEN_BYTES = 4096
"""Bounds a token; OPT's longest has 256 bytes."""

MOST_ADDED_TOKENS = 1 << 16
"""Bounds the tokens that are looked for in a text before all else; OPT has 4, Galactica 22."""

MOST_TEMPLATE_IDS = 64
"""Bounds the token ids that are put around a text."""

MOST_WORD_CHARACTERS = 1024
"""Bounds a word of a WordPiece model, which is searched in square time; 100 is usual."""

MOST_PATTERN_CHARACTERS = 1024
"""Bounds a regular expression; those of published tokenizers have up to 300."""

MOST_REPEATED = 256
"""Bounds a counted repetition, whose copies the library builds."""

MOST_UNBOUNDED = 2
"""Bounds the repetitions without end in one alternative: each more may take another power of the text's length."""

FACTORS: Mapping[str, int] = MappingProxyType(
    {
        "NFC": 3,  # U+1D160: 4 bytes become 12
        "NFD": 3,
        "NFKC": 11,  # U+FDFA: 3 bytes become 33
        "NFKD": 11,
        "Lowercase": 2,
        "BertNormalizer": 12,
        "ByteLevel": 4,  # a byte becomes up to two, and a space may be put before a piece
        "Metaspace": 7,  # a space becomes three or four bytes, and another sign is put before a piece
        "BPEDecoder": 2,
        "WordPiece": 2,
    }
)
"""The most bytes that a part makes of one, where its fields do not say; others make one."""


def check_parts(parts: list[dict[str, Any]], kind: str, source: str) -> int:
    """The most bytes that the chain makes of one. `CheckpointError` for a part that can take the library too long."""
    nbytes = len(json.dumps(parts))
    if len(parts) > MOST_PARTS:
        raise CheckpointError(f"{source}: {kind} has {len(parts)} parts, at most {MOST_PARTS} are taken")
    if nbytes > MOST_PART_BYTES:
        raise CheckpointError(f"{source}: {kind} has {nbytes} bytes, at most {MOST_PART_BYTES} are taken")
    factor = 1
    for part in parts:
        _check_pattern(part.get("pattern"), kind, source)
        factor *= _factor(part)
        if factor > MOST_EXPANSION:
            raise CheckpointError(
                f"{source}: {kind} can make {factor} bytes of one (up to its part {part['type']!r}), "
                f"at most {MOST_EXPANSION} are taken"
            )
    return factor


def check_tokens(document: Mapping[str, Any], source: str) -> None:
    """`CheckpointError` for tokens, suffixes and words so long that a text of some of them would fill the memory."""
    model, added = document["model"], document.get("added_tokens") or ()
    if len(added) > MOST_ADDED_TOKENS:
        raise CheckpointError(f"{source}: {len(added)} added tokens, at most {MOST_ADDED_TOKENS} are taken")
    affixes = (model.get(name) for name in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"))
    tokens = [*tokens_of(model), *(token["content"] for token in added), *(text for text in affixes if text)]
    longest = max(tokens, key=lambda token: len(token) if isinstance(token, str) else 0)
    if len(longest) > MOST_TOKEN_BYTES // 4:  # four bytes of UTF-8 a character, at most
        raise CheckpointError(
            f"{source}: the token {longest[:20]!r}... has {len(longest)} characters, "
            f"at most {MOST_TOKEN_BYTES // 4} are taken"
        )
    characters = model.get("max_input_chars_per_word", 0)
    if isinstance(characters, int) and characters > MOST_WORD_CHARACTERS:
        raise CheckpointError(
            f"{source}: the model's max_input_chars_per_word is {characters}, at most {MOST_WORD_CHARACTERS} are taken"
        )


def tokens_of(model: Mapping[str, Any]) -> Mapping[str, int]:
    """The tokens of a checked model with their ids; a Unigram model lists them, with scores."""
    vocabulary = model["vocab"]
    return vocabulary if isinstance(vocabulary, dict) else {token: place for place, (token, _) in enumerate(vocabulary)}


def check_template_ids(ids: int, source: str) -> None:
    """`CheckpointError` for a template that puts too many token ids around a text."""
    if ids > MOST_TEMPLATE_IDS:
        raise CheckpointError(
            f"{source}: the post_processor's template adds {ids} tokens, at most {MOST_TEMPLATE_IDS} are taken"
        )


def token_bytes_most(document: Mapping[str, Any], parts: list[dict[str, Any]], alphabet: frozenset[str]) -> int | None:
    """The most bytes of a text that one token can stand for; None where a part may drop bytes, or join unknown ones.

    `parts` are the pre-tokenizer's, `alphabet` the 256 characters that stand for bytes. The bound holds for byte-level
    models, in which every byte becomes part of a token: OPT's and GPT-2's.
    """
    model, added = document["model"], document.get("added_tokens") or ()
    kinds = {part["type"] for part in parts}
    keeps = kinds <= {"ByteLevel", "Digits", "Punctuation", "Split"} and "ByteLevel" in kinds
    drops = any(part.get("behavior") == "Removed" for part in parts)
    strips = any(token.get("lstrip") or token.get("rstrip") for token in added)
    if document.get("normalizer") is not None or model["type"] != "BPE" or not keeps or drops or strips:
        return None
    if not alphabet <= model["vocab"].keys():
        return None
    return max(*map(len, model["vocab"]), *(len(token["content"].encode()) for token in added), 1)


def _factor(part: Part) -> int:
    """The most bytes that a part makes of one; it may be given pieces of one byte."""
    if part["type"] == "Prepend":
        return 1 + _nbytes(part.get("prepend"))
    if part["type"] == "Replace":
        pattern = part.get("pattern")
        found = pattern.get("String") if isinstance(pattern, dict) else None
        content = _nbytes(part.get("content"))
        # A regular expression, or an empty text, may be found between any two bytes.
        return max(1, -(-content // _nbytes(found))) if isinstance(found, str) and found else 1 + content
    return FACTORS.get(part["type"], 1)


def _nbytes(text: Any) -> int:
    return len(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else 0


BACK_REFERENCE = re.compile(r"\\[1-9kg]")
REPETITION = re.compile(r"[*+]|\{\d*,?\d*\}")
NUMBER = re.compile(r"\d+")
TOKEN = re.compile(r"\\[xpPu]\{[^}]*\}|\\.|\[|\]|\(\?<?[=!]|\(\?[im-]*[:>]|\(|\)|\||\{\d*,?\d*\}|[*+?]|.", re.DOTALL)
"""What a regular expression is made of, as far as its cost is concerned."""


def _check_pattern(pattern: Any, kind: str, source: str) -> None:
    """Refuse a regular expression whose search may take more than a few powers of the text's length."""
    text = pattern.get("Regex") if isinstance(pattern, dict) else None
    if not isinstance(text, str):
        return
    problem = _costly(text)
    if problem:
        raise CheckpointError(f"{source}: {kind} has the pattern {text[:60]!r}, which is not taken: {problem}")


def _costly(text: str) -> str | None:
    """What makes the regular expression costly; None: nothing that is known."""
    if len(text) > MOST_PATTERN_CHARACTERS:
        return f"{len(text)} characters, at most {MOST_PATTERN_CHARACTERS}"
    groups, ended, classes = [_Group()], _Group(), 0
    pieces = TOKEN.findall(text)
    if "\\Q" in pieces or ("(", "?") in pairwise(pieces):  # a comment, say, in which brackets mean nothing
        return "it has a group of a kind that is not known"
    for piece in pieces:
        if classes or piece == "[":
            classes += (piece == "[") - (piece == "]")
            ended = _Group()
        elif BACK_REFERENCE.fullmatch(piece):
            return "it refers back to what it found"
        elif piece.startswith("("):
            groups.append(_Group())
        elif piece == ")" and len(groups) > 1:
            ended = groups.pop()
            groups[-1].take(ended)
        elif REPETITION.fullmatch(piece):
            problem = _costly_repetition(piece, ended)
            if problem:
                return problem
            groups[-1].repeat(endless=piece in ("*", "+") or piece.endswith(",}"))
            if piece not in ("*", "+"):  # these two may be followed by a `+`, which is no other repetition
                ended = _Group(repeats=True)
        elif piece != "?":
            groups[-1].present *= piece != "|"
            ended = _Group()
        if groups[-1].most > MOST_UNBOUNDED:
            return f"more than {MOST_UNBOUNDED} repetitions without end in one alternative"
    return None


def _costly_repetition(piece: str, repeated: "_Group") -> str | None:
    if repeated.repeats:
        return "a repetition of what repeats itself"
    if any(int(number) > MOST_REPEATED for number in NUMBER.findall(piece)):
        return f"a repetition of more than {MOST_REPEATED}"
    return None


@dataclass
class _Group:
    """A group of a regular expression as far as it is read: the repetitions without end of its longest alternative,
    those of the present one, and whether anything in it repeats at all."""

    most: int = 0
    present: int = 0
    repeats: bool = False

    def repeat(self, *, endless: bool) -> None:
        self.present += endless
        self.most, self.repeats = max(self.most, self.present), True

    def take(self, inner: "_Group") -> None:
        self.present += inner.most
        self.most, self.repeats = max(self.most, self.present), self.repeats or inner.repeats


def tokens_a_byte(expansion: int, normalizers: Sequence[Part], pre_tokenizers: Sequence[Part]) -> int:
    """The most tokens that a byte of text becomes; `expansion`: the most bytes that parts make of one.

    Where each byte becomes one letter and nothing is put before any, that is one, as of OPT.
    """
    plain = all(part["type"] == "ByteLevel" and part.get("add_prefix_space") is False for part in pre_tokenizers)
    return 1 if pre_tokenizers and plain and not normalizers else expansion
