"""Numbers in texts of errors: what they count, and that a hint which is followed to the letter is enough."""

from hypothesis import given
from hypothesis import strategies as st

from flexref.errors import gib_to_give, in_gib
from flexref.units import GIB


@given(st.integers(0, 1 << 50))
def test_a_budget_that_a_hint_names_is_enough_and_hardly_more(size_bytes: int) -> None:
    given_bytes = float(gib_to_give(size_bytes)) * GIB
    assert size_bytes <= int(given_bytes) <= size_bytes + GIB / 10_000 + 1


def test_one_byte_is_one_byte() -> None:
    assert [in_gib(size) for size in (0, 1, 2, 1024)] == ["0 bytes", "1 byte", "2 bytes", "1.00 KiB"]
