"""Times calls on a port, by the device's own clock, as medians of repeats; it knows no model.

On an asynchronous port, operators are called while a product keeps the device busy. They then run back to back, as in a
long job, and the host's time to call them is not counted. On a synchronous port, a product runs before each short
operator, so that the processor's caches hold other data, as in a job.
"""

import math
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from functools import partial
from itertools import cycle
from statistics import median
from types import TracebackType
from typing import Any

from flexref.backend.protocol import Backend, Ticket
from flexref.machine.curves import Curve
from flexref.profile.operands import WEIGHT_DEVIATION, Memory
from flexref.profile.pace import Pace
from flexref.profile.points import FEW_CALLS, SOON_S, Call, Point, Timed
from flexref.profile.record import LEAST_REPEATS, LEAST_S, Record
from flexref.profile.sizes import Sizes

FORGOTTEN_S = 0.005
"""An operator that takes longer than this takes about the same time whatever the processor's caches hold."""

REPLAYED_S = 0.001
"""An operator that takes longer is no part of a decode pass that an engine replays; how it is called hardly matters."""

CALLS_MOST = 64
"""Most calls in one window: a device's queue holds them all."""

FILLED_BYTES = 4 << 20
"""So many bytes of device memory are filled to measure how fast that is."""

FILLING_PART, LEAST_ROTATED_BYTES = 4, 48 << 20
"""At most a quarter of the time left may go into filling operands; but 48 MiB, more than most processors' caches hold,
are filled however long that takes."""

PRODUCT_WIDTHS = (64, 256, 512, 1024, 2048, 4096)
"""Widths that are tried for the product that keeps a device busy, until it takes long enough."""

BUSY_MOST = 64
"""Most of these products that are called at once."""

ISSUE_S = 50e-6
"""How long a device is kept busy for one call before that call has been timed: more than any call takes the host."""

ASYNCHRONOUS_SHARE = 0.5
"""A port is asynchronous if the call of a product returns before half of the product's time has passed."""

FAR_TOO_LONG = 8.0
"""A curve ends before a point that, if seconds grew in proportion to size, would take 8 times the longest time allowed.
At first most grow less than that."""


class Meter:
    """Measures on one port. A context manager, since the product that keeps the device busy holds memory."""

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
        """Bytes of the operands that take turns, as far as there is time to fill them."""
        return self.timely(self.sizes.rotated_bytes)

    def timely(self, nbytes: int, least: int = LEAST_ROTATED_BYTES) -> int:
        """`nbytes`, or as many as there is time to fill, but not less than `least`."""
        return int(min(nbytes, max(least, self.pace.left_s * self.filled_per_s / FILLING_PART)))

    def curve(self, name: str, points: Generator[Point, None, None], count: int) -> Curve:
        """The curve through at most `count` points of rising size.

        It ends after a call that takes longer than `longest_s`, or when there is no time for more. The first point is
        measured however long it takes.
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
        """Seconds of one of the point's calls by the device's clock: the median over windows, after a warm-up.

        Where there is no time for a window: see `figure`.
        """
        single_s = self.once(point.calls[0])
        if self.asynchronous or self.pace.has(single_s):
            single_s = self._again(point.calls[0], single_s)
        timed = self.timed(point, single_s)
        while timed.wants_more and self.has_time_for(timed):
            self.window(timed)
        return self.figure(name, timed)

    def figure(self, name: str, timed: Timed) -> float:
        """The seconds of one call of a point whose windows have been timed, as far as there was time for them.

        Where there was none it is a few calls by the device's clock or, on a synchronous port, the warm-up by the
        host's, which is not shorter: of an asynchronous one that would count what a call costs the host.
        """
        point = timed.point
        if not timed.values:
            self.record.cut(name, point.label)
            if self.asynchronous and not point.blocking:
                timed.count = min(timed.count, FEW_CALLS)
                self.window(timed)
            else:
                timed.values.append(timed.single_s)
        if timed.recording is not None:
            self.backend.forget(timed.recording)
        return self.record.figure(name, point.label, timed.values, point.size)

    def affords(self, seconds: float) -> bool:
        """Whether there is time for something, or a device does it so soon that nobody waits for it."""
        return self.pace.has(seconds) or (self.asynchronous and seconds < SOON_S)

    def has_time_for(self, timed: Timed) -> bool:
        """Whether there is time for another window."""
        before_s = self.product_s if not self.asynchronous and timed.single_s < FORGOTTEN_S else timed.issue_s
        return self.pace.has(timed.count * timed.single_s + before_s)

    def timed(self, point: Point, single_s: float) -> "Timed":
        """Prepare a point for timing in windows; one of its calls takes about `single_s` seconds."""
        alone = point.blocking or not self.asynchronous
        count = 1 if alone else max(1, min(CALLS_MOST, int(self.sizes.window_s / single_s)))
        repeats = self.sizes.repeats if single_s * count < 2 * self.sizes.window_s else LEAST_REPEATS
        return Timed(point, cycle(point.calls), single_s, count, repeats, ISSUE_S * count)

    def window(self, timed: Timed) -> None:
        """Time one more window of a point's calls, and keep the seconds of one call.

        Short operators are replayed where the port records them, as an engine does: they follow each other faster.
        """
        if not timed.values and self._is_replayed(timed):
            timed.recording = self.backend.record(partial(self._call, timed))
            self.backend.replay(timed.recording)  # the first replay makes ready what the others find
        if self.asynchronous:
            self.keep_busy(timed.issue_s)
        elif timed.single_s < FORGOTTEN_S:
            self.product()
        start, issued = self.backend.mark(), self.clock()
        if timed.recording is None:
            self._call(timed)
        else:
            self.backend.replay(timed.recording)
        if not timed.point.blocking:
            timed.issue_s = self.clock() - issued
        timed.values.append(between(start, self.backend.mark()) / timed.count)

    def _is_replayed(self, timed: Timed) -> bool:
        return self.backend.caps.replays and not timed.point.blocking and timed.single_s < REPLAYED_S

    def _call(self, timed: Timed) -> None:
        """The calls of one window."""
        for _ in range(timed.count):
            next(timed.turns)()

    def once(self, call: Call) -> float:
        """Seconds of one call by the host's clock, until all that it started has ended."""
        begin = self.clock()
        call()
        self.backend.mark().wait()
        return max(self.clock() - begin, LEAST_S)

    def settled(self, call: Call) -> float:
        """Seconds of the second call by the host's clock: the first compiles kernels and touches fresh memory."""
        return self._again(call, self.once(call))

    def _again(self, call: Call, first_s: float) -> float:
        """Seconds of a second call, after one of `first_s` seconds.

        On an asynchronous port the difference is time for compilation. It is not counted against the profile's bound:
        a job would have to wait for it too, and no curve must be cut short for it.
        """
        seconds = self.once(call)
        if self.asynchronous:
            self.pace.excuse(first_s - seconds)
        return seconds

    def host(self, name: str, label: str, call: Call, size: float) -> float:
        """Seconds of a call that works on the host alone: the median over windows of calls."""
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
        """Queue products that keep an asynchronous device busy for so long; returns at once."""
        if self.asynchronous:
            for _ in range(min(BUSY_MOST, math.ceil(seconds / self.product_s))):
                self.product()

    def heat(self, call: Call, seconds: float) -> None:
        """Repeat a call back to back for so long."""
        begin = self.clock()
        while self.clock() - begin < seconds:
            call()
            self.backend.mark().wait()

    def _find_product(self, memory: Memory) -> None:
        """Find a product of some milliseconds, its seconds, and whether the port is asynchronous."""
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
        # Its seconds by the device's clock, without the host's wait: measurements beside it are compared with these.
        self.product_s = self.operator("product", Point(1, f"width {width}", [self.product]))


def between(start: Ticket, end: Ticket) -> float:
    """Wait for both marks; seconds from `start` to `end`."""
    end.wait()
    return max(end.times()[0][0] - start.times()[0][0], LEAST_S)


def backend_dtype(backend: Backend) -> str:
    """The type of activations."""
    return backend.caps.compute_dtype
