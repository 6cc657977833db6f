"""The port that only counts: its shapes and its workspace are those of the reference port, its sums are right."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flexref_dry import DryBackend
from flexref_numpy import NumpyBackend
from hypothesis import given
from hypothesis import strategies as st

from flexref.backend.protocol import HostWork, Lane, Move, QuantizedMatrix, Span
from flexref.backend.records import RecordLayout
from flexref.errors import CapacityError
from flexref.machine.durations import Durations
from flexref.machine.machine import HOST_ATTENTION
from flexref.machine.plain import plain_machine
from flexref.storage.quant import packed_width
from flexref.testing.strategies import ragged
from flexref.units import LINKS

CALLS = ("open", "close", "empty", "linear", "norm")

sizes = st.integers(1, 40)


@given(st.data())
def test_the_workspace_needs_as_much_as_on_the_port_that_is_foreseen(data: st.DataObject) -> None:
    """Random calls, in random frames: both ports hold the same peak."""
    calls = data.draw(st.lists(st.tuples(st.sampled_from(CALLS), sizes, sizes)))
    peaks = []
    for backend in (DryBackend(compute_dtype="float32"), NumpyBackend()):
        buffer: Any = backend.allocate("device", 1 << 20)
        backend.workspace(buffer)
        _make_results(backend, calls)
        peaks.append(backend.workspace_peak_bytes())
        backend.close()
    assert peaks[0] == peaks[1]


def _make_results(backend: Any, calls: list[tuple[str, int, int]]) -> None:
    frames = []
    with backend.frame():
        for call, rows, columns in calls:
            if call == "open":
                frames.append(backend.frame())
                frames[-1].__enter__()
            elif call == "close" and frames:
                frames.pop().__exit__(None, None, None)
            elif call == "empty":
                backend.empty((rows, columns), "float16")
            elif call == "linear":
                x = backend.upload(np.ones((rows, 8), np.float32))
                backend.linear(x, backend.upload(np.ones((columns, 8), np.float32)), None)
            elif call == "norm":
                backend.layer_norm(backend.upload(np.ones((rows, columns), np.float32)), None, None, 1e-5)
        for frame in reversed(frames):
            frame.__exit__(None, None, None)


@given(sizes, sizes, sizes, st.integers(1, 3))
def test_products_are_counted_by_their_multiplications_and_sums(
    rows: int, inputs: int, outputs: int, calls: int
) -> None:
    backend = DryBackend()
    buffer = backend.allocate("device", 1 << 20)
    x, scale = (backend.view(buffer, 0, shape, "float16") for shape in ((rows, inputs), (outputs, 1)))
    codes = backend.view(buffer, 0, (outputs, packed_width(inputs, 64)), "uint8")
    for _ in range(calls):
        backend.linear(x, QuantizedMatrix(codes, scale, scale, inputs, 64), None)
    assert backend.flops["linear"] == calls * 2 * rows * inputs * outputs
    assert backend.calls["linear"] == calls


@given(ragged())
def test_attention_is_counted_by_what_every_query_sees(lengths: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    past, new = lengths
    backend, layout = DryBackend(), RecordLayout(2, 4, "float16")
    records = [backend.view(backend.allocate("device", 1 << 20), 0, (1 << 20,), "uint8") for _ in past]
    q = backend.empty((sum(new), 8), "float16")
    backend.attend(backend.cache_rows(records, layout), backend.segments(past, new), q, 1.0, q)
    visible = sum(before + token + 1 for before, count in zip(past, new, strict=True) for token in range(count))
    assert backend.flops["attend"] == 4 * 8 * visible


@given(st.lists(st.integers(0, 1000), max_size=5))
def test_moves_are_counted_by_lane(sizes_bytes: list[int]) -> None:
    backend = DryBackend()
    source, target = backend.allocate("host", 1000), backend.allocate("device", 1000)
    moves = [Move("a copy", Span(source, 0, nbytes), Span(target, 0, nbytes)) for nbytes in sizes_bytes]
    backend.submit("weights_in", moves, ()).wait()
    assert backend.moved_bytes == {"weights_in": sum(sizes_bytes)}


def test_a_row_that_outgrows_its_cache_is_refused() -> None:
    backend, layout = DryBackend(), RecordLayout(2, 4, "float16")
    records = backend.view(backend.allocate("device", 1 << 10), 0, (4 * layout.record_bytes,), "uint8")
    k = backend.empty((2, 8), "float16")
    rows = backend.cache_rows([records], layout)
    backend.append(rows, backend.segments([2], [2]), k, k)
    with pytest.raises(IndexError, match="5 records"):
        backend.append(rows, backend.segments([3], [2]), k, k)


def test_a_rows_own_array_need_not_hold_its_prefix() -> None:
    backend, layout = DryBackend(), RecordLayout(2, 4, "float16")
    size = layout.record_bytes
    prefix, own = (backend.view(backend.allocate("device", 64 * size), 0, (n * size,), "uint8") for n in (64, 4))
    k = backend.empty((2, 8), "float16")
    rows = backend.cache_rows([prefix, own], layout, [None, (prefix, 64)])
    backend.append(rows, backend.segments([60, 66], [1, 2]), k, k)
    with pytest.raises(IndexError, match="5 records in a cache of"):
        backend.append(rows, backend.segments([60, 67], [1, 2]), k, k)
    with pytest.raises(IndexError, match="a row of 63 tokens begins with 64 of a prefix"):
        backend.append(rows, backend.segments([60, 63], [1, 2]), k, k)


def test_shapes_that_do_not_match_are_refused() -> None:
    backend = DryBackend()
    x, w = backend.empty((2, 3), "float16"), backend.empty((4, 5), "float16")
    with pytest.raises(ValueError, match=r"\(2, 3\) does not match w \(4, 5\)"):
        backend.linear(x, w, None)
    with pytest.raises(ValueError, match="assign"):
        backend.assign(x, w)


def test_there_is_nothing_to_read() -> None:
    backend = DryBackend()
    with pytest.raises(TypeError, match="no values"):
        backend.download(backend.empty((1,), "float16"))
    with pytest.raises(TypeError, match="no memory"):
        backend.host_memory(backend.allocate("host", 1))
    with pytest.raises(TypeError, match="only slices"):
        backend.empty((2, 2), "float16")[0]


def test_a_workspace_too_small_is_refused_as_on_every_port() -> None:
    backend = DryBackend()
    backend.workspace(backend.allocate("device", 1024))
    with pytest.raises(CapacityError, match="workspace memory is too small"):
        backend.empty((1025,), "uint8")


@given(scheme=st.sampled_from(("none", "int4")), factor=st.floats(1.0, 3.0), rows=st.integers(1, 9))
def test_operators_on_a_lane_take_its_time_and_as_much_longer_as_the_machine_says_beside_a_link(
    scheme: str, factor: float, rows: int
) -> None:
    """On the lane, not in line: the operators are free meanwhile. While a long copy works they take `factor` times as
    long, by the scheme of the caches."""
    other = {"none": "int4", "int4": "none"}[scheme]
    beside = {HOST_ATTENTION[scheme]: {LINKS[0]: factor}, HOST_ATTENTION[other]: {LINKS[0]: 5.0}}
    machine = plain_machine().changed(beside=beside)
    layout, tokens, took = RecordLayout(4, 64, "float32", scheme, 64), 200, []
    for copied in (False, True):
        port = DryBackend(machine=machine)
        pool = port.allocate("host", rows * tokens * layout.record_bytes)
        size = tokens * layout.record_bytes
        records = [port.view(pool, row * size, (size,), "uint8") for row in range(rows)]
        caches, segments = port.cache_rows(records, layout), port.segments([tokens - 1] * rows, [1] * rows)
        qkv = port.view(port.allocate("host", rows * 4 * 256 * 4), 0, (rows, 4 * 256), "float32")

        def attend(port: Any = port, caches: Any = caches, segments: Any = segments, qkv: Any = qkv) -> None:
            port.append(caches, segments, qkv[:, 256:512], qkv[:, 512:768])
            port.attend(caches, segments, qkv[:, :256], 1.0, qkv[:, 768:])

        if copied:
            ends = (port.allocate(tier, 1 << 34) for tier in ("host", "device"))
            port.submit(Lane.WEIGHTS_IN, [Move("copying", *(Span(end, 0, 1 << 34) for end in ends))], ())
        ticket = port.submit(Lane.HOST_COMPUTE, [HostWork("attention", attend, operators=True)], ())
        mark = port.mark()
        ((start, end),) = ticket.times()
        took.append(end - start)
        assert mark.times()[0][0] < end
        assert (port.calls["append"], port.calls["attend"]) == (1, 1)
    durations, nbytes = Durations(machine), layout.record_bytes * rows
    alone = durations.append("host", scheme, nbytes) + durations.attend_records(("host", scheme, 64), nbytes * tokens)
    assert took == [pytest.approx(alone), pytest.approx(factor * alone)]


def test_the_host_waits_until_a_lanes_thread_has_done_its_work_and_for_no_copy_that_the_device_knows() -> None:
    plain = plain_machine()
    port = DryBackend(machine=plain.changed(port=replace(plain.port, asynchronous=True, overlaps_copies=True)))
    ends = [Span(port.allocate(tier, 1 << 30), 0, 1 << 30) for tier in ("host", "device")]
    read = HostWork("reading", lambda: None, "cache", LINKS[2], 1 << 30)

    known = port.submit(Lane.CACHE_IN, [Move("copying", *ends)], ())
    port.wait(known)
    assert not known.done()
    work = port.submit(Lane.DISK_IN, [read], ())
    after = port.submit(Lane.WEIGHTS_IN, [Move("copying", *ends)], [work])
    assert not work.done()
    port.wait(after)
    assert work.done()
    assert not after.done()
