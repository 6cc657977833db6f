"""Times what a job costs the host beside operators and copies: calls, submissions, and the engine's own work.

Small jobs run on the real engine, on the port inside a wrapper that adds up the seconds spent in operators; what is
left of a pass is the engine's, and follows from its visits, groups and rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np

from flexref.architecture.spec import LAYER_NORM_EPSILON, ModelSpec
from flexref.architecture.stages import stages as stages_of
from flexref.backend.protocol import Backend, Lane, Move, Span
from flexref.engine.engine import Engine
from flexref.engine.generation import Request
from flexref.engine.session import Session, always
from flexref.machine.machine import HostSeconds
from flexref.policy import Policy
from flexref.profile.meter import Meter, backend_dtype
from flexref.profile.operands import TABLE_DTYPE, Memory
from flexref.storage.random_weights import random_file

CALLS = 200
"""Operators that are called without waiting; a device's queue holds them."""

SUBMISSIONS = 50
"""Moves that are submitted without waiting."""

MOVED_BYTES = 4096
"""Of such a move."""

SMALL_WIDTH, SMALL_TOKENS = 128, 1
"""Of operators and of a job's model: what they compute takes hardly any time."""

PROMPT = (3, 1, 4)


@dataclass(frozen=True, slots=True)
class PortCounts:
    """What a counting port knows at a time: the time, and its sums until then."""

    now_s: float
    inside_s: float
    sampling_s: float
    calls: int


OPERATORS = frozenset(
    ("gather", "add_rows", "linear", "expand", "layer_norm", "activate", "append", "attend", "sample", "assign")
)
"""What a job calls to compute, and what curves tell the seconds of; all else that it asks of a port is its own work."""


def host_seconds(meter: Meter, disk_dir: str | Path) -> HostSeconds:
    """What calls, submissions and the engine take on the host."""
    meter.tell("the host's own work")
    with meter.memory() as memory:
        call_s = _call(meter, memory)
        submission_s = _submission(meter, memory)
    visit_s, choice_s, choice_row_s = _engine(meter, disk_dir, call_s)
    return HostSeconds(call_s, submission_s, visit_s, choice_s, choice_row_s)


def _call(meter: Meter, memory: Memory) -> float:
    """One call of a small operator on an asynchronous port; on another, what remains: a call of nothing."""
    backend, dtype = meter.backend, backend_dtype(meter.backend)
    call: Callable[[], object] = _nothing
    if meter.asynchronous:
        x, out = (memory.array((SMALL_TOKENS, SMALL_WIDTH), dtype) for _ in range(2))
        gain, shift = (memory.array((SMALL_WIDTH,), TABLE_DTYPE) for _ in range(2))
        call = partial(backend.layer_norm, x, gain, shift, LAYER_NORM_EPSILON, out)
    meter.once(call)
    values = []
    for _ in range(meter.sizes.repeats):
        begin = meter.clock()
        for _ in range(CALLS):
            call()
        values.append((meter.clock() - begin) / CALLS)
        backend.mark().wait()
    return meter.median("one call of an operator", "the host", values)


def _nothing() -> None:
    """What calling costs the language alone."""


def _submission(meter: Meter, memory: Memory) -> float:
    """One hand-over of a small move to a lane."""
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
    return meter.median("one submission", "the host", values)


class Counted:
    """A port that counts operators' calls, and that stays open when an engine closes it.

    Where operators are synchronous it also adds up the seconds inside of them; where they are not, their number tells.
    """

    def __init__(self, backend: Backend, clock: Callable[[], float], asynchronous: bool) -> None:
        self._backend, self._clock, self._asynchronous = backend, clock, asynchronous
        self.calls = 0
        self.inside_s = 0.0
        self.sampling_s = 0.0
        self.sampled: list[PortCounts] = []
        """After every `sample`."""
        for name in OPERATORS:
            setattr(self, name, self._watched(name, getattr(backend, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def close(self) -> None:
        """The port belongs to whoever measures; nothing is under way any more."""
        self._backend.mark().wait()

    def _watched(self, name: str, operator: Callable[..., Any]) -> Callable[..., Any]:
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
            self.sampled.append(PortCounts(end, self.inside_s, self.sampling_s, self.calls))
            return result

        if name == "sample":
            return sample
        return counted if self._asynchronous else timed


def _engine(meter: Meter, disk_dir: str | Path, call_s: float) -> tuple[float, float, float]:
    """(visit, choice, choice of a row) in seconds: the least squares of what is left of passes of some small jobs."""
    from scipy.optimize import nnls  # noqa: PLC0415  half a second, for who measures a machine alone

    sizes, equations, left = meter.sizes, [], []
    for layers, groups, rows in product(sizes.layers, sizes.groups, sizes.rows):
        count, seconds = _pass_left(meter, disk_dir, (layers, groups, rows), call_s)
        # Relative to the pass: a long one must not outweigh the others.
        weight = 1 / max(seconds, 1e-6)
        equations.append([groups * count * weight, groups * weight, groups * rows * weight])
        left.append(seconds * weight)
    solution, _ = nnls(np.array(equations), np.array(left))
    visit, choice, choice_row = (float(value) for value in solution)
    return visit, choice, choice_row


def _pass_left(meter: Meter, disk_dir: str | Path, shape: tuple[int, int, int], call_s: float) -> tuple[int, float]:
    """Stages of a pass, and what is left of a decode pass's seconds without its operators, for a job of that shape.

    What an asynchronous port's calls take is told by their number: only a sample's call waits for its result.
    """
    layers, groups, rows = shape
    spec = ModelSpec(
        "small", 512, 64, SMALL_WIDTH, SMALL_WIDTH, layers, heads=2, ffn_width=4 * SMALL_WIDTH, eos_token_ids=()
    )
    counted = Counted(meter.backend, meter.clock, meter.asynchronous)
    policy = Policy(rows_per_group=rows, groups_per_block=groups)
    file = random_file(spec)
    session = Session(file, cast(Backend, counted), always(policy), disk_dir=disk_dir)
    with Engine(session) as engine:
        request = Request(meter.sizes.passes + 1, ignore_eos=True)
        engine.generate([list(PROMPT)] * (rows * groups), request)
    left = []
    # From one sample of a group to its next, after the first decode pass: the prefill is over for every group.
    for before, after in zip(counted.sampled[groups:], counted.sampled[2 * groups :], strict=False):
        calls = after.calls - before.calls - groups
        operators = calls * call_s if meter.asynchronous else after.inside_s - before.inside_s
        left.append(max(0.0, after.now_s - before.now_s - (after.sampling_s - before.sampling_s) - operators))
    name = f"the engine's own work, {layers} layers, {groups} groups, {rows} rows"
    return len(stages_of(spec, file.tile_rows)), meter.median(name, "a pass", left)
