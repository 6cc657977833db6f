"""Predicts a job by simulating it, or two evenly drawn parts of one that is too long, which are then extended.

Very many rows take long to walk through their block. The parts are extended as `simulator.extended` says.
"""

from collections.abc import Callable

import numpy as np

from flexref.block.counted_rows import CountedRows, kinds_of
from flexref.block.rows import AlikeRows, JobRows
from flexref.simulator.extended import extended
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
    return extended(shorter, longer, job.kinds)


def evenly(rows: CountedRows, count: int) -> CountedRows:
    """`count` rows in their order that have the lengths of all: the middle ones of so many parts of the sorted rows."""
    order = np.lexsort((rows.prompt_tokens, rows.new_tokens, rows.prefixes))
    ends = np.cumsum(rows.counts[order])
    middles = (2 * np.arange(count, dtype=np.int64) + 1) * len(rows) // (2 * count)
    runs = np.sort(order[np.searchsorted(ends, middles, side="right")])
    ones = np.ones(count, np.int64)
    shared = rows.shared_tokens[runs], rows.prefixes[runs]
    return CountedRows.of_runs(rows.prompt_tokens[runs], rows.new_tokens[runs], ones, *shared)
