"""Perplexity of a text by a stated protocol: windows, what is scored in each, and the figures; it knows no port."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from sys import float_info
from typing import TYPE_CHECKING, Any

from flexref.architecture.spec import ModelSpec
from flexref.block.tracing.trace import Trace
from flexref.engine.scoring import Listener, ScoredRow, Scores
from flexref.errors import PromptError, how_many
from flexref.files import as_text, read_bytes
from flexref.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from flexref.engine.engine import Engine

BEGINS = ("first", "every")
"""Where the token stands that begins a text: before its first token alone, or before every window."""

LARGEST_EXPONENT = math.log(float_info.max)
"""exp of more is no float: a perplexity of models that know nothing, per word of a text without spaces."""


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens `begin` to `end` of a text, of which those from `scored` on are scored in this window."""

    begin: int
    end: int
    scored: int


def windows(tokens: int, window: int, stride: int, first: int) -> Iterator[Window]:
    """The windows of a text of `tokens`: one begins every `stride` tokens and is `window` long, up to the text's end.

    Every token from number `first` on is scored once, in the first window that holds it; what stands before it there
    is its context. This is the sliding window of Hugging Face's guide to perplexity.
    """
    done = first
    for begin in range(0, tokens, stride):
        end = min(begin + window, tokens)
        if end > done:
            yield Window(begin, end, done)
            done = end
        if end == tokens:
            return


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a text was scored: without it a perplexity says nothing.

    tokens: scored ones, each once; windows: rows of at most `window` tokens of the text, `stride` apart. context:
    tokens before a scored one, the least (after the first window) and the mean. begin_token: what the model takes to
    begin a text, None if it has none; `bos` says where it stands. unscored_tokens: those without any context.
    """

    tokens: int
    windows: int
    window: int
    stride: int
    bos: str
    begin_token: int | None
    context_least: int
    context_mean: float
    unscored_tokens: int

    def __str__(self) -> str:
        where = {"first": "before the text", "every": "before every window", "none": "nowhere"}[self.bos]
        left = f"; {self.unscored_tokens} without context not scored" if self.unscored_tokens else ""
        return (
            f"{how_many(self.tokens, 'token')}, each scored once, in {how_many(self.windows, 'window')} of up to "
            f"{how_many(self.window, 'token')} with stride {self.stride}; a token sees {self.context_mean:.0f} tokens "
            f"before it on average, after the first window at least {self.context_least}; begin token {where}{left}"
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """A text cut into rows by a protocol; of its words and bytes those that scored tokens stand for, 0 if unknown."""

    rows: tuple[ScoredRow, ...]
    protocol: Protocol
    nbytes: int
    words: int


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How well a model predicts a text; `nats` are those of all scored tokens together."""

    nats: float
    sample: Sample
    scores: Scores

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name, fit for `json.dumps`; a figure beyond a float is None."""
        sample, tokens = self.sample, self.sample.protocol.tokens
        return {
            "perplexity": exponential(self.nats / tokens),
            "bits_per_byte": self.nats / math.log(2) / sample.nbytes if sample.nbytes else None,
            "word_perplexity": exponential(self.nats / sample.words) if sample.words else None,
            "tokens": tokens,
            "bytes": sample.nbytes,
            "words": sample.words,
            "nats_per_token": self.nats / tokens,
            "protocol": {**asdict(sample.protocol), "text": str(sample.protocol)},
        }


def read_text(path: Path | str) -> str:
    """A file in UTF-8 as one text, a byte order mark taken off.

    Raises `StorageError` if it cannot be read, `PromptError` if it is not UTF-8 or is empty.
    """
    text = as_text(read_bytes(path), path, PromptError).removeprefix("\ufeff")
    if not text:
        raise PromptError(f"{path}: the text is empty")
    return text


def tokenizer_of(engine: "Engine") -> Tokenizer:
    """The model's tokenizer; `PromptError` if it has none."""
    if engine.tokenizer is None:
        raise PromptError(f"{engine.file.path} holds no tokenizer, and a text needs one")
    return engine.tokenizer


def sample_text(engine: "Engine", text: str, window: int | None, stride: int | None, bos: str = "first") -> Sample:
    """Cut `text` into rows: windows of the model's positions, half of one apart, unless other lengths are given.

    `bos` is `first`: the text begins as the tokenizer begins it (OPT: `</s>`), and windows are of that; or `every`:
    each window begins with the model's begin token, and `window` tokens of the text follow. Raises `PromptError` for
    lengths with which a token would have no context, or for which the model has no positions.
    """
    tokenizer = tokenizer_of(engine)
    ids = tokenizer.encode(text)
    rows, protocol = _cut(engine.file.spec, ids, window, stride, bos)
    said = _after_first_token(text, tokenizer.decode(ids[:1])) if protocol.unscored_tokens else text
    return Sample(rows, protocol, len(said.encode()), len(said.split()))


def sample_tokens(
    engine: "Engine", ids: Sequence[int], window: int | None, stride: int | None, bos: str = "first"
) -> Sample:
    """Cut a document of token ids into rows, as `sample_text` does with a text; its bytes and words are not known.

    The ids are taken as they are: with `bos` `first` no begin token is put before them. Raises `PromptError` also for
    an id beyond the vocabulary.
    """
    spec = engine.file.spec
    for place, token in enumerate(ids, start=1):
        if not 0 <= token < spec.vocabulary:
            raise PromptError(f"token {place} is {token}; the vocabulary has {spec.vocabulary} tokens")
    rows, protocol = _cut(spec, list(ids), window, stride, bos)
    return Sample(rows, protocol, 0, 0)


def _cut(
    spec: ModelSpec, ids: list[int], window: int | None, stride: int | None, bos: str
) -> tuple[tuple[ScoredRow, ...], Protocol]:
    """The rows of a document and how they were cut."""
    window, stride = _lengths(spec.positions, window, stride, bos)
    begins = bool(ids) and ids[0] == spec.bos_token_id
    front: tuple[int, ...] = ()
    if bos == "every":
        if spec.bos_token_id is None:
            raise PromptError(f"the model {spec.name} has no begin token that could stand before every window")
        ids, front = ids[begins:], (spec.bos_token_id,)
    found = list(windows(len(ids), window, stride, 1 - len(front)))
    if not found:
        raise PromptError(f"the text has {how_many(len(ids), 'token')}, of which none has a context")
    rows = tuple(ScoredRow((*front, *ids[at.begin : at.end]), at.scored - at.begin + len(front)) for at in found)
    scored = sum(row.scored for row in rows)
    seen = sum(row.scored * (row.first + len(row.token_ids) - 1) / 2 for row in rows)
    protocol = Protocol(
        tokens=scored,
        windows=len(rows),
        window=window,
        stride=stride,
        bos="every" if front else "first" if begins else "none",
        begin_token=spec.bos_token_id,
        context_least=min(row.first for row in rows[1:] or rows),
        context_mean=seen / scored,
        unscored_tokens=0 if front or begins else 1,
    )
    return rows, protocol


def _after_first_token(text: str, first: str) -> str:
    """What follows the text's first token; its first character, where the token is but a piece of that."""
    space, found, rest = text.partition(first) if first else ("", "", text)
    return text[1:] if space.strip() or (first and not found) else rest


def _lengths(positions: int, window: int | None, stride: int | None, bos: str) -> tuple[int, int]:
    """Window and stride as given or by default, checked against each other."""
    if bos not in BEGINS:
        raise PromptError(f"the begin token stands before {' or '.join(BEGINS)}, found {bos!r}")
    least = 1 if bos == "every" else 2
    window = positions if window is None else window
    if not least <= window <= positions:
        raise PromptError(f"window must be from {least} to the model's {positions} positions, found {window}")
    stride, most = max(1, window // 2) if stride is None else stride, window - least + 1
    if not 1 <= stride <= most:
        why = "" if bos == "every" else ": no window's first token has a context, unless every window has a begin token"
        raise PromptError(f"stride must be from 1 to {most} for a window of {window}, found {stride}{why}")
    return window, stride


def perplexity(
    engine: "Engine", sample: Sample, on_rows: Callable[[int], None] | None = None, trace: Trace | None = None
) -> Perplexity:
    """Score a sample on an engine; `on_rows` is told how many more rows have been scored."""
    scores = engine.score(sample.rows, listener=Listener(on_rows=on_rows, trace=trace))
    return Perplexity(math.fsum(-float(row.logprobs.sum()) for row in scores.rows), sample, scores)


def exponential(nats: float) -> float | None:
    """exp of `nats`; None if that is no float."""
    return math.exp(nats) if nats < LARGEST_EXPONENT else None
