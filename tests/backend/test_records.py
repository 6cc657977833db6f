"""The layout of a token's record in the cache: its sections lie one after the other, aligned, and hold enough."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.backend.records import SECTION_BYTES, RecordLayout
from flexref.errors import PolicyError
from flexref.storage.quant import group_count, packed_width
from flexref.testing.strategies import layouts
from flexref.units import aligned


@given(layouts("float16"))
def test_sections_are_aligned_and_do_not_overlap(layout: RecordLayout) -> None:
    assert layout.pairs_offset % SECTION_BYTES == layout.value_offset % SECTION_BYTES == 0
    assert layout.record_bytes % SECTION_BYTES == 0
    assert layout.codes_bytes <= layout.pairs_offset
    assert layout.pairs_offset + layout.pairs_bytes <= layout.value_offset
    assert layout.record_bytes == 2 * layout.value_offset


@given(layouts("float16"))
def test_a_record_wastes_less_than_a_section_per_section(layout: RecordLayout) -> None:
    needed = 2 * (layout.codes_bytes + layout.pairs_bytes)
    assert needed <= layout.record_bytes < needed + 4 * SECTION_BYTES


@given(layouts("float16", ("int4",)))
def test_a_quantized_record_holds_the_codes_of_the_law(layout: RecordLayout) -> None:
    assert layout.packed_width == packed_width(layout.head_width, layout.group_size)
    assert layout.groups == group_count(layout.head_width, layout.group_size)


@pytest.mark.parametrize(("dtype", "element_bytes"), [("float32", 4), ("float16", 2)])
def test_an_unquantized_record_is_keys_then_values(dtype: str, element_bytes: int) -> None:
    layout = RecordLayout(heads=4, head_width=16, dtype=dtype)
    assert layout.value_offset == 64 * element_bytes
    assert layout.record_bytes == 128 * element_bytes
    assert layout.pairs_bytes == 0


def test_an_unknown_scheme_is_refused_by_name() -> None:
    with pytest.raises(PolicyError, match="'int3'; known: none, int4"):
        RecordLayout(4, 16, "float16", "int3")


@given(st.integers(0, 10_000), st.integers(1, 5000))
def test_alignment_is_the_next_multiple(nbytes: int, alignment: int) -> None:
    found = aligned(nbytes, alignment)
    assert found % alignment == 0
    assert nbytes <= found < nbytes + alignment
