"""Attention in host memory for other ports: halves in and out, the law's records, any threads; it knows no device."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from flexref_numpy import NumpyBackend
from hypothesis import example, given
from hypothesis import strategies as st

from flexref.backend.protocol import CHUNK_TOKENS
from flexref.backend.records import RecordLayout
from flexref.errors import QuantizationError

host_attention = pytest.importorskip("flexref_numba.host_attention", reason="numba is not installed")

HEADS, WIDTH = 3, 64

HALVES = RecordLayout(HEADS, WIDTH, "float16")
CODES = RecordLayout(HEADS, WIDTH, "float16", "int4")

LENGTHS = st.lists(st.tuples(st.integers(0, 2 * CHUNK_TOKENS), st.integers(0, 12)), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Any, Any]]:
    """On one thread and on three."""
    made = tuple(host_attention.HostAttention(threads) for threads in (1, 3))
    yield made
    for host in made:
        host.close()


def drawn(seed: int, tokens: int) -> Any:
    return np.random.default_rng(seed).standard_normal((tokens, HEADS * WIDTH)).astype(np.float16)


def records_of(layout: RecordLayout, tokens: list[int]) -> list[Any]:
    return [np.zeros(count * layout.record_bytes, np.uint8) for count in tokens]


def run(port: Any, layout: RecordLayout, lengths: list[tuple[int, int]], shared: int, wide: bool) -> tuple[Any, Any]:
    """Records and results of a pass after another; rows begin with `shared` chunks of what the first row holds."""
    shared_tokens = shared * CHUNK_TOKENS
    past, new = [shared_tokens + before for before, _ in lengths], [count for _, count in lengths]
    kind = np.float32 if wide else np.float16
    whole = records_of(layout, [shared_tokens + CHUNK_TOKENS])
    filled = port.segments([0], [shared_tokens + CHUNK_TOKENS])
    port.append(port.cache_rows(whole, layout), filled, *(drawn(seed, filled.new[0]).astype(kind) for seed in (1, 2)))
    own = records_of(layout, [before + count for before, count in lengths])
    rows = port.cache_rows(own, layout, [(whole[0], shared_tokens) if shared else None] * len(own))
    for seed, lasts in ((3, False), (5, True)):
        before, fresh = (
            (past, new) if lasts else ([shared_tokens] * len(past), [count - shared_tokens for count in past])
        )
        segments = port.segments(before, fresh)
        tokens = sum(segments.new)
        port.append(rows, segments, drawn(seed, tokens).astype(kind), drawn(seed + 1, tokens).astype(kind))
    q, out = drawn(7, sum(new)).astype(kind), np.zeros((sum(new), HEADS * WIDTH), kind)
    port.attend(rows, segments, q, WIDTH**-0.5, out)
    return own, out


@pytest.mark.parametrize("layout", [HALVES, CODES], ids=["halves", "codes"])
@given(lengths=LENGTHS, shared=st.integers(0, 2))
def test_results_of_halves_are_those_of_the_reference_port(
    hosts: tuple[Any, Any], layout: RecordLayout, lengths: list[tuple[int, int]], shared: int
) -> None:
    reference = NumpyBackend()
    needed_records, needed = run(reference, layout, lengths, shared, wide=True)
    reference.close()
    found_records, found = run(hosts[0], layout, lengths, shared, wide=False)
    for mine, law in zip(found_records, needed_records, strict=True):
        np.testing.assert_array_equal(mine, law)
    # Scores are sums of WIDTH products, at most 40 in all; values at most 6. Both ports round, and halves once more.
    keys = max(before + count for before, count in lengths) + shared * CHUNK_TOKENS
    error = 2 * 6 * 2.0**-24 * (2 * 40 * (WIDTH + 4) + 2 * keys + 16)
    assert np.all(np.abs(found - needed) <= error + np.abs(needed) * 2.0**-11 + 2.0**-25)
    _, on_three = run(hosts[1], layout, lengths, shared, wide=False)
    np.testing.assert_array_equal(on_three, found)
    _, wide = run(hosts[0], layout, lengths, shared, wide=True)
    np.testing.assert_array_equal(wide.astype(np.float16), found)


@given(
    width=st.sampled_from([32, 48, 64, 80, 128, 160]),
    group=st.sampled_from([32, 64, 96, 128]),
    usual=st.sampled_from([0.0, -0.0, 1e-30, -6e-8, 32752.0, -32760.0]),
    others=st.dictionaries(st.integers(0, 31), st.sampled_from([-0.0, 6e-8, 1e-45, 32712.0, -9.0])),
)
@example(width=64, group=64, usual=-0.0, others={})
@example(width=48, group=64, usual=-0.0, others={})
def test_codes_of_zeros_and_of_numbers_at_the_ends_of_the_range_are_those_of_the_reference_port(
    hosts: tuple[Any, Any], width: int, group: int, usual: float, others: dict[int, float]
) -> None:
    layout, reference = RecordLayout(1, width, "float16", "int4", group), NumpyBackend()
    k = np.full((1, width), usual, np.float32)
    k[0, list(others)] = list(others.values())
    found = []
    for port in (hosts[0], reference):
        records = records_of(layout, [1])
        port.append(port.cache_rows(records, layout), port.segments([0], [1]), k, -k)
        found.append(records[0])
    reference.close()
    np.testing.assert_array_equal(*found)


def test_several_threads_call_at_once(hosts: tuple[Any, Any]) -> None:
    lengths = [[(90, 1)] * 3, [(5, 70), (0, 1)], [(130, 3)]]
    needed = [run(hosts[1], CODES, each, 0, wide=False)[1] for each in lengths]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(5):
            found = pool.map(lambda each: run(hosts[1], CODES, each, 0, wide=False)[1], lengths)
            for one, law in zip(found, needed, strict=True):
                np.testing.assert_array_equal(one, law)


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("place", [0, WIDTH - 1, HEADS * WIDTH - 1])
def test_what_is_not_finite_is_no_record_of_codes(hosts: tuple[Any, Any], wrong: float, place: int) -> None:
    host = hosts[0]
    v = drawn(1, 2)
    v[1, place] = wrong
    rows = host.cache_rows(records_of(CODES, [4]), CODES)
    with pytest.raises(QuantizationError, match="a cache record: holds values that are not finite"):
        host.append(rows, host.segments([1], [2]), drawn(2, 2), v)


def test_what_a_record_of_halves_cannot_hold_is_none_of_codes(hosts: tuple[Any, Any]) -> None:
    k = drawn(1, 1).astype(np.float32)
    k[0, 3] = 70000.0
    rows = hosts[0].cache_rows(records_of(CODES, [4]), CODES)
    with pytest.raises(QuantizationError, match="a group reaches 70000"):
        hosts[0].append(rows, hosts[0].segments([0], [1]), k, k)


def test_records_end_where_a_row_ends(hosts: tuple[Any, Any]) -> None:
    host = hosts[0]
    rows = host.cache_rows(records_of(CODES, [4, 8]), CODES)
    with pytest.raises(IndexError, match="5 records in a cache of 4"):
        host.append(rows, host.segments([3, 3], [2, 2]), drawn(1, 4), drawn(2, 4))


def test_queries_and_results_have_one_type(hosts: tuple[Any, Any]) -> None:
    host = hosts[0]
    rows = host.cache_rows(records_of(CODES, [4]), CODES)
    with pytest.raises(ValueError, match="found float16 and float32"):
        host.attend(rows, host.segments([0], [1]), drawn(1, 1), 1.0, np.zeros((1, HEADS * WIDTH), np.float32))
