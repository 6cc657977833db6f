"""Lines by their length in tokens, as bars of a round width; it knows neither a page nor a job."""

from collections.abc import Mapping

from flexref.batch_job.report.axes import Tick, ValueWords, round_up, value_ticks
from flexref.batch_job.report.charts import Chart, ChartBar
from flexref.batch_job.report.words import count, figure

BARS_MOST = 24
"""Bars of all lengths: each is still seen on a narrow page."""


def histogram(key: str, title: str, lengths: Mapping[int, int]) -> Chart | None:
    """Lines by length in tokens, in bars of a round width; None if there are none."""
    if not lengths:
        return None
    least, most = min(lengths), max(lengths)
    width = max(1, round(round_up(max(1, most - least + 1) / BARS_MOST)))
    first, bins = least // width, most // width - least // width + 1
    lines = [0] * bins
    for length, number in lengths.items():
        lines[length // width - first] += number
    top, up = value_ticks(max(lines), ValueWords())
    bars = [
        ChartBar(place / bins, 1 / bins, number / top, f"{_tokens(first + place, width)}: {count(number)} lines")
        for place, number in enumerate(lines)
        if number
    ]
    every = max(1, -(-bins // 5))
    across = [Tick(place / bins, count((first + place) * width)) for place in range(0, bins + 1, every)]
    lines_in_all = sum(lengths.values())
    mean = sum(length * number for length, number in lengths.items()) / lines_in_all
    about = (
        f"{title} of {count(lines_in_all)} lines: from {count(least)} to {count(most)} tokens, "
        f"mean {figure(mean)}, median {count(median(lengths))}."
    )
    return Chart(key, title, "lines by length", about, across, up, bars=bars, under="tokens")


def median(lengths: Mapping[int, int]) -> int:
    """The length that half of the lines do not pass."""
    half, seen = (sum(lengths.values()) + 1) // 2, 0
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= half:
            return length
    return 0


def _tokens(place: int, width: int) -> str:
    return f"{place * width} tokens" if width == 1 else f"{place * width} to {(place + 1) * width - 1} tokens"
