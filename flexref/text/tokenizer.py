"""Text to token ids and back, from one tokenizer document; it knows no model and not where the document lies."""

import json
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tokenizers

from flexref.errors import CheckpointError, PromptError
from flexref.files import as_text
from flexref.json_types.parsing import as_json
from flexref.text.chat_document import CHAT
from flexref.text.tokenizer_bounds import token_bytes_most, tokens_a_byte
from flexref.text.tokenizer_check import check_document, expansion_of, parts_of
from flexref.text.tokenizer_files import document_from_files

if TYPE_CHECKING:
    from flexref.text.chat_template import ChatTemplate

MAX_DOCUMENT_BYTES = 64 << 20
"""Bounds what is parsed: thirty times the document of a vocabulary of 50,000 tokens."""

MAX_EXPANDED_BYTES = 1 << 30
"""Bounds what a tokenizer can make of a text before it looks for tokens: OPT's of 256 MiB of text."""

Result = TypeVar("Result")


class Tokenizer:
    """A tokenizer that is as deterministic as its document: no dropout, no truncation, no padding."""

    def __init__(self, document: dict[str, Any], source: str) -> None:
        """`document` has passed `check_document`; `source` opens every complaint about it."""
        self._source = source
        self._chat = document.get(CHAT)
        plain = {key: value for key, value in document.items() if key != CHAT}
        plain = {**plain, "truncation": None, "padding": None, "model": {**document["model"], "dropout": None}}
        self._rust: tokenizers.Tokenizer = self._guarded(lambda: tokenizers.Tokenizer.from_str(json.dumps(plain)))
        for token in document.get("added_tokens") or ():
            found = self._rust.token_to_id(token["content"])
            if found != token["id"]:
                raise CheckpointError(
                    f"{source}: added token {token['content']!r} has the id {token['id']}, but its place is {found}"
                )
        decoder = document.get("decoder")
        self.byte_level = isinstance(decoder, dict) and decoder["type"] == "ByteLevel"
        self._expansion = expansion_of(document)
        self._tokens_a_byte = tokens_a_byte(
            self._expansion, parts_of(document, "normalizer"), parts_of(document, "pre_tokenizer")
        )
        self.token_bytes_most = token_bytes_most(document, parts_of(document, "pre_tokenizer"), frozenset(_BYTES))
        """The most bytes of a text that one token can stand for; None if there is no such bound."""
        self.vocabulary_size = 1 + max(self._rust.get_vocab(with_added_tokens=True).values())
        # Some contradictions show only in use: better now than at the first prompt.
        self._guarded(lambda: self._rust.encode("a"))

    @classmethod
    def from_json(cls, data: bytes, source: str = "tokenizer.json") -> "Tokenizer":
        """The tokenizer of a document in the tokenizers library's format.

        `data` is hostile until checked: whatever it holds, the result is a tokenizer or a `CheckpointError` whose line
        opens with `source`.
        """
        if len(data) > MAX_DOCUMENT_BYTES:
            raise CheckpointError(f"{source}: {len(data)} bytes are no tokenizer; at most {MAX_DOCUMENT_BYTES}")
        document = as_json(as_text(data, source, CheckpointError), source, CheckpointError)
        return cls(check_document(document, source), source)

    @classmethod
    def if_any(cls, data: bytes | None, source: str) -> "Tokenizer | None":
        """`from_json`, or None where there is no document: a model need not have a tokenizer."""
        return None if data is None else cls.from_json(data, source)

    @cached_property
    def chat_template(self) -> "ChatTemplate | None":
        """The model's chat template, compiled; None if it has none. `CheckpointError` for one that cannot be used."""
        if self._chat is None:
            return None
        from flexref.text.chat_template import ChatTemplate  # noqa: PLC0415 - who does not chat needs no jinja2

        return ChatTemplate(self._chat["template"], self._chat["special_tokens"], self._source)

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """The token ids of `text`, with the special tokens that the document puts around it (OPT: `</s>` first).

        Without `add_special` those are left out, as for the text of a chat, which spells its own.
        As in `transformers`, special tokens that are spelled out in `text` are recognized there. Raises `PromptError`
        if `text` is not Unicode (half a surrogate pair, or bytes that were no UTF-8) or too long to be worked on.
        """
        try:
            nbytes = len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise PromptError(f"the text is not valid Unicode: {error.reason} at character {error.start}") from error
        if nbytes * self._expansion > MAX_EXPANDED_BYTES:
            most = MAX_EXPANDED_BYTES // self._expansion
            raise PromptError(f"the text has {nbytes} bytes, at most {most} are taken with this tokenizer")
        ids: list[int] = self._guarded(lambda: self._rust.encode(text, add_special_tokens=add_special)).ids
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of token ids, without the special tokens; ids that no token has give no text."""
        plain = [int(token_id) for token_id in ids]
        text: str = self._guarded(lambda: self._rust.decode(plain, skip_special_tokens=skip_special))
        return text

    def token_bytes(self, token_id: int, skip_special: bool = True) -> bytes:
        """The bytes of one token of a byte-level tokenizer: the text of ids is their concatenation, as UTF-8.

        An added token's text stands for bytes as well, if every character of it does; the library has it so.
        """
        if skip_special and token_id in self._special_ids:
            return b""
        token = self._rust.id_to_token(token_id)
        if token is None:
            return b""
        found = [_BYTES.get(character) for character in token]
        return token.encode("utf-8") if None in found else bytes(value for value in found if value is not None)

    def token_text(self, token_id: int) -> str:
        """The text of one token, special or not, as it stands inside a text: a word has the space before it.

        At the beginning of a text some decoders leave that out, so it is taken from the second of two. A part of a
        character gives U+FFFD, an id that no token has nothing.
        """
        alone = self.decode([token_id], skip_special=False)
        if self.byte_level:
            return alone
        twice = self.decode([token_id, token_id], skip_special=False)
        return twice.removeprefix(alone) if twice.startswith(alone) else alone

    def has(self, token_id: int) -> bool:
        """Whether it is the id of a token; a model may have rows for more."""
        return self._rust.id_to_token(token_id) is not None

    def tokens_most(self, nbytes: int) -> int:
        """No text of so many bytes becomes more tokens, those that are put around it counted."""
        return nbytes * self._tokens_a_byte + self._tokens_around

    @cached_property
    def _tokens_around(self) -> int:
        return len(self.encode("a")) - len(self.encode("a", add_special=False))

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        added = self._rust.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    def _guarded(self, call: Callable[[], Result]) -> Result:
        """The result of a call into the tokenizers library, whose failures are this document's."""
        try:
            return call()
        except BaseException as error:
            # The library's aborts derive from BaseException, by a class that has no name to import.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{self._source}: the tokenizer is contradictory: {reason}") from error


def tokenizer_json_from_files(folder: Path | str) -> bytes | None:
    """The tokenizer of a Hugging Face folder as one document that `Tokenizer.from_json` reads; None if it has none.

    It may lie there as `tokenizer.json`, or as `vocab.json` with `merges.txt`, beside `tokenizer_config.json`,
    `special_tokens_map.json` and `added_tokens.json` (`text.tokenizer_files`); a chat template comes along
    (`text.chat_document`). Raises `CheckpointError`, naming the file, if one is damaged or two contradict each other.
    """
    document = document_from_files(Path(folder))
    if document is None:
        return None
    tokenizer = Tokenizer(check_document(document, str(folder)), str(folder))
    _ = tokenizer.chat_template  # one that cannot be used is refused here
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level token: itself where printable, else one from 256 on.

    The printable ones are those of Latin-1 without the soft hyphen (GPT-2, Radford et al. 2019, its released code).
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_alphabet()
