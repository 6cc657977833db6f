"""Extends the prediction for a part of a job to the whole of it, with that for a smaller part; it simulates nothing.

What a block that stays full takes grows with its rows; what filling and emptying it takes does not. So the difference
of two parts is what so many rows more take, and the longer part with as many of them as are missing is the job.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

from flexref.block.rows import RowLengths
from flexref.simulator.prediction import Prediction


def generated_tokens(kinds: Counter[RowLengths]) -> int:
    """New tokens of all rows; those that are scored have none."""
    return sum(row.new_tokens * count for row, count in kinds.items() if not row.scored_tokens)


def extended(shorter: Prediction, longer: Prediction, kinds: Counter[RowLengths]) -> Prediction:
    """The prediction for the rows of `kinds` from those for two parts of them, of which the first has fewer rows."""
    times = Fraction(kinds.total() - longer.rows, longer.rows - shorter.rows)

    def whole(less: int, more: int) -> int:
        return round(more + times * (more - less))

    def number(less: float, more: float) -> float:
        return more + float(times) * (more - less)

    def table(less: Mapping[str, Any], more: Mapping[str, Any], of: Any) -> dict[str, Any]:
        return {
            key: table(less.get(key, {}), value, of) if isinstance(value, Mapping) else of(less.get(key, 0), value)
            for key, value in more.items()
        }

    passes = whole(shorter.passes, longer.passes)
    filled = number(shorter.occupancy * shorter.passes, longer.occupancy * longer.passes)
    seconds = [part.prefill_s + part.decode_s for part in (shorter, longer)]
    less_busy, more_busy = (
        {lane: share * whole_s for lane, share in part.lane_busy.items()}
        for part, whole_s in zip((shorter, longer), seconds, strict=True)
    )
    whole_s = number(*seconds)
    return replace(
        longer,
        rows=kinds.total(),
        passes=passes,
        occupancy=min(1.0, filled / passes),
        generated_tokens=generated_tokens(kinds),
        prefill_s=max(0.0, number(shorter.prefill_s, longer.prefill_s)),
        decode_s=number(shorter.decode_s, longer.decode_s),
        link_bytes=table(shorter.link_bytes, longer.link_bytes, whole),
        disk_write_bytes=whole(shorter.disk_write_bytes, longer.disk_write_bytes),
        link_s=table(shorter.link_s, longer.link_s, number),
        lane_busy={lane: min(1.0, spent_s / whole_s) for lane, spent_s in table(less_busy, more_busy, number).items()},
    )
