"""A run as a Chrome trace: every copy on its lane and every visit, for chrome://tracing or Perfetto."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flexref.architecture.stages import Stage
from flexref.files import write_text
from flexref.tiers.transfer import Done


@dataclass(slots=True)
class Trace:
    """Collects spans as `events` of the Chrome format; `start_s` is zero on its clock, by `time.perf_counter`."""

    start_s: float
    events: list[dict[str, Any]] = field(default_factory=list)
    _busy_s: dict[str, float] = field(default_factory=dict)
    _end_s: float = 0.0

    def on_done(self, done: Done) -> None:
        """A finished copy."""
        self._add(done.lane, done.what, done.start_s, done.end_s, {"link": done.link, "bytes": done.nbytes})

    def on_computed(self, stage: Stage, group: int, start_s: float, end_s: float) -> None:
        """A computed visit, from the first of its operators to the last."""
        self._add("compute", f"{stage.name} group {group}", start_s, end_s, {"group": group})

    def _add(self, lane: str, what: str, start_s: float, end_s: float, details: dict[str, Any]) -> None:
        self._busy_s[lane] = self._busy_s.get(lane, 0.0) + end_s - start_s
        self._end_s = max(self._end_s, end_s)
        self.events.append(
            {
                "name": what,
                "cat": lane,
                "ph": "X",
                "ts": (start_s - self.start_s) * 1e6,
                "dur": (end_s - start_s) * 1e6,
                "pid": 1,
                "tid": lane,
                "args": details,
            }
        )

    def busy_shares(self) -> dict[str, float]:
        """What part of the time since the start each lane was busy."""
        total = max(self._end_s - self.start_s, 1e-9)
        return {lane: seconds / total for lane, seconds in sorted(self._busy_s.items())}

    def write(self, path: str | Path) -> None:
        """Write the trace as JSON; `StorageError` if it cannot be written."""
        write_text(path, json.dumps({"traceEvents": self.events, "displayTimeUnit": "ms"}))
