"""Token ids to text one by one, giving out only what no later token can change; it knows no model and no stops."""

import codecs

from flexref.text.tokenizer import Tokenizer


class Detokenizer:
    """The text of one growing row: what `push` and `finish` return, joined, is `Tokenizer.decode` of all ids.

    A character whose UTF-8 bytes are spread over several byte-level tokens is held back until it is whole. Of a
    tokenizer that is not byte-level, earlier text may change with later tokens, so all of it comes from `finish`.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held_ids: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; often empty, sometimes several characters."""
        if self._tokenizer.byte_level:
            return self._utf8.decode(self._tokenizer.token_bytes(token_id, self._skip_special))
        self._held_ids.append(token_id)
        return ""

    @property
    def pending(self) -> str:
        """Text that later tokens may still change: of a tokenizer that is not byte-level all of it, else none."""
        return "" if self._tokenizer.byte_level else self._tokenizer.decode(self._held_ids, self._skip_special)

    def finish(self) -> str:
        """The rest of the text, with U+FFFD for a character that stayed incomplete."""
        if self._tokenizer.byte_level:
            return self._utf8.decode(b"", final=True)
        return self.pending
