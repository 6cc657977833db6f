"""Shares of the tiers: what decimal numbers leave over is not a share of any tier."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.errors import PolicyError, StorageError
from flexref.policy import Policy, Shares, asked


@given(st.integers(0, 1000))
def test_percentages_that_make_a_hundred_leave_nothing_for_the_disk(tenths: int) -> None:
    shares = Policy.from_percent((tenths / 10, (1000 - tenths) / 10, 100, 0, 0, 100)).weights
    assert shares.disk == 0
    assert abs(shares.device - tenths / 1000) < 1e-12


@given(st.floats(0, 1), st.floats(0, 1))
def test_shares_sum_to_one_and_lie_between(device: float, rest: float) -> None:
    shares = Shares.of(device, (1 - device) * rest)
    parts = (shares.device, shares.host, shares.disk)
    assert all(0 <= part <= 1 for part in parts)
    assert abs(sum(parts) - 1) < 1e-8


@pytest.mark.parametrize("share", [True, "1", None, float("nan"), float("inf"), pytest.param(10**400, id="long")])
def test_a_share_that_is_no_finite_number_is_named(share: object) -> None:
    with pytest.raises(PolicyError, match=r"^share on host must be a number in"):
        Shares(0.0, share, 0.0)  # type: ignore[arg-type]


def test_a_policy_without_a_name_is_a_missing_file() -> None:
    with pytest.raises(StorageError, match=r"^cannot read policy '': No such file or directory$"):
        asked({"policy": ""})
