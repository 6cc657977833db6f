"""Predicts a job by simulating it, or two evenly drawn parts of one that is too long, which are then extended.

What a block that stays full takes grows with its rows; what filling and emptying it takes does not. So the difference
of two parts is what so many rows more take, and the longer part with as many of them as are missing is the job.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from flexref.block.counted_rows import CountedRows, kinds_of
from flexref.block.rows import AlikeRows, JobRows
from flexref.simulator.prediction import Prediction

SIMULATED_ROWS = 4096
"""Rows that differ, of which so many are simulated whole."""

SIMULATED_BLOCKS = 4
"""Or as many as fill so many blocks, where that is more: half of them must still fill a block twice."""

Simulate = Callable[[JobRows], Prediction]


def predicted(rows: JobRows, rows_per_block: int, simulate: Simulate) -> Prediction:
    """The prediction that `simulate` makes for `rows`; of many that differ, from two parts of them."""
    most = max(SIMULATED_ROWS, SIMULATED_BLOCKS * rows_per_block)
    if isinstance(rows, AlikeRows) or len(rows) <= most or len(kinds_of(rows)) == 1:
        return simulate(rows)
    job = rows if isinstance(rows, CountedRows) else CountedRows.of(rows)
    longer, shorter = simulate(evenly(job, most)), simulate(evenly(job, most // 2))
    return extended(shorter, longer, job)


def evenly(rows: CountedRows, count: int) -> CountedRows:
    """`count` rows in their order that have the lengths of all: the middle ones of so many parts of the sorted rows."""
    order = np.lexsort((rows.prompt_tokens, rows.new_tokens))
    ends = np.cumsum(rows.counts[order])
    middles = (2 * np.arange(count, dtype=np.int64) + 1) * len(rows) // (2 * count)
    runs = np.sort(order[np.searchsorted(ends, middles, side="right")])
    return CountedRows.of_runs(rows.prompt_tokens[runs], rows.new_tokens[runs], np.ones(count, np.int64))


def extended(shorter: Prediction, longer: Prediction, rows: CountedRows) -> Prediction:
    """The prediction for `rows` from those for two parts of them, of which the first has fewer rows."""
    times = (len(rows) - longer.rows) / (longer.rows - shorter.rows)

    def number(less: float, more: float) -> float:
        return more + times * (more - less)

    def table(less: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: table(less.get(key, {}), value) if isinstance(value, Mapping) else number(less.get(key, 0), value)
            for key, value in more.items()
        }

    seconds = [part.prefill_s + part.decode_s for part in (shorter, longer)]
    busy_s = [
        {lane: share * whole_s for lane, share in part.lane_busy.items()}
        for part, whole_s in zip((shorter, longer), seconds, strict=True)
    ]
    whole_s = number(*seconds)
    moved = table(shorter.link_bytes, longer.link_bytes)
    return replace(
        longer,
        rows=len(rows),
        blocks=round(number(shorter.blocks, longer.blocks)),
        generated_tokens=sum(row.new_tokens * count for row, count in rows.kinds.items()),
        prefill_s=max(0.0, number(shorter.prefill_s, longer.prefill_s)),
        decode_s=number(shorter.decode_s, longer.decode_s),
        link_bytes={link: {kind: round(nbytes) for kind, nbytes in kinds.items()} for link, kinds in moved.items()},
        link_s=table(shorter.link_s, longer.link_s),
        lane_busy={lane: spent_s / whole_s for lane, spent_s in table(*busy_s).items()},
    )
