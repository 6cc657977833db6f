"""Two models on one text: how far the second's next-token distributions and hidden states are from the first's.

Both run through the engine, batch by batch, so that memory stays bounded: of the first the logits of one batch are kept
while the second's come tile by tile; of hidden states those of evenly spread tokens, where all would be too many.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flexref.architecture.stages import Stage, StageKind
from flexref.engine.next_tokens import Numbers
from flexref.engine.scoring import Listener, ScoredRow
from flexref.errors import PromptError
from flexref.quality.intervals import Interval, Paired, paired_perplexity
from flexref.quality.perplexity import Protocol, Sample, exponential, tokenizer_of

if TYPE_CHECKING:
    from flexref.engine.engine import Engine

KEPT_BYTES = 256 << 20
"""Bounds the first model's logits of a batch, and the hidden states of its sampled tokens: at least one row's."""

PIECE_BYTES = 1 << 20
"""Bounds the copies in float64 that are made of a tile."""

FLOAT32_BYTES = 4
"""Those of a logit, and of a hidden state where the port computes in no narrower type."""

BLOCK_TOKENS = 64
"""Neighbouring tokens that are drawn together when an interval is found: what follows from one error stays inside."""

Values = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far hidden states after a stage are apart, relative to the first model's.

    overall: the root of summed squares over all sampled tokens; median_token: the median of the tokens' own.
    """

    stage: str
    overall: float
    median_token: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """KL(A||B) of next-token distributions in nats, agreement, both perplexities, and hidden states by stage.

    `hidden_tokens` is on how many tokens hidden states were compared, 0 where the models have no layers in common.
    """

    tokens: int
    kl_mean: float
    kl_p99: float
    kl_max: float
    same_top: float
    nats: tuple[float, float]
    paired: Paired
    layers: tuple[LayerError, ...]
    hidden_tokens: int
    protocol: Protocol

    @property
    def interval(self) -> Interval | None:
        """That of the difference of perplexities; None for too few tokens, or where an end is no number."""
        found = self.paired.interval
        return found if found is not None and all(map(math.isfinite, found)) else None

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name, fit for `json.dumps`; a figure beyond a float is None."""
        first, second = (exponential(nats / self.tokens) for nats in self.nats)
        return {
            "kl_mean_nats": self.kl_mean,
            "kl_p99_nats": self.kl_p99,
            "kl_max_nats": self.kl_max,
            "same_top1_share": self.same_top,
            "perplexity_a": first,
            "perplexity_b": second,
            "perplexity_difference": self.paired.difference if math.isfinite(self.paired.difference) else None,
            "perplexity_difference_ci95": None if self.interval is None else list(self.interval),
            "interval": f"paired block bootstrap, {self.paired.blocks} blocks of {BLOCK_TOKENS} tokens, percentiles",
            "perplexity_ratio": exponential((self.nats[1] - self.nats[0]) / self.tokens),
            "tokens": self.tokens,
            "layers": [asdict(layer) for layer in self.layers],
            "hidden_tokens": self.hidden_tokens,
            "protocol": {**asdict(self.protocol), "text": str(self.protocol)},
        }


def check_comparable(first: "Engine", second: "Engine", text: str | None) -> None:
    """`PromptError` unless both models have one vocabulary, and both tokenizers make the same tokens of the text.

    Without a text, token ids are compared, and tokenizers do not matter.
    """
    sizes = [engine.file.spec.vocabulary for engine in (first, second)]
    if sizes[0] != sizes[1]:
        raise PromptError(f"the models have vocabularies of {sizes[0]} and {sizes[1]} tokens: nothing can be compared")
    if text is not None and tokenizer_of(first).encode(text) != tokenizer_of(second).encode(text):
        raise PromptError(f"the tokenizers of {first.file.path} and {second.file.path} divide the text differently")


def compare(
    first: "Engine", second: "Engine", sample: Sample, on_rows: Callable[[int], None] | None = None
) -> Comparison:
    """Score the sample with both models and compare them token by token; `on_rows` is told of rows that both scored."""
    comparing = Comparing(first, second)
    for rows in batches(sample.rows, FLOAT32_BYTES * first.file.spec.vocabulary):
        comparing.add(rows)
        if on_rows is not None:
            on_rows(len(rows))
    return comparing.result(sample.protocol)


class Comparing:
    """What has been found so far, batch by batch."""

    def __init__(self, first: "Engine", second: "Engine") -> None:
        self._first, self._second = first, second
        one, other = first.file.spec, second.file.spec
        self._alike = (one.layers, one.width) == (other.layers, other.width)
        self._divergences: list[Numbers] = []
        self._same: list[npt.NDArray[np.bool_]] = []
        self._logprobs: list[Numbers] = []
        self._errors = HiddenErrors()

    def add(self, rows: Sequence[ScoredRow]) -> None:
        """Score some rows with either model."""
        spec = self._first.file.spec
        kept = HiddenStates(_hidden_step(rows, (spec.layers + 1) * spec.width * FLOAT32_BYTES))
        logits = np.empty((sum(row.scored for row in rows), spec.vocabulary), np.float32)

        def keep_tile(first: int, first_id: int, tile: npt.NDArray[np.float32]) -> None:
            logits[first : first + len(tile), first_id : first_id + tile.shape[1]] = tile

        listener = Listener(on_tile=keep_tile, on_hidden=kept.keep if self._alike else None)
        ours = self._first.score(rows, listener=listener).rows
        divergence = Divergence(logits, np.concatenate([row.normalizer for row in ours]))
        listener = Listener(on_tile=divergence.add, on_hidden=self._errors.against(kept) if self._alike else None)
        theirs = self._second.score(rows, listener=listener).rows
        self._divergences.append(divergence.total(np.concatenate([row.normalizer for row in theirs])))
        for mine, its in zip(ours, theirs, strict=True):
            self._same.append(mine.top_ids[:, 0] == its.top_ids[:, 0])
            self._logprobs.append(np.stack((mine.logprobs, its.logprobs)))

    def result(self, protocol: Protocol) -> Comparison:
        """The figures over all that was added."""
        divergences, logprobs = np.concatenate(self._divergences), np.concatenate(self._logprobs, axis=1)
        return Comparison(
            tokens=divergences.size,
            kl_mean=float(divergences.mean()),
            kl_p99=float(np.quantile(divergences, 0.99)),
            kl_max=float(divergences.max()),
            same_top=float(np.concatenate(self._same).mean()),
            nats=(float(-logprobs[0].sum()), float(-logprobs[1].sum())),
            paired=paired_perplexity(logprobs[0], logprobs[1], BLOCK_TOKENS),
            layers=self._errors.by_stage(),
            hidden_tokens=self._errors.tokens,
            protocol=protocol,
        )


def batches(rows: Sequence[ScoredRow], token_bytes: int) -> Iterator[Sequence[ScoredRow]]:
    """Rows in order, cut so that `token_bytes` for every scored token of a batch stay within `KEPT_BYTES`."""
    start = held = 0
    for end, row in enumerate(rows):
        nbytes = row.scored * token_bytes
        if end > start and held + nbytes > KEPT_BYTES:
            yield rows[start:end]
            start, held = end, 0
        held += nbytes
    yield rows[start:]


def _hidden_step(rows: Sequence[ScoredRow], token_bytes: int) -> int:
    """Every how manyth token of a row's is sampled, so that their hidden states stay within `KEPT_BYTES`."""
    tokens = sum(len(row.token_ids) - 1 for row in rows)
    return max(1, -(-tokens * token_bytes // KEPT_BYTES))


class Divergence:
    """KL(A||B) of S distributions: A's logits (S, V) and their log sum exp are at hand, B's logits come in tiles.

    sum p (log p - log q) = sum p (a - b) - normalizer of A + normalizer of B, where a and b are logits and p is A's
    probability: nothing of B is kept but one sum a token.
    """

    def __init__(self, logits: npt.NDArray[np.float32], normalizer: Numbers) -> None:
        self._logits, self._normalizer = logits, normalizer
        self._sums = np.zeros(len(logits))

    def add(self, first: int, first_id: int, logits: npt.NDArray[np.float32]) -> None:
        """B's logits (C, N) of the tokens from `first` on, for the token ids from `first_id` on."""
        rows = max(1, PIECE_BYTES // (8 * logits.shape[1]))
        for start in range(0, len(logits), rows):
            theirs = logits[start : start + rows]
            some = slice(first + start, first + start + len(theirs))
            ours = self._logits[some, first_id : first_id + logits.shape[1]].astype(np.float64)
            shares = np.exp(ours - self._normalizer[some, None])
            self._sums[some] += np.einsum("cn,cn->c", shares, ours - theirs)

    def total(self, normalizer: Numbers) -> Numbers:
        """The divergences (S,) when all tiles have come; rounding below zero is zero."""
        return np.maximum(self._sums - self._normalizer + normalizer, 0.0)


@dataclass
class HiddenStates:
    """Hidden states of every `step`th token of the rows, by stage and row, as float32 or narrower."""

    step: int
    states: dict[tuple[str, int], Values] = field(default_factory=dict)

    def keep(self, stage: Stage, numbers: npt.NDArray[np.int64], x: Values) -> None:
        """See `engine.watch.OnHidden`."""
        for row, part in by_row(numbers, x):
            self.states[stage.name, row] = part[:: self.step].copy()


def by_row(numbers: npt.NDArray[np.int64], x: Values) -> Iterator[tuple[int, Values]]:
    """(row number, its tokens' hidden states) of a group."""
    rows, starts = np.unique(numbers, return_index=True)
    yield from zip(rows.tolist(), np.split(x, starts[1:]), strict=True)


@dataclass
class HiddenErrors:
    """Sums over all batches: squares of differences and of the first model's states, by stage and token."""

    squares: dict[str, list[Numbers]] = field(default_factory=dict)
    tokens: int = 0

    def against(self, kept: HiddenStates) -> Callable[[Stage, npt.NDArray[np.int64], Values], None]:
        """A listener (`engine.watch.OnHidden`) that compares the second model's states with those that were kept."""

        def compare_states(stage: Stage, numbers: npt.NDArray[np.int64], x: Values) -> None:
            for row, part in by_row(numbers, x):
                ours = kept.states.pop((stage.name, row)).astype(np.float64)
                apart = part[:: kept.step] - ours
                both = np.stack([np.einsum("te,te->t", values, values) for values in (apart, ours)])
                self.squares.setdefault(stage.name, []).append(both)
                self.tokens += len(ours) if stage.kind is StageKind.EMBED else 0

        return compare_states

    def by_stage(self) -> tuple[LayerError, ...]:
        """Relative errors in the order of the stages."""
        found = []
        for stage, parts in self.squares.items():
            apart, ours = np.concatenate(parts, axis=1)
            overall = math.sqrt(apart.sum() / ours.sum()) if ours.sum() else math.inf
            with np.errstate(divide="ignore", invalid="ignore"):
                each = np.where(apart == 0, 0.0, np.sqrt(apart / ours))
            found.append(LayerError(stage, overall if apart.sum() else 0.0, float(np.median(each))))
        return tuple(found)
