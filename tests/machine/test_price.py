"""What tokens cost: from rates and prices, with units that cancel."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.errors import PolicyError
from flexref.machine.price import (
    cost_per_million_tokens,
    disk_life_days,
    price_per_hour_of_power,
    written_bytes_per_million_tokens,
)

positive = st.floats(1e-3, 1e6)


def test_a_million_tokens_at_one_a_second_cost_so_many_hours() -> None:
    assert cost_per_million_tokens(1.0, 3.6) == pytest.approx(1e6 / 3600 * 3.6)
    assert price_per_hour_of_power(500, 0.30) == pytest.approx(0.15)


@given(rate=positive, price=positive, factor=st.floats(1.0, 100.0))
def test_twice_as_fast_costs_half_and_twice_the_price_doubles_it(rate: float, price: float, factor: float) -> None:
    cost = cost_per_million_tokens(rate, price)
    assert cost_per_million_tokens(rate * factor, price) == pytest.approx(cost / factor)
    assert cost_per_million_tokens(rate, price * factor) == pytest.approx(cost * factor)


@given(written=st.floats(1, 1e15), tokens=st.integers(1, 10**9), rate=positive, rated=st.floats(0.1, 1e4))
def test_a_drive_lasts_until_its_rating_has_been_written(
    written: float, tokens: int, rate: float, rated: float
) -> None:
    per_million = written_bytes_per_million_tokens(written, tokens)
    days = disk_life_days(per_million, rate, rated)
    assert days is not None
    assert days * 86400 * rate * written / tokens == pytest.approx(rated * 1e12)


def test_what_is_not_written_to_lasts() -> None:
    assert disk_life_days(0.0, 10.0, 600.0) is None


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused_in_one_line(rate: float) -> None:
    with pytest.raises(PolicyError, match="tokens per second must be a number above 0"):
        cost_per_million_tokens(rate, 1.0)
