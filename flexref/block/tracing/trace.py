"""A run in the Trace Event format, for Perfetto or chrome://tracing: copies on their lanes, visits, bytes held.

It knows no engine and no clock: whoever runs says when a job and a block begin, and what is done.
"""

from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from flexref.architecture.stages import StageKind
from flexref.backend.protocol import LANES
from flexref.block.tracing.trace_file import TraceFile
from flexref.block.watch import Computed
from flexref.errors import FlexrefError
from flexref.schedule.zigzag import Hop, Movement
from flexref.tiers.mover import COMPUTE, CROSSING
from flexref.tiers.pool import Arena
from flexref.tiers.transfer import Done
from flexref.units import Kind, Tier
from flexref.version import __version__

PROCESS = 1
"""The number of the process in a trace: there is one."""

ORDER = ("disk_in", "weights_in", "cache_in", COMPUTE, CROSSING, "host_compute", "cache_out", "disk_out")
"""Threads from the top, in the order in which data passes them."""

THREADS: Mapping[str, int] = MappingProxyType(
    {name: number for number, name in enumerate(dict.fromkeys((*ORDER, *map(str, LANES))), start=1)}
)
"""The number of each thread, which is its place too."""

INWARD = (Hop.FETCH, Hop.LOAD)
"""Hops whose data a visit uses: an arrow leads from such a copy to the visit."""

ROUNDING_S = 5e-5
"""What the clocks of a device are off at most: one lane's work that seems to overlap by less follows one another."""

Use = tuple[int, int, int | None]
"""Who uses a copy: number of the pass, of the stage, and the group; None: the first group that comes."""


class Trace:
    """Writes the events of jobs to the file `path` as they come (`TraceFile`); time 0 is when the first job begins.

    A job that begins after `close` begins the file again.

    Memory stays bounded: of visits and copies only those are kept whose other half may still come.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self._begin()

    def _begin(self) -> None:
        self._file = TraceFile(self.path)
        self._start_s = self._end_s = 0.0
        self._blocks = self._arrows = self._pass = 0
        self._busy_s: dict[str, float] = defaultdict(float)
        self._ends_s: dict[str, float] = {}
        self._holders: dict[Tier, dict[str, int]] = {}
        self._begun: dict[Use, float] = {}
        self._waiting: dict[Use, list[tuple[str, float]]] = {}

    def restart(self) -> None:
        """Forget all that there is: the next job begins the file again."""
        with suppress(FlexrefError):  # what was written is not wanted any more
            self.close()
        self._begin()

    def __enter__(self) -> "Trace":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        with suppress(FlexrefError):  # what ended the run is to be said, and not what became of its trace
            self.close()

    def begin_job(self, name: str, now_s: float, arenas: Mapping[Tier, Arena]) -> None:
        """A job begins, the first of a trace at its time 0; `StorageError` if the file cannot be made."""
        if not self._file.is_open:
            self._begin()  # after `close` too: another job's file begins as the first one's did
            self._file.open()
            self._start_s = self._end_s = now_s
            self._about(0, "process_name", name=name)
            self._about(0, "process_labels", labels=f"flexref {__version__}")
        self.on_held(now_s, arenas)

    def begin_block(self) -> None:
        """Another block begins: passes are counted from 0 again."""
        self._blocks, self._pass = self._blocks + 1, 0
        self._begun.clear()
        self._waiting.clear()

    def on_held(self, now_s: float, arenas: Mapping[Tier, Arena]) -> None:
        """How many bytes of every tier are held, and by whom."""
        for tier, arena in arenas.items():
            holders = self._holders.setdefault(tier, {})
            holders.update({holder: 0 for holder in holders})
            holders.update({str(holder): nbytes for holder, nbytes in arena.holders.items()})
            if holders:
                at = {"ph": "C", "pid": PROCESS, "tid": 0, "ts": self._us(now_s)}
                self._file.add({"name": f"bytes held on {tier.value}", **at, "args": dict(holders)})

    def on_done(self, done: Done) -> None:
        """A finished copy; an arrow leads from it to the visit that uses it. Operators on a lane go over no link."""
        details = {"link": done.link, "bytes": done.nbytes} if done.link else {}
        start_s = self._slice(done.lane, done.what, (done.start_s, done.end_s), details)
        movement = done.purpose
        if isinstance(movement, Movement) and movement.hop in INWARD:
            visit = movement.visit
            use = (visit.pass_number, visit.stage, None if movement.kind is Kind.WEIGHTS else visit.group)
            if use in self._begun:
                self._arrow(done.lane, start_s, self._begun[use])
            else:
                self._waiting.setdefault(use, []).append((done.lane, start_s))

    def on_computed(self, computed: Computed) -> None:
        """A computed visit, from the first of its operators to the last."""
        stage, visit = computed.stage, computed.visit
        index = {"layer": stage.index} if stage.kind is StageKind.LAYER else {}
        details = {
            "block": self._blocks - 1,
            "pass": visit.pass_number,
            "stage": stage.name,
            **index,
            "group": visit.group,
            "rows": computed.rows,
            "tokens": computed.tokens,
        }
        start_s = self._slice(COMPUTE, f"{stage.name} group {visit.group}", (computed.start_s, computed.end_s), details)
        if visit.pass_number > self._pass:
            self._pass = visit.pass_number
            self._forget(self._pass - 1)
        for use in ((visit.pass_number, visit.stage, visit.group), (visit.pass_number, visit.stage, None)):
            if use not in self._begun:
                self._begun[use] = start_s
                for lane, copied_s in self._waiting.pop(use, ()):
                    self._arrow(lane, copied_s, start_s)

    def busy_shares(self) -> dict[str, float]:
        """What part of the time since the start each lane was busy."""
        total = max(self._end_s - self._start_s, 1e-9)
        return {lane: seconds / total for lane, seconds in sorted(self._busy_s.items())}

    def close(self) -> None:
        """End the file; once is enough. `StorageError` if anything could not be written."""
        self._file.close()

    def _forget(self, pass_number: int) -> None:
        """Drop visits and copies of passes before that one."""
        self._begun = {use: start_s for use, start_s in self._begun.items() if use[0] >= pass_number}
        self._waiting = {use: copies for use, copies in self._waiting.items() if use[0] >= pass_number}

    def _slice(self, thread: str, what: str, span_s: tuple[float, float], details: Mapping[str, Any]) -> float:
        """Add a slice of time on a thread; the second at which it starts."""
        start_s, end_s = span_s
        if thread not in self._ends_s:
            number = THREADS[thread]
            self._about(number, "thread_name", name=thread)
            self._about(number, "thread_sort_index", sort_index=number)
        elif 0 < self._ends_s[thread] - start_s < ROUNDING_S:
            start_s = self._ends_s[thread]
            end_s = max(start_s, end_s)
        self._ends_s[thread] = max(end_s, self._ends_s.get(thread, end_s))
        self._end_s = max(self._end_s, end_s)
        self._busy_s[thread] += end_s - start_s
        event = {"name": what, "cat": thread, "ph": "X", **self._place(thread, start_s)}
        duration = round(self._us(end_s) - self._us(start_s), 3)
        self._file.add({**event, "dur": duration, "args": details})
        return start_s

    def _arrow(self, lane: str, copied_s: float, used_s: float) -> None:
        """An arrow from a copy to the visit that uses it: each end names the slice that it lies in."""
        self._arrows += 1
        arrow = {"name": "used by", "cat": "use", "id": self._arrows}
        self._file.add({**arrow, "ph": "s", **self._place(lane, copied_s)})
        self._file.add({**arrow, "ph": "f", "bp": "e", **self._place(COMPUTE, max(copied_s, used_s))})

    def _place(self, thread: str, at_s: float) -> dict[str, Any]:
        return {"pid": PROCESS, "tid": THREADS[thread], "ts": self._us(at_s)}

    def _about(self, thread: int, what: str, **details: Any) -> None:
        self._file.add({"name": what, "ph": "M", "pid": PROCESS, "tid": thread, "ts": 0, "args": details})

    def _us(self, at_s: float) -> float:
        """Microseconds since the start, to the nanosecond."""
        return round((at_s - self._start_s) * 1e6, 3)
