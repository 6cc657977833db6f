"""Whether two sets of runs differ, by Welch's t-test; it knows no benchmark."""

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, stdev


def p_value(before: Sequence[float], now: Sequence[float]) -> float | None:
    """How likely means so far apart, or farther, would be if the true means were the same (Welch, Biometrika 34, 1947).

    Samples may differ in number and in spread. None where either has fewer than two, which say nothing of its spread.
    """
    if min(len(before), len(now)) < 2:
        return None
    from scipy.special import stdtr  # noqa: PLC0415  half a second, for who compares runs alone

    apart = abs(fmean(now) - fmean(before))
    squares = [stdev(samples) ** 2 / len(samples) for samples in (before, now)]
    if not sum(squares):  # no spread at all
        return 0.0 if apart else 1.0
    shares = [square / sum(squares) for square in squares]
    freedom = 1 / sum(share**2 / (len(samples) - 1) for share, samples in zip(shares, (before, now), strict=True))
    return float(2 * stdtr(freedom, -apart / sqrt(sum(squares))))
