"""Times calls on a port: medians of repeats in the device's own time, and which are unstable; it knows no model.

Where a port is asynchronous, operators are called while a product keeps the device busy: they then run one after
the other as in a long job, and what it costs the host to call them is not in their time. Where it is not, a product
comes before each short one: as in a job, a processor has forgotten what it last needed for it.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import cycle
from statistics import median
from types import TracebackType
from typing import Any

from flexref.backend.protocol import Backend, Ticket
from flexref.machine.curves import Curve
from flexref.profile.operands import WEIGHT_DEVIATION, Memory
from flexref.profile.pace import Pace
from flexref.profile.record import LEAST_REPEATS, LEAST_S, Record, is_unstable
from flexref.profile.sizes import Sizes

Call = Callable[[], object]

FORGOTTEN_S = 0.005
"""Longer operators take about the same time whatever the processor's caches hold when they begin."""

CALLS_MOST = 64
"""Bounds the calls of a window: a device's queue holds them all."""

AGAIN_MOST = 3
"""What is unstable is repeated until there are so many times as many repeats, while there is time."""

FILLED_BYTES = 4 << 20
"""Of device memory are filled to see how fast that goes."""

FILLING_PART, LEAST_ROTATED_BYTES = 4, 48 << 20
"""One part in so many of the time that is left may go into filling operands; and so many bytes are filled whatever it
takes: more than most processors keep near a core."""

PRODUCT_WIDTHS = (64, 256, 512, 1024, 2048, 4096)
"""The product that keeps a device busy grows until it takes long enough."""

BUSY_MOST = 64
"""Bounds how many of those products are called at once."""

ISSUE_S = 50e-6
"""More than any call of an operator takes the host: how long a device is kept busy before a call has been timed."""

ASYNCHRONOUS_SHARE = 0.5
"""A port is asynchronous if a call of a product returns before so much of the product's time has passed."""

FAR_TOO_LONG = 8.0
"""A point is not tried if, growing in proportion, it would take so many times as long as a curve's longest: most grow
less at first."""


@dataclass(frozen=True, slots=True)
class Point:
    """One size of a curve, the calls that are timed in turn, what to call it, and whether a call waits for its end."""

    size: float
    label: str
    calls: Sequence[Call]
    blocking: bool = False


@dataclass(slots=True)
class Timed:
    """A point while it is timed: calls of a window, windows that are wanted, how long the host calls, the seconds."""

    point: Point
    turns: Iterator[Call]
    single_s: float
    count: int
    repeats: int
    issue_s: float
    values: list[float] = field(default_factory=list)

    @property
    def wants_more(self) -> bool:
        """Whether it has not been repeated enough."""
        count = len(self.values)
        return count < self.repeats or (count < AGAIN_MOST * self.repeats and is_unstable(self.values))


class Meter:
    """Measures on one port; a context manager, for the product that keeps the device busy takes memory."""

    def __init__(
        self,
        backend: Backend,
        sizes: Sizes,
        tell: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.backend, self.sizes, self.clock = backend, sizes, clock
        self.asynchronous = False
        self.product: Call = lambda: None
        self.product_s = LEAST_S
        self.filled_per_s = math.inf
        self._tell = tell
        self.record, self.pace = Record(), Pace(sizes.bound_s, clock)
        self._stack = ExitStack()
        tiers = ("device", "host")
        self._most_bytes = {tier: min(backend.free_bytes(tier) // 4, sizes.most_bytes) for tier in tiers}

    def __enter__(self) -> "Meter":
        try:
            memory = self._stack.enter_context(self.memory())
            begin = self.clock()
            memory.array((min(FILLED_BYTES, memory.room_bytes() // 8),), "uint8")
            self.filled_per_s = FILLED_BYTES / max(self.clock() - begin, LEAST_S)
            self._find_product(memory)
            self._most_bytes["device"] = memory.room_bytes("device")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def tell(self, what: str) -> None:
        """Say what is measured now."""
        if self._tell is not None:
            self._tell(what)

    def memory(self) -> Memory:
        """Memory for one measurement, given back at its end."""
        return Memory(self.backend, self._most_bytes)

    @property
    def rotated_bytes(self) -> int:
        """Over how many bytes operands change, as far as there is time to fill them."""
        return self.timely(self.sizes.rotated_bytes)

    def timely(self, nbytes: int, least: int = LEAST_ROTATED_BYTES) -> int:
        """So many bytes, or as many as there is time to fill, but `least` of them whatever it takes."""
        return int(min(nbytes, max(least, self.pace.left_s * self.filled_per_s / FILLING_PART)))

    def curve(self, name: str, points: Generator[Point, None, None], count: int) -> Curve:
        """The curve through points of rising size, `count` at most; it ends where a call takes longer than it may, or
        where there is no time for more. The first point is there whatever it takes.
        """
        longest_s, found = self.sizes.longest_s, list[tuple[float, float]]()
        label, taken_s = "", 0.0
        with closing(points):  # whoever yields a point may hold memory for it
            while len(found) < count:
                if found and not self.pace.has(taken_s):
                    self.record.cut(name, label)
                    break
                begin_s = self.pace.now_s
                point = next(points, None)
                if point is None:
                    break
                if found:
                    size, seconds = found[-1]
                    if seconds > longest_s or seconds * point.size / size > FAR_TOO_LONG * longest_s:
                        break
                found.append((point.size, self.operator(name, point)))
                label, taken_s = point.label, self.pace.now_s - begin_s
        return Curve(tuple(found))

    def operator(self, name: str, point: Point) -> float:
        """Seconds of one of the calls in the device's time: the median over windows of them, after a warm-up.

        Where there is no time for a window, they are those of the warm-up by the host's clock, which are not less.
        """
        single_s = self.once(point.calls[0])
        if self.asynchronous or self.pace.has(single_s):
            single_s = self._again(point.calls[0], single_s)
        timed = self.timed(point, single_s)
        while timed.wants_more and self.has_time_for(timed):
            self.window(timed)
        if not timed.values:
            self.record.cut(name, point.label)
        return self.record.figure(name, point.label, timed.values or [single_s], point.size)

    def has_time_for(self, timed: "Timed") -> bool:
        """Whether another window of it would end in time."""
        before_s = self.product_s if not self.asynchronous and timed.single_s < FORGOTTEN_S else timed.issue_s
        return self.pace.has(timed.count * timed.single_s + before_s)

    def timed(self, point: Point, single_s: float) -> "Timed":
        """A point ready to be timed in windows; one of its calls takes about `single_s`."""
        alone = point.blocking or not self.asynchronous
        count = 1 if alone else max(1, min(CALLS_MOST, int(self.sizes.window_s / single_s)))
        repeats = self.sizes.repeats if single_s * count < 2 * self.sizes.window_s else LEAST_REPEATS
        return Timed(point, cycle(point.calls), single_s, count, repeats, ISSUE_S * count)

    def window(self, timed: "Timed") -> None:
        """Call a point's calls once more, and keep the seconds of one."""
        if self.asynchronous:
            self.keep_busy(timed.issue_s)
        elif timed.single_s < FORGOTTEN_S:
            self.product()
        start, issued = self.backend.mark(), self.clock()
        for _ in range(timed.count):
            next(timed.turns)()
        if not timed.point.blocking:
            timed.issue_s = self.clock() - issued
        timed.values.append(between(start, self.backend.mark()) / timed.count)

    def once(self, call: Call) -> float:
        """Seconds of one call by the host's clock, with all that it starts."""
        begin = self.clock()
        call()
        self.backend.mark().wait()
        return max(self.clock() - begin, LEAST_S)

    def settled(self, call: Call) -> float:
        """Seconds of a call by the host's clock once it has been made: the first compiles kernels and wakes memory."""
        return self._again(call, self.once(call))

    def _again(self, call: Call, first_s: float) -> float:
        """Seconds of a call that took `first_s` the first time.

        What a device compiled then is excused: a job would have to wait for it too, and no curve must be cut for it.
        """
        seconds = self.once(call)
        if self.asynchronous:
            self.pace.excuse(first_s - seconds)
        return seconds

    def host(self, name: str, label: str, call: Call, size: float) -> float:
        """Seconds of something that the host does, as the median over windows of it."""
        single_s = self.settled(call)
        count = max(1, min(CALLS_MOST, int(self.sizes.window_s / single_s)))
        values: list[float] = []
        while len(values) < self.sizes.repeats and (not values or self.pace.has(count * single_s)):
            begin = self.clock()
            for _ in range(count):
                call()
            values.append((self.clock() - begin) / count)
        return self.record.figure(name, label, values, size)

    def keep_busy(self, seconds: float) -> None:
        """Give an asynchronous device products to do for as long as that; the call returns at once."""
        if self.asynchronous:
            for _ in range(min(BUSY_MOST, math.ceil(seconds / self.product_s))):
                self.product()

    def heat(self, call: Call, seconds: float) -> None:
        """Call it back to back for so long."""
        begin = self.clock()
        while self.clock() - begin < seconds:
            call()
            self.backend.mark().wait()

    def _find_product(self, memory: Memory) -> None:
        """A product of some milliseconds, its seconds, and whether its call returns long before it is done."""
        dtype, backend = backend_dtype(self.backend), self.backend
        for width in PRODUCT_WIDTHS:
            if 3 * width * width * 4 > memory.room_bytes() // 2:
                break
            x, w = memory.array((width, width), dtype), memory.array((width, width), dtype, WEIGHT_DEVIATION)
            out = memory.array((width, width), dtype)

            def product(x: Any = x, w: Any = w, out: Any = out) -> None:
                backend.linear(x, w, None, out=out)

            self.product, self.product_s = product, self.settled(product)
            if self.product_s > self.sizes.busy_s:
                break
        shares = []
        for _ in range(self.sizes.repeats):
            begin = self.clock()
            self.product()
            returned = self.clock()
            backend.mark().wait()
            shares.append((returned - begin) / max(self.clock() - begin, LEAST_S))
        self.asynchronous = median(shares) < ASYNCHRONOUS_SHARE
        # How long it takes alone, without the host's wait for it: what is measured beside it is held against this.
        self.product_s = self.operator("product", Point(1, f"width {width}", [self.product]))


def between(start: Ticket, end: Ticket) -> float:
    """Seconds from one mark to another, once both are passed."""
    end.wait()
    return max(end.times()[0][0] - start.times()[0][0], LEAST_S)


def backend_dtype(backend: Backend) -> str:
    """The type of activations."""
    return backend.caps.compute_dtype
