"""Jobs whose visits are replayed give what they give without it, while rows come and go; and what fails is told."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_bench import NO_COMPILER
from emulated_cuda import EmulatedCuda, compiler_is_here
from flexref_cupy import CupyBackend
from flexref_dry import DryBackend
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.backend.protocol import CHUNK_TOKENS
from flexref.block.replays import KEPT_PASSES, Replays
from flexref.block.rows import RowLengths
from flexref.check.models import write_model
from flexref.engine.request import Request, RowRequest
from flexref.engine.results import Stats
from flexref.errors import CapacityError, FlexrefError
from flexref.loading import load
from flexref.machine.plain import plain_machine
from flexref.policy import Policy, Shares
from flexref.profile.measure import port_of
from flexref.sampling.settings import SamplingSettings
from flexref.simulator.simulate import simulate
from flexref.testing import strategies as own

pytestmark = pytest.mark.skipif(not compiler_is_here(), reason=NO_COMPILER)

SPEC = ModelSpec("small", 60, 48, 16, 16, 2, 1, 32)
ROWS = [[1, 2, 3], [4, 5], [6, 7, 8, 9], [10], [11, 12]]
STAGES = SPEC.layers + 2
HOST = Shares(0, 1, 0)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("models") / "model.h5"
    write_model(found, SPEC, scheme="int4", dtype="float16")
    return found


def port(late: bool = True, **changes: Any) -> CupyBackend:
    return CupyBackend(cuda=EmulatedCuda(**{"capability": (9, 0), "multiprocessors": 8, "late": late, **changes}))


def generated(path: Path, policy: Policy, graphs: bool, **options: Any) -> tuple[list[list[int]], Stats]:
    with load(path, policy=policy, backend=port(), graphs=graphs) as engine:
        found = engine.generate(ROWS, Request(8, ignore_eos=True), **options)
    return [output.token_ids for output in found.outputs], found.stats


@pytest.fixture(scope="module")
def expected(path: Path) -> list[list[int]]:
    """The tokens of direct calls, which are the same for every policy."""
    tokens, stats = generated(path, Policy(rows_per_group=5), False)
    assert stats.replayed_visits == 0
    return tokens


@st.composite
def asked(draw: st.DrawFn) -> list[tuple[list[int], int]]:
    rows = draw(own.token_rows(SPEC.vocabulary, rows=7, longest=5))
    return [(row, draw(st.integers(1, 9))) for row in rows]


@settings(max_examples=7)
@given(asked(), own.policies(attention_on="device"))
def test_rows_that_come_and_go_have_the_tokens_of_direct_calls(
    path: Path, rows: list[tuple[list[int], int]], policy: Policy
) -> None:
    found = []
    for graphs in (True, False):
        requests = [RowRequest(row, Request(count, ignore_eos=True)) for row, count in rows]
        with load(path, policy=policy, backend=port(), graphs=graphs) as engine:
            results = sorted(engine.run(requests), key=lambda result: result.number)
        found.append([result.output and result.output.token_ids for result in results])
    assert found[0] == found[1]


def test_rows_that_follow_each_other_need_one_recording(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beside one that is read while others decode: handles stand for other rows and lengths then."""
    made: list[Any] = []
    record = CupyBackend.record
    monkeypatch.setattr(CupyBackend, "record", lambda self, operators: made.append(record(self, operators)) or made[-1])
    for rows, most in ((1, 1), (2, 2)):
        made.clear()
        requests = [RowRequest(ROWS[number % 5], Request(5 + number % 3, ignore_eos=True)) for number in range(9)]
        with load(path, policy=Policy(rows_per_group=rows), backend=port()) as engine:
            assert len(list(engine.run(requests))) == 9
        assert len(made) <= most  # of a pass of two rows, and of the last row alone


@pytest.mark.parametrize("share", [True, False])
def test_a_row_waits_for_a_prefix_that_another_group_reads_in_the_same_pass(tmp_path: Path, share: bool) -> None:
    """Rows with one token of their own: their first pass looks like one of decode."""
    path, prefix = tmp_path / "model.h5", [(7 * token) % 60 for token in range(CHUNK_TOKENS)]
    write_model(path, replace(SPEC, positions=80), dtype="float16")
    found = []
    for graphs in (True, False):
        policy = Policy(rows_per_group=1, groups_per_block=3, share_prefixes=share)
        with load(path, policy=policy, backend=port(), graphs=graphs) as engine:
            asked = engine.generate([[*prefix, token] for token in (1, 2, 3)], Request(5, ignore_eos=True))
        found.append([output.token_ids for output in asked.outputs])
    assert found[0] == found[1]
    assert asked.stats.shared_prefix_tokens == (2 * CHUNK_TOKENS if share else 0)


@pytest.mark.parametrize("graphs", [True, False])
def test_a_prefix_is_read_after_a_pass_of_as_many_rows_at_home(tmp_path: Path, graphs: bool) -> None:
    """In two passes, so that a pass has nothing but its beginning. Prefixes lie apart, layer by layer, as homes do: a
    handle of a row at home that is renewed for one is right in the first layer alone."""
    path, prefix = tmp_path / "model.h5", [(7 * token) % 60 for token in range(CHUNK_TOKENS)]
    write_model(path, replace(SPEC, positions=80), dtype="float16")
    rows = [RowRequest([1, 2], Request(4, ignore_eos=True))]
    rows += [RowRequest([*prefix, token], Request(2, ignore_eos=True)) for token in (1, 2)]
    found = []
    for share in (True, False):
        policy = Policy(rows_per_group=1, share_prefixes=share, prompt_chunk_tokens=CHUNK_TOKENS // 2)
        with load(path, policy=policy, backend=port(), graphs=graphs) as engine:
            results = sorted(engine.run(rows), key=lambda result: result.number)
        found.append([result.output and result.output.token_ids for result in results])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("policy", "every"),
    [
        (Policy(rows_per_group=5), True),
        (Policy(rows_per_group=3, groups_per_block=2), True),
        (Policy(rows_per_group=3, groups_per_block=2, weights=HOST), False),
        (Policy(rows_per_group=3, groups_per_block=2, weights=HOST, cache=HOST, activations=HOST), False),
        (Policy(rows_per_group=3, groups_per_block=2, weights=HOST, cache=HOST, overlap=False), False),
    ],
)
def test_passes_are_replayed_from_the_first_one_of_decode_on_and_stages_from_the_second(
    path: Path, expected: list[list[int]], policy: Policy, every: bool
) -> None:
    tokens, stats = generated(path, policy, True)
    assert tokens == expected
    replayable = (7 if every else 6) * STAGES * policy.groups_per_block  # of seven passes of decode
    assert stats.replayed_visits == replayable if every else 0 < stats.replayed_visits <= replayable


def test_whoever_looks_on_sees_every_visit_and_the_same(path: Path, expected: list[list[int]]) -> None:
    visits: list[Any] = []
    tokens, stats = generated(path, Policy(rows_per_group=5), True, on_visit=lambda *visit: visits.append(visit))
    assert stats.replayed_visits == 0
    assert len(visits) == 8 * STAGES
    assert tokens == expected


def test_whoever_shows_how_far_a_job_is_hears_of_every_visit_and_takes_no_replay_away(
    path: Path, expected: list[list[int]]
) -> None:
    places: list[Any] = []
    tokens, stats = generated(path, Policy(rows_per_group=5), True, on_place=lambda *place: places.append(place))
    assert tokens == expected
    assert stats.replayed_visits == 7 * STAGES
    assert [(stage.name, group, number) for stage, group, number in places] == [
        (name, 0, number) for number in range(8) for name in ("embed", "layer 0", "layer 1", "head 0")
    ]


WORKING = (
    *("replay", "sample", "sample_ahead", "upload", "download", "assign"),
    *("record", "segments", "renew_segments", "renew_rows"),
)
"""Calls of the port that give a device something to do, or wait for it."""


def calls_noted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the calls in `WORKING`, in order, from now on."""
    called: list[str] = []

    def noting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*given: Any) -> Any:
            called.append(name)
            return call(*given)

        return noted

    for name in WORKING:
        monkeypatch.setattr(CupyBackend, name, noting(name, getattr(CupyBackend, name)))
    return called


def test_the_next_replay_is_called_before_the_host_knows_what_it_feeds(
    path: Path, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no row can end: the device never waits for the host. The last token of each row is known to be the last."""
    called = calls_noted(monkeypatch)
    tokens, _ = generated(path, Policy(rows_per_group=5), True)
    assert tokens == expected
    first, *others = " ".join(called).split("sample_ahead ")
    assert first.endswith("sample upload replay renew_segments upload ")
    assert [each.strip() for each in others] == ["replay renew_segments upload"] * 5 + ["replay sample"]


def test_between_a_choice_and_the_next_replay_the_device_is_given_the_ids_alone(
    path: Path, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where several rows may end with any token. All else that a pass needs is on its way before."""
    called = calls_noted(monkeypatch)
    with load(path, policy=Policy(rows_per_group=5), backend=port()) as engine:
        found = engine.generate(ROWS, Request(8))
    assert [output.token_ids for output in found.outputs] == expected, "the model's end of sequence comes in no row"
    assert "sample_ahead" not in called
    passes = " ".join(called).split("sample")[1:-1]
    assert len(passes) == 7
    assert {each[: len(" upload replay ")] for each in passes} == {" upload replay "}


STOPPING = replace(SPEC, eos_token_ids=tuple(range(0, SPEC.vocabulary, 4)))


@pytest.fixture(scope="module")
def stopping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that ends a row with every fourth token."""
    found = tmp_path_factory.mktemp("models") / "stopping.h5"
    write_model(found, STOPPING, scheme="int4", dtype="float16")
    return found


@settings(max_examples=10)
@given(asked(), st.integers(1, 3), st.integers(1, 2), st.sampled_from((0.0, 0.9)))
def test_rows_that_end_when_nobody_foresees_it_have_the_tokens_of_direct_calls(
    stopping: Path, rows: list[tuple[list[int], int]], per_group: int, groups: int, temperature: float
) -> None:
    """A pass that was called ahead is then in vain."""
    found = []
    for graphs in (True, False):
        sampling = SamplingSettings(temperature=temperature, seed=3)
        requests = [RowRequest(row, Request(count, sampling=sampling)) for row, count in rows]
        policy = Policy(rows_per_group=per_group, groups_per_block=groups)
        with load(stopping, policy=policy, backend=port(), graphs=graphs) as engine:
            results = sorted(engine.run(requests), key=lambda result: result.number)
        found.append([result.output and (result.output.token_ids, result.output.finish_reason) for result in results])
    assert found[0] == found[1]


def test_visits_of_a_pass_that_was_called_in_vain_are_not_counted(stopping: Path) -> None:
    with load(stopping, policy=Policy(rows_per_group=1), backend=port()) as engine:
        found = engine.generate([[2, 5, 5]], Request(28))
    (output,), passes = found.outputs, found.stats.occupancy.passes
    assert output.finish_reason == "stop"
    assert len(output.token_ids) == passes >= 3
    assert found.stats.replayed_visits == (passes - 1) * STAGES


@pytest.mark.parametrize("call", ["instantiate", "launch_graph"])
def test_a_device_without_memory_for_recordings_is_told_of_once_and_goes_on(
    path: Path, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(self: EmulatedCuda, graph: int) -> int:
        raise CapacityError("device", "a recording", 1, 0, {}, "out of memory")

    monkeypatch.setattr(EmulatedCuda, call, full)
    events: list[Any] = []
    policy = Policy(rows_per_group=2, groups_per_block=2)
    with load(path, policy=policy, backend=port(), on_event=events.append) as engine:
        found = engine.generate(ROWS, Request(8, ignore_eos=True))
    assert [output.token_ids for output in found.outputs] == expected
    assert found.stats.replayed_visits == 0
    told = [str(event) for event in events if "one by one" in str(event)]
    assert len(told) == found.stats.blocks
    assert "out of memory" in told[0]


def test_what_was_recorded_is_given_back_with_the_block_after_an_error_too(path: Path) -> None:
    cuda = EmulatedCuda(late=True)
    backend = CupyBackend(cuda=cuda)
    with load(path, policy=Policy(rows_per_group=5), backend=backend) as engine:
        engine.generate(ROWS, Request(8, ignore_eos=True))
        graphs = len(cuda._graphs._found)
        stream = engine.stream(ROWS, Request(8, ignore_eos=True))
        for _ in range(25):
            next(stream)
        held = len(cuda._graphs._found)
        stream.close()  # type: ignore[attr-defined]
        assert graphs == len(cuda._graphs._found) == 0 < held
        assert len(engine.generate(ROWS, Request(8, ignore_eos=True)).outputs) == len(ROWS)
    assert not cuda._graphs._found


def test_logits_that_are_not_finite_are_told_of_in_a_replay_too(tmp_path: Path) -> None:
    """A hidden state grows from token to token until it overflows."""
    path = tmp_path / "model.h5"
    write_model(path, SPEC, dtype="float16")
    errors = []
    for graphs in (True, False):
        with load(path, policy=Policy(rows_per_group=2), backend=port(late=False), graphs=graphs) as engine:
            backend: Any = engine.backend
            calls, kinds = 0, ("sample", "sample_ahead")
            choices = {name: getattr(backend, name) for name in kinds}

            def poisoned(name: str, logits: Any, *rest: Any, choices: Any = choices, backend: Any = backend) -> Any:
                nonlocal calls
                calls += 1
                if calls == 6:
                    backend.upload(np.full(logits.shape, np.inf, np.float32), out=logits)
                return choices[name](logits, *rest)

            for name in kinds:
                setattr(backend, name, partial(poisoned, name))
            with pytest.raises(FlexrefError, match="needed a finite one") as error:
                engine.generate(ROWS[:2], Request(8, ignore_eos=True))
            errors.append(str(error.value))
            for name in kinds:
                setattr(backend, name, choices[name])
            assert engine.generate(ROWS[:2], Request(3, ignore_eos=True)).stats.generated_tokens == 6
    ahead, direct = errors
    assert "row 0 of the group has the logit inf for token 0" in direct
    assert ahead == direct.replace("the logit inf", "a logit that is not finite")


def test_recording_the_embedding_takes_no_more_of_the_workspace_than_calling_it(tmp_path: Path) -> None:
    """Also where the recording is too large to be kept. Prompts of one token: no pass is longer than one of decode."""
    path, found = tmp_path / "model.h5", []
    write_model(path, SPEC, dtype="float32")
    for graphs in (True, False):
        backend = port()
        backend.caps = replace(backend.caps, recorded_bytes=1)
        policy = Policy(rows_per_group=64, cache=HOST)
        with load(path, policy=policy, backend=backend, graphs=graphs) as engine:
            asked = engine.generate([[token % 60] for token in range(64)], Request(4, ignore_eos=True))
        found.append([output.token_ids for output in asked.outputs])
    assert found[0] == found[1]


class Counting:
    """A port of which only recordings matter."""

    def __init__(self, room: int) -> None:
        self.caps = replace(port(late=False).caps, recorded_bytes=room)
        self.alive: set[int] = set()
        self.refused = 0

    def record(self, operators: Any) -> Any:
        return Taken(operators)

    def replay(self, recording: Any) -> None:
        self.alive.add(id(recording))
        recording.replayed = True
        assert len(self.alive) * recording.nbytes <= self.caps.recorded_bytes
        recording.operators()

    def forget(self, recording: Any) -> None:
        self.alive.discard(id(recording))
        self.refused += not recording.replayed


class Taken:
    nbytes = 10

    def __init__(self, operators: Any) -> None:
        self.operators = operators
        self.replayed = False


@given(st.lists(st.lists(st.integers(0, 6), max_size=8), max_size=30), st.integers(1, 50))
def test_each_call_runs_once_whatever_comes_and_recordings_stay_within_their_room(
    passes: list[list[int]], room: int
) -> None:
    backend: Any = Counting(room)
    told: list[str] = []
    replays, ran, used = Replays(backend, True, told.append), list[int](), dict[int, int]()
    for number, keys in enumerate(passes):
        replays.begin_pass(number)
        for key in keys:
            replays.call((key,), (), lambda key=key: ran.append(key))  # type: ignore[misc]
            used[key] = number
        lately = sum(last >= number - KEPT_PASSES for last in used.values())
        assert len(backend.alive) <= min(lately, room // Taken.nbytes)
    assert ran == [key for keys in passes for key in keys]
    assert len(told) == min(1, backend.refused), "what finds no room is said once"
    replays.release()
    assert not backend.alive


@pytest.mark.parametrize("scheme", ["none", "int4"])
@pytest.mark.parametrize("shares", [Shares(), Shares(0, 1, 0)])
def test_a_recording_is_predicted_to_hold_no_less_and_not_twice_as_much(
    tmp_path: Path, scheme: str, shares: Shares, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: dict[type, list[int]] = {CupyBackend: [], DryBackend: []}
    for kind, sizes in held.items():

        def noted(self: Any, operators: Any, record: Any = kind.record, sizes: list[int] = sizes) -> Any:  # type: ignore[attr-defined]
            recording = record(self, operators)
            sizes.append(recording.nbytes)
            return recording

        monkeypatch.setattr(kind, "record", noted)
    path, policy = tmp_path / "model.h5", Policy(shares, rows_per_group=2)
    write_model(path, SPEC, dtype="float16", scheme=scheme)
    with load(path, policy=policy, backend=port()) as engine:
        engine.generate([[1, 2, 3], [4, 5, 6]], Request(6, ignore_eos=True))
        file, machine = engine.file, plain_machine().changed(port=port_of(engine.backend, True))
    simulate(file, machine, policy, [RowLengths(3, 6)] * 2)
    assert len(held[CupyBackend]) == len(held[DryBackend])
    for real, predicted in zip(held[CupyBackend], held[DryBackend], strict=True):
        assert real <= predicted < 2 * real
