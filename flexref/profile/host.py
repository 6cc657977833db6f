"""Times the host's own work in a job: calls of operators, submissions of copies, and the engine's Python; no curve.

The engine's part is found by subtraction. Small jobs run on the real engine, with the port in a wrapper that adds up
the seconds spent in operators. What is left of a pass is the engine's work, and a fit splits it into seconds per visit,
per group and per row.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from flexref.architecture.spec import LAYER_NORM_EPSILON, ModelSpec
from flexref.architecture.stages import stages as stages_of
from flexref.backend.protocol import Backend, Lane, LaneStep, Move, Span, Ticket
from flexref.engine.engine import Engine
from flexref.engine.request import Request
from flexref.engine.session import Session, always
from flexref.machine.machine import HostSeconds
from flexref.policy import Policy, Shares
from flexref.profile.meter import Meter, backend_dtype
from flexref.profile.operands import TABLE_DTYPE, Memory
from flexref.storage.random_weights import random_file

Values = npt.NDArray[np.float64]

CALLS = 200
"""Calls of an operator in a row, without waiting: a device's queue holds so many."""

REPLAYED = 10
"""Operators of a recording: about those of a layer."""

SUBMISSIONS = 50
"""Moves that are submitted in a row, without waiting."""

MOVED_BYTES = 4096
"""Bytes of each of these moves."""

SMALL_WIDTH, SMALL_TOKENS = 128, 1
"""Width and tokens of these operators, and width of the small jobs' model: computing takes hardly any time."""

PROMPT = (3, 1, 4)


@dataclass(frozen=True, slots=True)
class PortCounts:
    """The sums of a `Counted` port at the time `now_s`: seconds in operators and in `sample`, calls, submissions."""

    now_s: float
    inside_s: float
    sampling_s: float
    calls: int
    submissions: int


OPERATORS = frozenset(
    ("gather", "add_rows", "linear", "expand", "layer_norm", "activate", "append", "attend", "sample", "assign")
)
"""The methods of a port whose seconds are predicted from curves. Its other methods count as the engine's own work."""


def host_seconds(meter: Meter, disk_dir: str | Path) -> HostSeconds:
    """Measure the seconds that calls, submissions and the engine take on the host. The engine spills to `disk_dir`."""
    meter.tell("the host's own work")
    with meter.memory() as memory:
        call_s = _call(meter, memory)
        submission_s = _submission(meter, memory)
        replay_s, record_s = _replay(meter, memory)
    visit_s, choice_s, choice_row_s = _engine(meter, disk_dir, (call_s, submission_s))
    return HostSeconds(call_s, submission_s, visit_s, choice_s, choice_row_s, replay_s, record_s)


def _call(meter: Meter, memory: Memory) -> float:
    """Seconds of one call of a small operator on an asynchronous port; on any other, of a Python call of nothing.

    On the latter an operator's own seconds are in its curve already.
    """
    call = _small_operator(meter, memory) if meter.asynchronous else _nothing
    return _host_seconds(meter, "one call of an operator", call)


def _small_operator(meter: Meter, memory: Memory) -> Callable[[], object]:
    dtype = backend_dtype(meter.backend)
    x, out = (memory.array((SMALL_TOKENS, SMALL_WIDTH), dtype) for _ in range(2))
    gain, shift = (memory.array((SMALL_WIDTH,), TABLE_DTYPE) for _ in range(2))
    return partial(meter.backend.layer_norm, x, gain, shift, LAYER_NORM_EPSILON, out)


def _replay(meter: Meter, memory: Memory) -> tuple[float, float]:
    """Seconds to replay operators that were recorded, about as many as a stage has, and to record one of them and have
    it ready; zeros for a port that records none.
    """
    backend = meter.backend
    if not backend.caps.replays:
        return 0.0, 0.0
    call = _small_operator(meter, memory)
    meter.once(call)

    def operators() -> None:
        for _ in range(REPLAYED):
            call()

    took_s = []
    for _ in range(1 + meter.sizes.repeats):  # the first of all makes the port ready for it
        begin = meter.clock()
        recording = backend.record(operators)
        backend.replay(recording)
        took_s.append((meter.clock() - begin) / REPLAYED)
        if len(took_s) <= meter.sizes.repeats:
            backend.forget(recording)
    record_s = meter.record.figure("one operator that is recorded", "the host", took_s[1:])
    replay_s = _host_seconds(meter, "one replay", partial(backend.replay, recording))
    backend.forget(recording)
    return replay_s, record_s


def _host_seconds(meter: Meter, name: str, call: Callable[[], object]) -> float:
    """Seconds of the host's for one of many calls in a row."""
    meter.once(call)
    values = []
    for _ in range(meter.sizes.repeats):
        begin = meter.clock()
        for _ in range(CALLS):
            call()
        values.append((meter.clock() - begin) / CALLS)
        meter.backend.mark().wait()
    return meter.record.figure(name, "the host", values)


def _nothing() -> None:
    """Does nothing: times what a call costs in Python."""


def _submission(meter: Meter, memory: Memory) -> float:
    """Seconds to submit one small move to a lane."""
    host, device = memory.buffer("host", MOVED_BYTES), memory.buffer("device", MOVED_BYTES)
    meter.backend.host_memory(host)[:] = np.arange(MOVED_BYTES, dtype=np.uint8)
    step = Move("measuring", Span(host, 0, MOVED_BYTES), Span(device, 0, MOVED_BYTES))
    memory.submit(Lane.WEIGHTS_IN, [step]).wait()
    values = []
    for _ in range(meter.sizes.repeats):
        begin = meter.clock()
        tickets = [meter.backend.submit(Lane.WEIGHTS_IN, [step], ()) for _ in range(SUBMISSIONS)]
        values.append((meter.clock() - begin) / SUBMISSIONS)
        tickets[-1].wait()
    return meter.record.figure("one submission", "the host", values)


class Counted:
    """A port that counts the calls of its operators, and that stays open when an engine closes it.

    On a synchronous port it adds up the seconds inside operators too. On an asynchronous one calls return at once, and
    their number times the seconds of a call is used in place of that.
    """

    def __init__(self, backend: Backend, clock: Callable[[], float], asynchronous: bool) -> None:
        self._backend, self._clock, self._asynchronous = backend, clock, asynchronous
        self.calls = self.submissions = 0
        self.inside_s = 0.0
        self.sampling_s = 0.0
        self.sampled: list[PortCounts] = []
        """The sums after every call of `sample`."""
        for name in OPERATORS:
            setattr(self, name, self._watched(name, getattr(backend, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def submit(self, lane: Lane, steps: Sequence[LaneStep], after: Sequence[Ticket]) -> Ticket:
        """See `Backend.submit`."""
        self.submissions += 1
        return self._backend.submit(lane, steps, after)

    def close(self) -> None:
        """Wait for what is under way. The port itself stays open for the next measurement."""
        self._backend.mark().wait()

    def _watched(self, name: str, operator: Callable[..., Any]) -> Callable[..., Any]:
        """The operator with counting around it."""
        clock = self._clock

        def counted(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            return operator(*arguments, **options)

        def timed(*arguments: Any, **options: Any) -> Any:
            begin = clock()
            result = operator(*arguments, **options)
            self.inside_s += clock() - begin
            self.calls += 1
            return result

        def sample(*arguments: Any, **options: Any) -> Any:
            begin = clock()
            result = operator(*arguments, **options)
            end = clock()
            self.sampling_s += end - begin
            self.calls += 1
            self.sampled.append(PortCounts(end, self.inside_s, self.sampling_s, self.calls, self.submissions))
            return result

        if name == "sample":
            return sample
        return counted if self._asynchronous else timed


def _engine(meter: Meter, disk_dir: str | Path, called_s: tuple[float, float]) -> tuple[float, float, float]:
    """Seconds of the engine's work per visit, per choice of tokens, and per row of a choice.

    Passes of small jobs of several shapes are measured, and the three figures fitted to what operators leave of them
    (least squares, none below 0). `called_s`: seconds of a call of an operator, and of a submission.
    """
    sizes, equations, left = meter.sizes, [], []
    shapes = sorted(product(sizes.layers, sizes.groups, sizes.rows), key=math.prod)
    took_s, begin = 0.0, meter.clock()
    if meter.asynchronous:
        _pass_left(meter, disk_dir, shapes[0], called_s)
        meter.pace.excuse(meter.clock() - begin)  # what is compiled
    for place, (layers, groups, rows) in enumerate(meter.pace.parts(shapes)):
        if place and not meter.pace.has(took_s):
            meter.record.cut("the engine's own work", f"{place} of {len(shapes)} small jobs")
            break
        begin = meter.clock()
        count, seconds = _pass_left(meter, disk_dir, (layers, groups, rows), called_s)
        took_s = meter.clock() - begin
        # Errors count relative to a pass, so that long passes do not outweigh short ones.
        weight = 1 / max(seconds, 1e-6)
        equations.append([groups * count * weight, groups * weight, groups * rows * weight])
        left.append(seconds * weight)
    visit, choice, choice_row = (float(value) for value in least_squares(np.array(equations), np.array(left)))
    return visit, choice, choice_row


def least_squares(equations: Values, values: Values) -> Values:
    """The numbers (N,), none below 0, that solve equations (M, N) with least squares of what is left of values (M,).

    For the few numbers that there are here all are tried that may be other than 0: to import scipy for it would take
    longer than to measure what is to be solved.
    """
    count = equations.shape[1]
    best, least = np.zeros(count), float(np.sum(values**2))
    for size in range(1, count + 1):
        for columns in map(list, combinations(range(count), size)):
            found = np.linalg.lstsq(equations[:, columns], values)[0]
            error = float(np.sum((equations[:, columns] @ found - values) ** 2))
            if np.all(found >= 0) and error < least:
                best, least = np.zeros(count), error
                best[columns] = found
    return best


def _pass_left(
    meter: Meter, disk_dir: str | Path, shape: tuple[int, int, int], called_s: tuple[float, float]
) -> tuple[int, float]:
    """A job of `shape` (layers, groups, rows): the stages of a pass, and a decode pass's seconds without operators."""
    layers, groups, rows = shape
    spec = ModelSpec(
        "small", 512, 64, SMALL_WIDTH, SMALL_WIDTH, layers, heads=2, ffn_width=4 * SMALL_WIDTH, eos_token_ids=()
    )
    counted = Counted(meter.backend, meter.clock, meter.asynchronous)
    # What a visit costs counts where it is called by itself: with weights under way to it, where they are apart.
    weights = Shares() if meter.backend.caps.one_memory else Shares(0, 1, 0)
    policy = Policy(weights=weights, rows_per_group=rows, groups_per_block=groups)
    file = random_file(spec)
    session = Session(file, cast(Backend, counted), always(policy), disk_dir=disk_dir, graphs=False)
    with Engine(session) as engine:
        request = Request(meter.sizes.passes + 1, ignore_eos=True)
        engine.generate([list(PROMPT)] * (rows * groups), request)
    left = []
    # A pass is measured from one `sample` of a group to its next. The first of each group ends the prefill, and is
    # left out.
    for before, after in zip(counted.sampled[groups:], counted.sampled[2 * groups :], strict=False):
        calls = after.calls - before.calls - groups
        outside = calls * called_s[0] + (after.submissions - before.submissions) * called_s[1]
        operators = outside if meter.asynchronous else after.inside_s - before.inside_s
        left.append(max(0.0, after.now_s - before.now_s - (after.sampling_s - before.sampling_s) - operators))
    name = f"the engine's own work, {layers} layers, {groups} groups, {rows} rows"
    return len(stages_of(spec, file.tile_rows)), meter.record.figure(name, "a pass", left)
