"""Log-probabilities of an answer's tokens, as completion objects and chat objects have them; it knows no model.

A token that is no text by itself, a part of a character, is named by its bytes: `bytes:\\xe2\\x80`. One that the
tokenizer does not have is named by its id, `token_id:17`, and so are all where a model has no tokenizer.
"""

from collections.abc import Sequence

import msgspec

from flexref.batch_job.lines.text_offsets import text_offsets
from flexref.engine.results import ChosenToken, TokenLogprob
from flexref.text.tokenizer import Tokenizer


class CompletionLogprobs(msgspec.Struct):
    """Of every token: its name, log-probability, the most probable ones beside it, and its place in the text."""

    text_offset: list[int]
    token_logprobs: list[float]
    tokens: list[str]
    top_logprobs: list[dict[str, float]]


class TopToken(msgspec.Struct):
    """One of the most probable tokens at a place; `bytes` are those of its text."""

    token: str
    logprob: float
    bytes: list[int] | None


class ContentToken(msgspec.Struct):
    """The token at a place of an answer, and the most probable ones there."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopToken]


class ChatLogprobs(msgspec.Struct):
    """Of every token of a message."""

    content: list[ContentToken]
    refusal: None = None


def completion_logprobs(
    tokens: Sequence[ChosenToken], top: int, text: str, tokenizer: Tokenizer | None
) -> CompletionLogprobs:
    """Of the tokens of `text`, each with the `top` most probable ones and itself."""
    names = [_name(token.chosen, _bytes_of(token.chosen, tokenizer)) for token in tokens]
    offsets = text_offsets([token.chosen.token_id for token in tokens], text, tokenizer)
    tops = [_by_name([*token.top[:top], token.chosen], tokenizer) for token in tokens]
    return CompletionLogprobs(offsets, [token.chosen.logprob for token in tokens], names, tops)


def chat_logprobs(tokens: Sequence[ChosenToken], top: int, tokenizer: Tokenizer | None) -> ChatLogprobs:
    """Of the tokens of a message, each with the `top` most probable ones."""
    content = []
    for token in tokens:
        tops = [TopToken(*_described(each, tokenizer)) for each in token.top[:top]]
        content.append(ContentToken(*_described(token.chosen, tokenizer), tops))
    return ChatLogprobs(content)


def _described(token: TokenLogprob, tokenizer: Tokenizer | None) -> tuple[str, float, list[int] | None]:
    data = _bytes_of(token, tokenizer)
    return _name(token, data), token.logprob, None if data is None else list(data)


def _by_name(tokens: Sequence[TokenLogprob], tokenizer: Tokenizer | None) -> dict[str, float]:
    """Log-probabilities by the tokens' names; of two of one name the first stays."""
    found: dict[str, float] = {}
    for token in tokens:
        found.setdefault(_name(token, _bytes_of(token, tokenizer)), token.logprob)
    return found


def _bytes_of(token: TokenLogprob, tokenizer: Tokenizer | None) -> bytes | None:
    """The bytes of a token's text; None without a tokenizer that has it."""
    if tokenizer is None or not tokenizer.has(token.token_id):
        return None
    if tokenizer.byte_level:
        return tokenizer.token_bytes(token.token_id, skip_special=False)
    return (token.text or "").encode("utf-8")


def _name(token: TokenLogprob, data: bytes | None) -> str:
    if data is None:
        return f"token_id:{token.token_id}"
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{value:02x}" for value in data)
