"""Intervals that say how far a measured figure may be from the one that is meant; it knows no model."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Interval = tuple[float, float]

CONFIDENCE = 0.95
"""Every interval here holds the true figure in so many of all samples."""

RESAMPLES = 10_000
"""Enough for the ends of a percentile interval to be known to a percent of its width."""

RESAMPLING_BYTES = 64 << 20
"""Bounds the memory of resampling."""


def wilson(successes: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """The score interval of a proportion (Wilson, JASA 22, 1927): never outside [0, 1], and good for few trials too."""
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} of {trials} is no proportion")
    from scipy.stats import binomtest  # noqa: PLC0415  most of a second, for who counts right answers alone

    interval = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True, slots=True)
class Paired:
    """A difference of two perplexities on the same tokens, and its interval; None for too few blocks of tokens."""

    difference: float
    interval: Interval | None
    blocks: int


def paired_perplexity(first: Numbers, second: Numbers, block_tokens: int, seed: int = 0) -> Paired:
    """Perplexity of `second` less that of `first`, from log-probabilities (S,) of the same tokens by either model.

    A paired block bootstrap (Kuensch, Annals of Statistics 17, 1989, with blocks that do not overlap; percentile
    interval): blocks of `block_tokens` neighbouring tokens are drawn anew with replacement, both models' together, for
    what makes a token hard makes it hard for both and its neighbours too. Fewer than two blocks give no interval.
    What is beyond a float is not finite.
    """
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise ValueError(f"log-probabilities of {first.shape} and {second.shape} are not of the same tokens")
    starts = np.arange(0, first.size, block_tokens)
    sums = np.stack([np.add.reduceat(values, starts) for values in (first, second)])
    lengths = np.add.reduceat(np.ones(first.size), starts)
    with np.errstate(over="ignore", invalid="ignore"):
        whole = np.exp(-sums.sum(axis=1) / first.size)
        difference, blocks = float(whole[1] - whole[0]), len(starts)
        if blocks < 2:
            return Paired(difference, None, blocks)
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(_resampled(sums, lengths, seed), [tail, 1 - tail])
    return Paired(difference, (float(low), float(high)), blocks)


def _resampled(sums: Numbers, lengths: Numbers, seed: int) -> Numbers:
    """Differences (RESAMPLES,) of perplexities over blocks drawn anew, from their sums (2, B) and lengths (B,)."""
    blocks, draw, found = len(lengths), np.random.default_rng(seed), np.empty(RESAMPLES)
    at_once = max(1, RESAMPLING_BYTES // (8 * blocks))
    for start in range(0, RESAMPLES, at_once):
        count = min(at_once, RESAMPLES - start)
        times = draw.multinomial(blocks, np.full(blocks, 1 / blocks), size=count).astype(np.float64)
        means = (times @ sums.T) / (times @ lengths)[:, None]
        found[start : start + count] = np.exp(-means[:, 1]) - np.exp(-means[:, 0])
    return found
