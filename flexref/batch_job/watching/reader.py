"""Reads where a job stands from the session that it runs on; it knows neither lines nor who wants to know.

It takes some ten microseconds: totals that a session keeps anyhow are copied, nothing is computed and nothing waited
for. What it gives never changes afterwards, so that other threads may keep it.
"""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from flexref.batch_job.states import JobState
from flexref.engine.account import Standing
from flexref.engine.results import Stats
from flexref.engine.session import Session
from flexref.tiers.transfer import Flow

T = TypeVar("T", int, float)


class Counts(NamedTuple):
    """What stats say of passes and tokens."""

    working_s: float = 0.0
    passes: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0

    @classmethod
    def of(cls, stats: Stats) -> "Counts":
        """Those of one job on the engine."""
        working_s = stats.prefill_s + stats.decode_s
        return cls(working_s, stats.occupancy.passes, stats.prompt_tokens, stats.generated_tokens)

    def plus(self, more: "Counts") -> "Counts":
        """The sum."""
        return Counts(
            self.working_s + more.working_s,
            self.passes + more.passes,
            self.prompt_tokens + more.prompt_tokens,
            self.generated_tokens + more.generated_tokens,
        )


class JobStateReader:
    """Gives a `JobState` whenever it is asked, in the thread that runs the job.

    A batch job may run several jobs on engines one after the other, when its memory is planned anew for example, each
    with an account of its own. Here they are added up: no figure that counts ever goes down.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """The batch job begins now."""
        self._clock, self._start_s = clock, clock()
        self._session: Session | None = None
        self._standing: Standing | None = None
        self._flows: dict[tuple[str, str], Flow] = {}
        self._lane_s: dict[str, float] = {}
        self._old_flows: dict[tuple[str, str], Flow] = {}
        self._old_lane_s: dict[str, float] = {}
        self._old_counts = Counts()

    @property
    def now_s(self) -> float:
        """Seconds since the job began, for its events."""
        return self._clock() - self._start_s

    def read(
        self, session: Session | None = None, lines_done: int = 0, lines_failed: int = 0, faults: int = 0
    ) -> JobState:
        """Where the job stands; of lines and faults its caller knows.

        `session` is the one that just ran a pass of it; without one, nothing has gone on there since the last call.
        """
        if session is not None:
            self._turn_over(session)
        standing, session = self._standing, self._session
        counts = self._old_counts if standing is None else self._old_counts.plus(Counts.of(standing.stats))
        tables = _Tables()
        tables.add(self._flows)
        tables.add(self._old_flows)
        lanes = {lane: seconds + self._old_lane_s.get(lane, 0.0) for lane, seconds in self._lane_s.items()}
        arenas = {} if session is None else session.arenas
        return JobState(
            self.now_s,
            **counts._asdict(),
            lines_done=lines_done,
            lines_failed=lines_failed,
            live_rows=0 if standing is None else standing.live_rows,
            places=0 if standing is None else standing.places,
            link_bytes=tables.nbytes,
            spilled_bytes=tables.written_bytes,
            link_s=tables.seconds,
            timed_bytes=tables.timed_bytes,
            timed_copies=tables.timed_copies,
            lane_busy_s={**self._old_lane_s, **lanes},
            held_bytes={tier.value: arena.held_bytes for tier, arena in arenas.items()},
            budget_bytes={tier.value: arena.budget_bytes for tier, arena in arenas.items()},
            faults=faults,
        )

    def _turn_over(self, session: Session) -> None:
        """Add an account that has been closed to what was before it."""
        traffic, standing = session.mover.traffic, session.standing
        if traffic.flows is not self._flows:
            for key, flow in self._flows.items():
                self._old_flows.setdefault(key, Flow()).add(flow)
            for lane, seconds in self._lane_s.items():
                self._old_lane_s[lane] = self._old_lane_s.get(lane, 0.0) + seconds
            self._flows, self._lane_s = traffic.flows, traffic.lane_s
        if standing is not self._standing:
            if self._standing is not None:
                self._old_counts = self._old_counts.plus(Counts.of(self._standing.stats))
            self._standing = standing
        self._session = session


class _Tables:
    """What flows say, by link and kind."""

    __slots__ = ("nbytes", "seconds", "timed_bytes", "timed_copies", "written_bytes")

    def __init__(self) -> None:
        self.nbytes: dict[str, dict[str, int]] = {}
        self.seconds: dict[str, dict[str, float]] = {}
        self.timed_bytes: dict[str, dict[str, int]] = {}
        self.timed_copies: dict[str, dict[str, int]] = {}
        self.written_bytes = 0

    def add(self, flows: Mapping[tuple[str, str], Flow]) -> None:
        """Add those of some copies."""
        for (link, kind), flow in flows.items():
            self.written_bytes += flow.written_bytes
            _add_to(self.nbytes, link, kind, flow.nbytes)
            _add_to(self.seconds, link, kind, flow.seconds)
            _add_to(self.timed_bytes, link, kind, flow.timed_bytes)
            _add_to(self.timed_copies, link, kind, flow.timed_copies)


def _add_to(table: dict[str, dict[str, T]], link: str, kind: str, more: T) -> None:
    kinds = table.get(link)
    if kinds is None:
        table[link] = {kind: more}
    elif kind in kinds:
        kinds[kind] += more
    else:
        kinds[kind] = more
