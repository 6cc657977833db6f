"""What holds for the reference port alone, beside the contract: its tiles, its threads, its exact law of records."""

import gc
import threading
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from flexref_numpy import NumpyBackend
from flexref_numpy.backend import MINIMUM_SCRATCH_BYTES
from flexref_numpy.scratch import TILE_ROWS, tiles
from flexref_numpy.sections import Sections
from hypothesis import given
from hypothesis import strategies as st

from flexref.backend.protocol import LANES, HostWork, Move, QuantizedMatrix, Span
from flexref.backend.records import RecordLayout
from flexref.check import reference
from flexref.check.tolerances import assert_within, attention_bound, exact
from flexref.storage.quant import quantize
from flexref.testing import clause_name
from flexref.testing.bench import Bench
from flexref.testing.clauses import attention, pointwise, products
from flexref.testing.clauses.cache import CacheBench
from flexref.testing.contract import CONTRACT, Clause
from flexref.testing.strategies import layouts, numbers, seeds

TILED = [clause for clause in CONTRACT if clause.__module__ in (m.__name__ for m in (attention, pointwise, products))]


@pytest.fixture(scope="module")
def cramped() -> Iterator[NumpyBackend]:
    """A port with so little scratch that its operators work in many tiles."""
    backend = NumpyBackend(MINIMUM_SCRATCH_BYTES)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def roomy() -> Iterator[NumpyBackend]:
    backend = NumpyBackend()
    yield backend
    backend.close()


@pytest.mark.parametrize("clause", TILED, ids=clause_name)
@given(data=st.data())
def test_operators_keep_the_contract_in_small_tiles(cramped: NumpyBackend, clause: Clause, data: st.DataObject) -> None:
    clause(cramped, data)


@given(st.integers(0, 1000), st.integers(1, 500))
def test_tiles_cover_every_row_once_and_fit(length: int, room: int) -> None:
    cut = list(tiles(length, room))
    assert [row for first, last in cut for row in range(first, last)] == list(range(length))
    assert all(last - first <= room for first, last in cut)
    assert all(first % TILE_ROWS == 0 for first, _ in cut) or room < TILE_ROWS


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scheme", ["none", "int4"])
def test_a_long_row_in_small_tiles_is_attention_all_the_same(cramped: NumpyBackend, seed: int, scheme: str) -> None:
    layout, tokens = RecordLayout(3, 8, "float32", scheme, 8), 300
    values = [numbers((tokens, 24), "float32", "normal", seed + part) for part in range(3)]
    with Bench(cramped) as bench:
        cache = CacheBench(bench, layout, [tokens])
        cache.append(values[:1], values[1:2], [0])
        (found,) = cache.attend(values[2:], [0], 0.35)
        keys, held = cache.held(0, tokens)
        q = exact(values[2].reshape(tokens, 3, 8))
        expected = reference.attend(q.values, keys.values, held.values, 0, 0.35)
        bound = attention_bound(q, keys, held, 0, 0.35, bench.arithmetic)
        assert_within(found.reshape(q.values.shape), expected, bound, "attention of a long row")


@given(layouts("float32", ("int4",)), seeds, st.integers(1, 5))
def test_quantized_records_are_the_law_bit_for_bit(
    roomy: NumpyBackend, layout: RecordLayout, seed: int, tokens: int
) -> None:
    k, v = (numbers((tokens, layout.heads * layout.head_width), "float32", "mixed", seed + part) for part in range(2))
    records = np.zeros(tokens * layout.record_bytes, np.uint8)
    roomy.append(roomy.cache_rows([records], layout), roomy.segments([0], [tokens]), k, v)
    for which, values in enumerate((k, v)):
        law = quantize(values.reshape(tokens, layout.heads, -1), layout.group_size, np.float16, "a test")
        codes, pairs = Sections(layout).of(records, which, 0, tokens)
        assert pairs is not None
        assert np.array_equal(codes, law.codes)
        assert np.array_equal(pairs[..., 0], law.scale)
        assert np.array_equal(pairs[..., 1], law.zero)


def test_a_row_that_outgrows_its_cache_is_refused(roomy: NumpyBackend) -> None:
    layout = RecordLayout(2, 4, "float32")
    records = np.zeros(2 * layout.record_bytes, np.uint8)
    k = np.ones((1, 8), np.float32)
    with pytest.raises(IndexError, match="3 records in a cache of 2"):
        roomy.append(roomy.cache_rows([records], layout), roomy.segments([2], [1]), k, k)
    assert not records.any()


@pytest.mark.parametrize("scheme", ["none", "int4"])
def test_an_array_may_hold_no_record(scheme: str) -> None:
    views = Sections(RecordLayout(2, 4, "float32", scheme)).whole(np.empty(0, np.uint8))
    assert views.tokens == 0
    assert all(len(codes) == 0 for codes, _ in views.parts)


def test_too_little_scratch_is_refused() -> None:
    with pytest.raises(ValueError, match=f"at least {MINIMUM_SCRATCH_BYTES}, found 4096"):
        NumpyBackend(4096)


def test_closing_ends_every_thread() -> None:
    before = set(threading.enumerate())
    backend = NumpyBackend()
    for lane in LANES:
        backend.submit(lane, [HostWork("nothing", lambda: None)], ())
    assert len(set(threading.enumerate()) - before) == len(LANES)
    backend.close()
    assert set(threading.enumerate()) <= before


def test_a_lane_that_is_idle_holds_no_buffer() -> None:
    backend = NumpyBackend()
    source, target = backend.allocate("host", 64), backend.allocate("device", 64)
    gone = weakref.ref(target)
    backend.submit(LANES[0], [Move("a copy", Span(source, 0, 64), Span(target, 0, 64))], ()).wait()
    backend.submit(LANES[1], [HostWork("nothing", lambda: None)], ()).wait()
    del target
    gc.collect()
    for _ in range(1000):
        if gone() is None:
            break
        threading.Event().wait(0.001)
    assert gone() is None
    backend.close()


def test_a_move_beyond_its_buffer_is_raised_by_its_ticket() -> None:
    backend = NumpyBackend()
    source, target = backend.allocate("host", 64), backend.allocate("device", 32)
    ticket = backend.submit(LANES[0], [Move("a copy", Span(source, 0, 64), Span(target, 0, 64))], ())
    with pytest.raises(IndexError, match="of a buffer of 32"):
        ticket.wait()
    backend.close()


def test_a_row_outside_a_table_is_no_silent_answer(roomy: NumpyBackend) -> None:
    table, x = np.zeros((4, 2), np.float32), np.zeros((1, 2), np.float32)
    for row in (-1, 4):
        with pytest.raises(IndexError, match=rf"row {row} of a table of 4"):
            roomy.add_rows(x, table, np.array([row], np.int32))


def test_an_unknown_activation_is_named(roomy: NumpyBackend) -> None:
    with pytest.raises(ValueError, match="'swoosh'"):
        roomy.activate(np.zeros((1, 1), np.float32), "swoosh")


def test_a_row_of_a_matrix_beyond_the_scratch_is_refused(cramped: NumpyBackend) -> None:
    width = MINIMUM_SCRATCH_BYTES
    packed = quantize(np.ones((1, width), np.float32), 64, np.float16, "a test")
    w = QuantizedMatrix(packed.codes, packed.scale, packed.zero, width, 64)
    with pytest.raises(ValueError, match="exceeds its scratch"):
        cramped.linear(np.ones((1, width), np.float32), w, None)
