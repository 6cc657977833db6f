"""Graphs of the emulated device, and what the port promises of recordings beside the contract."""

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from emulated_bench import NO_COMPILER
from emulated_cuda import EmulatedCuda, EmulationError, compiler_is_here
from flexref_cupy import CupyBackend
from flexref_cupy.memory import Tensor
from flexref_cupy.operators import decode_choice
from flexref_cupy.operators import segments as cutting
from flexref_cupy.operators.segments import MOST_SPLITS, SEGMENT_KEYS, padded_count
from hypothesis import given
from hypothesis import strategies as st

from flexref.backend.records import RecordLayout
from flexref.errors import CapacityError
from flexref.testing.bench import Bench, assert_same_bits

pytestmark = pytest.mark.skipif(not compiler_is_here(), reason=NO_COMPILER)

LAYOUT = RecordLayout(2, 16, "float16", "int4", 16)
RNG = np.random.default_rng(5)


@pytest.fixture(scope="module", params=[False, True], ids=["at-once", "late"])
def port(request: pytest.FixtureRequest) -> Iterator[CupyBackend]:
    made = CupyBackend(cuda=EmulatedCuda(capability=(9, 0), late=request.param))
    yield made
    made.close()


def half(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float16)


def test_a_recording_outlives_neither_its_memory_nor_the_port() -> None:
    cuda = EmulatedCuda(late=True)
    port = CupyBackend(cuda=cuda)
    alive = len(cuda.alive())
    buffer = port.allocate("device", 4096)
    x = port.view(buffer, 0, (2, 8), "float16")
    port.activate(x, "relu")
    recording = port.record(lambda: port.activate(x, "relu"))
    port.replay(recording)
    port.release(buffer)
    taken = [port.allocate("device", 4096) for _ in range(3)]  # as a rule the same place again
    port.replay(recording)
    with pytest.raises(EmulationError, match="memory that was given back"):
        port.mark().wait()
    port.forget(recording)
    with pytest.raises(RuntimeError, match="given back"):
        port.replay(recording)
    for each in taken:
        port.release(each)
    kept = port.record(lambda: None)
    assert len(cuda.alive()) > alive
    port.replay(kept)
    port.close()
    assert not cuda.alive()


def test_what_is_done_once_has_no_place_in_a_recording(port: CupyBackend) -> None:
    with Bench(port) as bench:
        x = bench.array(half(2, 8))
        calls = {
            "an upload": lambda: port.upload(np.zeros(3, np.int32)),
            "a download": lambda: port.download(x),
            "no workspace holds": lambda: port.layer_norm(x, None, None, 1e-5),
            "an event": port.mark,
            "a recording": lambda: port.record(lambda: None),
        }
        for what, call in calls.items():
            if what == "an upload":
                bench.workspace()
            elif what == "no workspace holds":
                port.workspace(None)
            with pytest.raises((RuntimeError, EmulationError), match=what):
                port.record(call)
        assert not port.cuda.capturing
        assert not port.cuda.muted
        port.activate(x, "relu")  # operators run again
        assert (port.download(x) >= 0).all()


def test_a_device_that_is_full_refuses_the_first_replay_and_runs_the_calls_still() -> None:
    cuda = EmulatedCuda()
    port = CupyBackend(cuda=cuda)
    x = port.view(port.allocate("device", 256), 0, (2, 8), "float16")
    port.upload(half(2, 8), out=x)
    port.activate(x, "relu")
    recording = port.record(lambda: port.activate(x, "relu"))
    rest = port.allocate("device", cuda.memory()[0])
    with pytest.raises(CapacityError, match="a recording"):
        port.replay(recording)
    port.forget(recording)
    port.activate(x, "relu")
    port.release(rest)
    port.close()


def test_operators_may_be_recorded_before_they_were_ever_called(port: CupyBackend) -> None:
    with Bench(port) as bench:
        values = half(3, 11)
        x = bench.array(values)
        rows = port.cache_rows([bench.array(np.zeros(4 * LAYOUT.record_bytes, np.uint8)) for _ in range(3)], LAYOUT)
        k, segments = bench.array(half(3, 32)), port.segments([0] * 3, [1] * 3)

        def operators() -> None:
            port.activate(x, "gelu")
            port.append(rows, segments, k, k)

        recording = port.record(operators)
        assert_same_bits(port.download(x), values, "recorded, and not run")
        port.replay(recording)
        assert not np.array_equal(port.download(x), values)
        port.forget(recording)


def test_an_error_in_what_is_recorded_leaves_no_capture(port: CupyBackend) -> None:
    def broken() -> None:
        raise KeyError("an operand")

    with pytest.raises(KeyError):
        port.record(broken)
    port.forget(port.record(lambda: None))


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=40), st.data())
def test_padding_takes_an_eighth_at_most_and_lengths_that_grow_find_places_in_it(
    past: list[int], data: st.DataObject
) -> None:
    port = _held()
    segments = port.segments(past, [1] * len(past))
    items = sum(length // SEGMENT_KEYS + 1 for length in past)
    assert segments.item_count == items <= segments.padded_count <= items * 9 / 8
    longer = [length + data.draw(st.integers(0, 300)) for length in past]
    more, rows = sum(length // SEGMENT_KEYS + 1 for length in longer), segments.rows
    alike = (max(past) >= SEGMENT_KEYS) == (max(longer) >= SEGMENT_KEYS)
    renewed = port.renew_segments(segments, longer, [1] * len(past))
    assert renewed == (padded_count(more) == padded_count(items) and alike)
    lengths = longer if renewed else past
    content = port.download(Tensor(segments.rows, (len(past), 4), "int32", 4))
    np.testing.assert_array_equal(content[:, 1], lengths)
    assert segments.rows == rows
    found = port.download(Tensor(segments.items, (segments.padded_count, 2), "int32", 2))
    count = more if renewed else items
    assert (found[:count] >= 0).all()
    assert (found[count:] == -1).all()


@cache
def _held() -> CupyBackend:
    return CupyBackend(cuda=EmulatedCuda())


def test_lengths_whose_launches_cut_rows_are_not_renewed(port: CupyBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    with Bench(port) as bench:
        rows = [bench.array(np.zeros(700 * LAYOUT.record_bytes, np.uint8)) for _ in range(4)]
        handle, q = port.cache_rows(rows, LAYOUT), bench.array(half(4, 32))
        out = bench.array(half(4, 32))
        monkeypatch.setattr(decode_choice, "WHOLE_BUSY", {True: 2})  # no block takes a whole row
        segments, other = (port.segments([600] * 4, [1] * 4) for _ in range(2))
        port.attend(handle, segments, q, 1.0, out)
        whole = port.download(out)
        monkeypatch.setattr(handle.kernels, "items_at_once", 5)
        assert port.renew_segments(segments, [601] * 4, [1] * 4)
        port.attend(handle, other, q, 1.0, out)
        assert_same_bits(port.download(out), whole, "in pieces")
        assert not port.renew_segments(other, [601] * 4, [1] * 4)
        assert MOST_SPLITS > 5


@pytest.mark.parametrize("scheme", ["none", "int4"])
def test_rows_that_grow_too_long_to_be_taken_whole_are_not_renewed(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (cutting, decode_choice):
        monkeypatch.setattr(module, "MOST_SPLITS", 2)  # rows of more than 512 keys have items of two segments
    monkeypatch.setattr(decode_choice, "WHOLE_BUSY", {False: 0, True: 0})
    monkeypatch.setattr(decode_choice, "WHOLE_BLOCKS", (0, 8))
    port, layout = CupyBackend(cuda=EmulatedCuda(capability=(9, 0))), RecordLayout(2, 16, "float16", scheme, 16)
    port.keep_rows_apart(False)
    with Bench(port) as bench:
        records = bench.array(np.zeros(900 * layout.record_bytes, np.uint8))
        handle, filled = port.cache_rows([records], layout), port.segments([0], [900])
        port.append(handle, filled, bench.array(half(900, 32)), bench.array(half(900, 32)))
        q, out, segments = bench.array(half(1, 32)), bench.array(half(1, 32)), port.segments([300], [1])
        recording = port.record(lambda: port.attend(handle, segments, q, 1.0, out))
        for past in (511, 850):
            alone = port.segments([past], [1])
            assert alone.padded_count == segments.padded_count
            assert port.renew_segments(segments, [past], [1]) == (past == 511)
            if past == 511:
                port.attend(handle, alone, q, 1.0, out)
                expected = port.download(out)
                port.replay(recording)
                assert_same_bits(port.download(out), expected, "recorded with fewer keys")
        port.forget(recording)
    port.close()


def test_rows_that_groups_have_in_common_part_when_one_is_renewed(port: CupyBackend) -> None:
    with Bench(port) as bench:
        size = 4 * LAYOUT.record_bytes
        buffer = bench.buffer("device", 8 * size)
        views = [port.view(buffer, place * size, (size,), "uint8") for place in range(8)]
        first, second = port.cache_rows(views[:2], LAYOUT), port.cache_rows(views[2:4], LAYOUT)
        address = first.starts
        assert second.starts == address
        assert port.renew_rows([first], [views[7], views[0]])
        assert first.starts == address
        assert second.starts != address
        assert port.download(Tensor(first.starts, (2, 3), "int32", 6))[:, 0].tolist() == [7 * size, 0]
        assert port.download(Tensor(second.starts, (2, 3), "int32", 6))[:, 0].tolist() == [0, size]
        k = bench.array(half(2, 32))
        segments = port.segments([0, 0], [1, 1])
        third = port.cache_rows(views[4:6], LAYOUT)
        assert third.starts == second.starts
        port.append(third, segments, k, k)
        recording = port.record(lambda: port.append(third, segments, k, k))
        assert not port.renew_rows([second], [views[6], views[0]])  # a recording needs their table where it is
        port.forget(recording)
        assert port.renew_rows([second], [views[6], views[0]])
