"""Sampling settings: what is accepted, and which setting a complaint names."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.errors import PromptError
from flexref.sampling.settings import SamplingSettings


@given(
    temperature=st.floats(0, allow_infinity=False),
    top_k=st.integers(0, 2**31 - 1),
    top_p=st.floats(0, 1, exclude_min=True),
    seed=st.integers(0, 2**64 - 1),
)
def test_every_setting_in_its_range_is_kept(temperature: float, top_k: int, top_p: float, seed: int) -> None:
    settings = SamplingSettings(temperature, top_k, top_p, seed)
    assert (settings.temperature, settings.top_k, settings.top_p, settings.seed) == (temperature, top_k, top_p, seed)
    assert settings.greedy == (temperature == 0)


def test_greedy_is_the_default() -> None:
    assert SamplingSettings().greedy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-0.1, float("nan"), float("inf"), "1", None, True, 10**400)),
        *(("top_k", value) for value in (-1, 1.0, "5", None, True, 2**31)),
        *(("top_p", value) for value in (0, -0.5, 1.0001, float("nan"), "1", None, False)),
        *(("seed", value) for value in (-1, 0.0, "1", None, 2**64)),
    ],
)
def test_a_setting_out_of_range_is_named_with_what_was_found(name: str, value: Any) -> None:
    with pytest.raises(PromptError, match=f"^{name} must be ") as error:
        SamplingSettings(**{name: value})
    assert repr(value) in str(error.value)
