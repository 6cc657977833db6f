"""Where the tokens of an answer begin in its text, in characters; it knows no log-probability."""

import codecs
from collections.abc import Iterator, Sequence
from itertools import takewhile

from flexref.text.tokenizer import Tokenizer


def text_offsets(token_ids: Sequence[int], text: str, tokenizer: Tokenizer | None) -> list[int]:
    """Where every token begins: after the characters that the tokens before it complete; special ones add none.

    Never after the end of `text`, which a stop may have cut; 0 for all without a tokenizer.
    """
    if tokenizer is None:
        return [0] * len(token_ids)
    begins = _of_bytes(token_ids, tokenizer) if tokenizer.byte_level else _of_beginnings(token_ids, tokenizer)
    return [min(begin, len(text)) for begin in begins]


def _of_bytes(token_ids: Sequence[int], tokenizer: Tokenizer) -> Iterator[int]:
    begin, decoder = 0, codecs.getincrementaldecoder("utf-8")("replace")
    for token_id in token_ids:
        yield begin
        begin += len(decoder.decode(tokenizer.token_bytes(token_id)))


def _of_beginnings(token_ids: Sequence[int], tokenizer: Tokenizer) -> Iterator[int]:
    """Of tokens whose text depends on those beside them: how much of the text of those before stays when all are there.

    So every beginning is decoded, since no decoder says how far it looks; with 2,000 tokens that takes a second.
    """
    begin, whole = 0, tokenizer.decode(token_ids)
    for number in range(len(token_ids)):
        before = tokenizer.decode(token_ids[:number])
        same = (old == new for old, new in zip(before, whole, strict=False))
        stays = len(before) if whole.startswith(before) else sum(takewhile(bool, same))
        begin = max(begin, stays)  # bytes of a character that is not whole spoil those before them
        yield begin
