"""Ctrl-C at any line of the engine's work: it ends the job, leaves nothing behind, and the engine goes on."""

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import flexref_numpy.lanes as numpy_lanes
import pytest
from flexref_numpy import NumpyBackend

import flexref
from flexref import loading
from flexref.architecture.spec import ModelSpec
from flexref.check.models import write_model
from flexref.engine import interrupts
from flexref.engine.engine import Engine
from flexref.engine.interrupts import FORCED, Interrupts
from flexref.engine.request import Request
from flexref.engine.scoring import ScoredRow
from flexref.errors import EngineError
from flexref.loading import load
from flexref.policy import Policy, Shares
from flexref.units import Tier

SPEC = ModelSpec("small", 50, 48, 16, 16, 2, 2, 32)
EVERYWHERE = Shares(0.2, 0.4, 0.4)
POLICY = Policy(EVERYWHERE, Shares(0.3, 0.3, 0.4), Shares(0, 0.5, 0.5), rows_per_group=2, groups_per_block=2)
OTHER = POLICY.changed(weights=Shares(0.5, 0.5, 0))
"""Of other weights, which are loaded when it comes after the first."""
ON_HOST = POLICY.changed(weights=Shares(0, 1, 0), cache=Shares(0, 1, 0), activations=Shares(0, 1, 0))
PROMPTS = [[1, 2, 3, 4], [5, 6, 7], [8, 9]]
REQUEST = Request(3, ignore_eos=True)
WORK = tuple(str(Path(flexref.__file__).parent / part) for part in ("block", "engine", "tiers"))
"""Where an interrupt comes between any two lines."""
ANY: frozenset[str] = frozenset()
DELICATE = frozenset(("take", "give_back", "_take", "allocate", "release", "submit", "settle", "run"))
"""Where memory is counted, and copies are started and waited for."""
PLACES = 24
"""Places of every job that are tried, evenly over its lines: each costs two jobs."""
PATIENCE_S = 30.0
"""Bounds how long a test waits for what should happen at once."""


def press() -> None:
    """Ctrl-C, whichever thread calls this."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


class Watched(NumpyBackend):
    """Knows which buffers were given back, and so which copies of its lanes come too late."""

    def __init__(self) -> None:
        super().__init__(1 << 16)
        self.released: dict[int, Any] = {}
        self.late: list[str] = []

    def release(self, buffer: Any) -> None:
        self.released[buffer.ctypes.data] = buffer

    def watch(self, step: Any) -> None:
        for span in () if isinstance(step, numpy_lanes.HostWork) else (step.source, step.target):
            if span.buffer.ctypes.data in self.released:
                self.late.append(step.what)


@pytest.fixture
def path(tmp_path: Path) -> str:
    write_model(tmp_path / "model.h5", SPEC)
    return str(tmp_path / "model.h5")


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Watched:
    port, run_step = Watched(), numpy_lanes.run_step

    def watched(step: Any) -> tuple[float, float]:
        port.watch(step)
        return run_step(step)

    monkeypatch.setattr(numpy_lanes, "run_step", watched)
    return port


@contextmanager
def interrupted_at(lines: set[int], functions: frozenset[str] = ANY) -> Iterator[list[int]]:
    """Press Ctrl-C before these lines of the engine's, of some functions, counted from here on; gives the count."""
    count = [0]

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(WORK) or frame.f_code.co_filename == INTERRUPTS:
            return None
        if functions and frame.f_code.co_name not in functions:
            return None
        if event == "line":
            count[0] += 1
            if count[0] in lines:
                signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(before)


INTERRUPTS = str(Path(flexref.__file__).parent / "engine" / "interrupts.py")


def held(engine: Engine) -> dict[Tier, int]:
    return {tier: arena.held_bytes for tier, arena in engine.session.arenas.items()}


def lane_threads() -> set[threading.Thread]:
    """Those of other tests' engines among them: what is not closed by a test ends when the process does."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("flexref lane")}


def generate(engine: Engine) -> Any:
    return [output.token_ids for output in engine.generate(PROMPTS, REQUEST).outputs]


def score(engine: Engine) -> Any:
    return [row.logprobs.tolist() for row in engine.score([ScoredRow(tuple(row)) for row in PROMPTS]).rows]


def reload(engine: Engine) -> Any:
    """Give the weights another place."""
    engine.session.weights_for(OTHER)
    engine.session.weights_for(POLICY)


@pytest.mark.parametrize("presses", [1, 2])
@pytest.mark.parametrize("job", [generate, score, reload])
@pytest.mark.parametrize("functions", [ANY, DELICATE], ids=["any", "delicate"])
def test_an_interrupt_at_any_line_leaves_nothing_behind(
    path: str, port: Watched, tmp_path: Path, job: Callable[[Engine], Any], presses: int, functions: frozenset[str]
) -> None:
    spill, interrupted, others = tmp_path / "spill", 0, lane_threads()
    spill.mkdir()
    with load(path, policy=POLICY, backend=port, disk_dir=spill) as engine:
        expected = job(engine)
        with interrupted_at(set(), functions) as count:
            job(engine)
        base, lines = held(engine), count[0]
        assert lines > PLACES
        for place in range(1, lines, -(-lines // PLACES)):
            port.released.clear()  # their addresses may have been taken again
            try:
                with interrupted_at({place, place + 1 + place % 7} if presses == 2 else {place}, functions):
                    assert job(engine) == expected  # it may take a few lines less than the one that was counted
            except KeyboardInterrupt:
                interrupted += 1
            if job is reload:
                engine.session.weights_for(POLICY)
            assert held(engine) == base, f"interrupted before line {place} of {lines}"
            port.released.clear()
            assert job(engine) == expected
            assert not port.late, f"copies of memory that was given back, interrupted before line {place} of {lines}"
    assert interrupted > PLACES // 2
    assert not os.listdir(spill)
    assert lane_threads() <= others


def test_interrupts_while_lanes_are_waited_for_free_nothing_that_they_use(
    path: str, port: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_step, numbers = numpy_lanes.run_step, itertools.count(1)

    def slow(step: Any) -> tuple[float, float]:
        if "loading" not in step.what and next(numbers) == 12:
            for _ in range(2):
                press()
                time.sleep(0.2)
        return run_step(step)

    monkeypatch.setattr(numpy_lanes, "run_step", slow)
    with load(path, policy=ON_HOST, backend=port) as engine:
        with pytest.raises(KeyboardInterrupt):
            engine.generate(PROMPTS, REQUEST)
        time.sleep(0.5)
        assert not port.late
        assert engine.session.arenas[Tier.HOST].holders.keys() == {"weights"}


@contextmanager
def stuck(monkeypatch: pytest.MonkeyPatch, at: int) -> Iterator[None]:
    """The lanes' step number `at` that is not loading ends when the test does."""
    run_step, numbers, gate = numpy_lanes.run_step, itertools.count(1), threading.Event()

    def hang(step: Any) -> tuple[float, float]:
        if "loading" not in step.what and next(numbers) == at:
            gate.wait(PATIENCE_S)
        return run_step(step)

    monkeypatch.setattr(numpy_lanes, "run_step", hang)
    try:
        yield
    finally:
        gate.set()


def test_a_lane_that_hangs_makes_no_program_that_cannot_be_ended(
    path: str, port: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its engine is given up: it takes no job any more, gives back nothing that the lane may use, closes at once."""
    monkeypatch.setattr(interrupts, "FORCED_AFTER_S", 0.5)
    over, presses = threading.Event(), [0]

    def keep_pressing() -> None:
        while not over.wait(0.1):
            presses[0] += 1
            press()

    with stuck(monkeypatch, at=9):
        engine = load(path, policy=ON_HOST, backend=port)
        thread, start = threading.Thread(target=keep_pressing), time.perf_counter()
        engine.session.weights_for(ON_HOST)
        port.released.clear()
        try:
            thread.start()
            engine.generate(PROMPTS, REQUEST)
            pytest.fail("nothing interrupted it")
        except KeyboardInterrupt:
            over.set()
        thread.join()
        assert FORCED <= presses[0] <= FORCED + 60
        assert not port.released
        with pytest.raises(EngineError, match="cannot go on"):
            engine.generate(PROMPTS, REQUEST)
        engine.close()
        engine.close()
        assert time.perf_counter() - start < PATIENCE_S / 2
    with pytest.raises(EngineError, match="closed"):
        engine.generate(PROMPTS, REQUEST)
    port.close()  # the lane goes on now
    engine.session._disk.source.close()


def test_a_key_that_is_held_down_does_not_break_an_engine(path: str, port: Watched) -> None:
    with load(path, policy=POLICY, backend=port) as engine:
        expected = generate(engine)

        def hold(*_: Any) -> None:
            for _ in range(10 * FORCED):
                press()

        with pytest.raises(KeyboardInterrupt):
            engine.generate(PROMPTS, REQUEST, on_logits=hold)
        assert not engine.session.arenas[Tier.HOST].holders.keys() & {"KV cache", "activations"}
        assert generate(engine) == expected


def test_between_two_tokens_an_interrupt_acts_at_once(path: str) -> None:
    with load(path, policy=POLICY) as engine:
        before = signal.getsignal(signal.SIGINT)
        inside: list[Any] = []
        engine.generate(PROMPTS, REQUEST, on_visit=lambda *_: inside.append(signal.getsignal(signal.SIGINT)))
        assert before not in inside
        for _ in engine.stream(PROMPTS, REQUEST):
            assert signal.getsignal(signal.SIGINT) == before
        engine.generate(PROMPTS, REQUEST, on_token=lambda _: inside.append(signal.getsignal(signal.SIGINT)))
        assert before in inside
        base = held(engine)

        def press_and_wait(_: Any) -> None:
            press()
            pytest.fail("an interrupt was held back while the caller's own code ran")

        with pytest.raises(KeyboardInterrupt):
            engine.generate(PROMPTS, REQUEST, on_token=press_and_wait)
        stream = engine.stream(PROMPTS, REQUEST)
        next(stream)
        with pytest.raises(KeyboardInterrupt):
            press_and_wait(stream)
        del stream
        assert held(engine) == base
        assert signal.getsignal(signal.SIGINT) == before


class Stopped(Exception):
    """What a user's own handler raises."""


@contextmanager
def handler(of_user: Any) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, of_user)
    try:
        yield
        assert signal.getsignal(signal.SIGINT) == of_user
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_of_the_user_s_own_acts_where_nothing_is_half_done(path: str) -> None:
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        assert frame is not None

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    with load(path, policy=POLICY) as engine:
        expected = generate(engine)
        base = held(engine)
        with handler(note):
            with interrupted_at({200, 300, 400, 500}):
                assert generate(engine) == expected
            assert seen == [signal.SIGINT] * 4, "every one of them, and none ends a job that it does not mean to end"
        with handler(stop), pytest.raises(Stopped), interrupted_at({300}):
            engine.generate(PROMPTS, REQUEST)
        with handler(signal.SIG_IGN), interrupted_at({300}):
            assert generate(engine) == expected
        assert held(engine) == base
        assert generate(engine) == expected


def test_an_engine_inside_another_s_callback_is_interrupted_too(path: str) -> None:
    with load(path, policy=POLICY) as outer, load(path, policy=POLICY) as inner:
        expected, base = generate(outer), held(outer)

        def nested(*_: Any) -> None:
            with interrupted_at({300}):
                inner.generate(PROMPTS, REQUEST)
            pytest.fail("the inner job was not interrupted")

        with pytest.raises(KeyboardInterrupt):
            outer.generate(PROMPTS, REQUEST, on_logits=nested)
        assert held(outer) == base
        assert generate(outer) == generate(inner) == expected


def test_an_interrupt_while_an_engine_is_made_leaves_nothing_open(
    path: str, open_files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[NumpyBackend] = []

    class Pressed(NumpyBackend):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loading, "create", lambda name: Pressed())
    before = open_files()
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            load(path, policy=POLICY)
    assert open_files() <= before
    for port in made:
        with pytest.raises(RuntimeError, match="is closed"):
            port.submit("disk_in", (), ())


def test_in_another_thread_there_is_nothing_to_hold_back(path: str) -> None:
    found: list[Any] = []
    with load(path, policy=POLICY) as engine:
        thread = threading.Thread(target=lambda: found.extend(generate(engine)))
        thread.start()
        thread.join()
        assert found == generate(engine)


def test_a_handler_that_is_installed_meanwhile_stays() -> None:
    held_back, before = Interrupts(), signal.getsignal(signal.SIGINT)
    try:
        with held_back, held_back:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
