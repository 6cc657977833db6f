"""The sampler over the reference port's operator: rows in any company and order get the tokens they get alone."""

from typing import Any

import numpy as np
import pytest
from flexref_numpy.sampling import sample
from hypothesis import given
from hypothesis import strategies as st

from flexref.sampling.sampler import Sampler
from flexref.sampling.settings import SamplingSettings
from flexref.sampling.uniforms import uniforms

Calls = list[tuple[float, int, float, list[float]]]


class Port:
    """The one operator that the sampler may call, and what it was called with."""

    def __init__(self) -> None:
        self.calls: Calls = []

    def sample(self, logits: Any, temperature: float, top_k: int, top_p: float, draws: Any) -> Any:
        self.calls.append((temperature, top_k, top_p, draws.tolist()))
        return sample(logits, temperature, top_k, top_p, draws)


SETTINGS = st.builds(
    SamplingSettings,
    st.sampled_from([0.0, 0.3, 1.0, 4.0]),
    st.integers(0, 12),
    st.floats(0.1, 1),
    st.integers(0, 2**64 - 1),
)


@given(settings=SETTINGS, step=st.integers(0, 2048), data=st.data())
def test_a_row_gets_the_same_token_in_any_group_and_any_order(
    settings: SamplingSettings, step: int, data: st.DataObject
) -> None:
    logits = np.random.default_rng(step).standard_normal((6, 12)).astype(np.float32)
    sampler, port = Sampler(settings), Port()
    alone = [int(sampler.choose(port, logits[row : row + 1], [row], step)[0]) for row in range(6)]  # type: ignore[arg-type]
    rows = data.draw(st.lists(st.sampled_from(range(6)), unique=True, min_size=1))
    together = sampler.choose(port, logits[rows], np.array(rows), [step] * len(rows))  # type: ignore[arg-type]
    assert together.dtype == np.int64
    assert together.tolist() == [alone[row] for row in rows]


def test_the_port_is_given_the_settings_and_each_rows_own_number() -> None:
    port, settings = Port(), SamplingSettings(0.7, 3, 0.9, seed=11)
    Sampler(settings).choose(port, np.zeros((2, 4), np.float32), [5, 9], [2, 7])  # type: ignore[arg-type]
    assert port.calls == [(0.7, 3, 0.9, uniforms(11, [5, 9], [2, 7]).tolist())]


def test_equal_logits_with_another_seed_row_or_step_give_other_tokens() -> None:
    """64 rows of 1000 equal tokens: two draws agree in all of them with probability 1e-192."""
    logits = np.zeros((64, 1000), np.float32)
    draws = [
        Sampler(SamplingSettings(1.0, seed=seed)).choose(Port(), logits, range(first, first + 64), step).tolist()  # type: ignore[arg-type]
        for seed, first, step in ((0, 0, 0), (1, 0, 0), (0, 64, 0), (0, 0, 1))
    ]
    assert len({tuple(tokens) for tokens in draws}) == 4


def test_row_numbers_that_do_not_match_the_logits_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="2 rows of logits for 3 row numbers"):
        Sampler(SamplingSettings()).choose(Port(), np.zeros((2, 4), np.float32), [1, 2, 3], 0)  # type: ignore[arg-type]
