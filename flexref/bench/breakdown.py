"""What the seconds of a run are made of: the device's work by kind, links that it waits for, and the host's gaps.

Two short runs of the same job, after those that are timed. In the first every operator is timed on the device's own
clock: before a visit the device is kept busy for as long as the host takes to call the visit's operators, so that they
follow each other without a gap. In the second, which is needed only where something crosses a link, copies and visits
are timed as for a trace: seconds in which a link works and the device does not are seconds that it waits. What both
leave of the seconds of the timed runs are the host's: calls, bookkeeping, the choice of tokens. It knows no floor.
"""

import math
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any

from flexref.architecture.stages import Stage, StageKind
from flexref.backend.protocol import Backend, Buffer, Ticket
from flexref.bench.rates import random_matrix, seconds_between
from flexref.block.watch import Computed
from flexref.json_types.values import Number, Whole
from flexref.tiers.transfer import Done
from flexref.units import DTYPE_BYTES

STEPS_MOST = 4
"""Decode passes of the short runs: a pass is like every other but for the length of rows, and these are the first."""

KIND_OF: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("linear", "expand"), "products"),
        **dict.fromkeys(("append", "attend"), "attention"),
        **dict.fromkeys(("gather", "add_rows", "layer_norm", "activate", "assign"), "other"),
    }
)
"""What the device's seconds in an operator count as. `sample` waits for the host's answer and counts as the host's."""

BUSY_WIDTHS, BUSY_S = (256, 512, 1024, 2048, 4096), 1e-4
"""Widths of the product that keeps a device busy, until it takes so long: several times what calling it costs."""

BUSY_MOST, TRIED = 64, 4
"""At most so many of them before a visit; and how many are timed together."""

SPARE = 2.0
"""The device is kept busy for so many times as long as the host took for the visit before."""

PREFILL, DECODE = 0, 1
"""The phases."""

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class TimeParts:
    """Where the seconds of a phase go. They add up to its median, so that `host_s` may be a little below 0."""

    products_s: Annotated[float, Number(0), "The device multiplies by weights, and expands them."]
    attention_s: Annotated[float, Number(0), "The cache is written and attended to, be it on the host."]
    other_s: Annotated[float, Number(0), "The device does all else: norms, activations, embeddings."]
    link_s: Annotated[float, Number(0), "A link works and the device does not."]
    host_s: Annotated[float, "Nothing of both: the host calls operators and chooses tokens."]

    @classmethod
    def of(cls, whole_s: float, device_s: Mapping[str, float], link_s: float) -> "TimeParts":
        """The parts of so many seconds."""
        products_s, attention_s, other_s = (device_s.get(kind, 0.0) for kind in ("products", "attention", "other"))
        host_s = whole_s - products_s - attention_s - other_s - link_s
        return cls(products_s, attention_s, other_s, link_s, host_s)


@dataclass(frozen=True, slots=True)
class Breakdown:
    """What a prefill and a decode step are made of, by short runs of so many decode passes of a block."""

    prefill: Annotated[TimeParts, "The prefill of the whole job."]
    decode_step: Annotated[TimeParts | None, "One decode step; null for a job without one."]
    passes: Annotated[int, Whole(0), "Decode passes that were looked at."]
    took_s: Annotated[float, Number(0), "Seconds of the short runs; they are in no other figure."]


class OperatorTimes:
    """Seconds of the device by (phase, kind), on a port whose operators are followed by marks while `watching`."""

    def __init__(self, port: Backend, new_tokens: int) -> None:
        """Of a job whose rows begin and end together: every so many passes one is a prefill, which reads only."""
        self._port, self._new_tokens = port, new_tokens
        self._inside = False
        self._at: tuple[int, str] | None = None
        self._begin: Ticket | None = None
        self._spans: list[tuple[tuple[int, str], Ticket, Ticket]] = []
        self._seconds: dict[tuple[int, str], float] = defaultdict(float)
        self._phase, self._visit_began = PREFILL, 0.0
        self.passes = 0
        self._busy: Callable[[], object] | None = None
        self._busy_s = math.inf

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Put marks around calls of operators while the context lasts. One port, one engine, one thread."""
        memory: list[Buffer] = []
        try:
            for width in BUSY_WIDTHS:
                if self._try(width, memory):
                    break
            for name in KIND_OF:
                setattr(self._port, name, self._timed(name, getattr(self._port, name)))
            yield
        finally:
            for name in KIND_OF:
                vars(self._port).pop(name, None)
            self._port.mark().wait()
            for buffer in memory:
                self._port.release(buffer)

    def _try(self, width: int, memory: list[Buffer]) -> bool:
        """Time a product. Whether it will do: it takes long enough, or operators have run when their calls return."""
        port, dtype = self._port, self._port.caps.compute_dtype
        size = width * width * DTYPE_BYTES[dtype]
        memory.append(port.allocate("device", 2 * size))
        x, out = (port.view(memory[-1], part * size, (width, width), dtype) for part in range(2))
        port.upload(random_matrix(width, dtype), out=x)
        linear = port.linear
        linear(x, x, None, out=out)
        port.mark().wait()
        begin = port.mark()
        for _ in range(TRIED):
            linear(x, x, None, out=out)
        end = port.mark()
        later = not end.done()
        self._busy_s = max(1e-6, seconds_between(begin, end) / TRIED)
        self._busy = lambda: linear(x, x, None, out=out)
        if not later and self._busy_s >= BUSY_S:
            self._busy = None
        return self._busy_s >= BUSY_S

    def on_visit(self, stage: Stage, group: int, pass_number: int) -> None:
        """A visit's operators are called next (`block.watch.OnVisit`)."""
        self._end_span()
        now = time.perf_counter()
        took_s, self._visit_began = now - self._visit_began, now
        self._phase = phase_of(pass_number, self._new_tokens)
        self.passes += self._phase == DECODE and stage.kind is StageKind.EMBED and group == 0
        if len(self._spans) > BUSY_MOST:
            self._collect(wait=False)
        if self._busy is not None and self._phase == DECODE:
            for _ in range(min(BUSY_MOST, math.ceil(SPARE * took_s / self._busy_s))):
                self._busy()

    def seconds(self, phase: int) -> dict[str, float]:
        """By kind, of all passes of a phase; waits for what is under way."""
        self._end_span()
        self._collect(wait=True)
        return {kind: spent_s for (of, kind), spent_s in self._seconds.items() if of == phase}

    def _timed(self, name: str, operator: Callable[..., Any]) -> Callable[..., Any]:
        """The operator, with a mark before it if the call before it was of another kind."""
        kind = KIND_OF[name]

        def timed(*arguments: Any, **options: Any) -> Any:
            if self._inside:  # an operator that is made of others
                return operator(*arguments, **options)
            if self._at != (self._phase, kind):
                self._end_span()
                self._at, self._begin = (self._phase, kind), self._port.mark()
            self._inside = True
            try:
                return operator(*arguments, **options)
            finally:
                self._inside = False
                self._end = self._port.mark()

        return timed

    def _end_span(self) -> None:
        if self._at is not None and self._begin is not None:
            self._spans.append((self._at, self._begin, self._end))
        self._at = self._begin = None

    def _collect(self, *, wait: bool) -> None:
        left = []
        for key, begin, end in self._spans:
            if not wait and not end.done():
                left.append((key, begin, end))
                continue
            self._seconds[key] += seconds_between(begin, end)
        self._spans = left


class LaneTimes:
    """When lanes and the device worked: takes a trace's place (`block.trace.Trace`), and writes nothing."""

    def __init__(self, new_tokens: int) -> None:
        """See `OperatorTimes`."""
        self._new_tokens = new_tokens
        self._copies: list[Interval] = []
        self._visits: list[tuple[float, float, int]] = []

    def begin_job(self, name: str, now_s: float, arenas: object) -> None:
        """A job begins."""

    def begin_block(self) -> None:
        """A block begins."""

    def on_held(self, now_s: float, arenas: object) -> None:
        """What is held does not matter."""

    def on_done(self, done: Done) -> None:
        """A copy has ended."""
        self._copies.append((done.start_s, done.end_s))

    def on_computed(self, computed: Computed) -> None:
        """A visit has ended."""
        phase = phase_of(computed.visit.pass_number, self._new_tokens)
        self._visits.append((computed.start_s, computed.end_s, phase))

    def busy_shares(self) -> dict[str, float]:
        """Nobody asks for them."""
        return {}

    def waited_s(self, phase: int) -> float:
        """Seconds in which a copy was under way and no visit was, each time before a visit of that phase."""
        copies = union(self._copies)
        at = copies[0][0] if copies else math.inf
        found = 0.0
        for start, end, of in sorted(self._visits):
            if of == phase and at < start:
                found += covered_s((at, start), copies)
            at = max(at, end)
        return found


def phase_of(pass_number: int, new_tokens: int) -> int:
    """Of rows that begin and end together."""
    return DECODE if pass_number % new_tokens else PREFILL


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time in intervals that are apart, in order."""
    found: list[Interval] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def covered_s(whole: Interval, parts: Sequence[Interval]) -> float:
    """Seconds of `whole` that lie in `parts`, which are as `union` gives them."""
    first = bisect_left(parts, whole[0], key=lambda part: part[1])
    last = bisect_left(parts, whole[1], key=lambda part: part[0])
    return sum(min(end, whole[1]) - max(start, whole[0]) for start, end in parts[first:last])
