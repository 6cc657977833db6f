"""The sampler over the reference port's operator: rows in any company and order get the tokens they get alone."""

from typing import Any

import numpy as np
import pytest
from flexref_numpy.sampling import sample
from hypothesis import given
from hypothesis import strategies as st

from flexref.sampling.sampler import choose
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
SOME_SETTINGS = st.lists(SETTINGS, min_size=1, max_size=3)


def chosen(port: Port, logits: Any, settings: list[SamplingSettings], rows: Any, steps: Any) -> Any:
    return choose(port, logits, settings, np.array(rows, np.int64), np.array(steps, np.int64))  # type: ignore[arg-type]


@given(some=SOME_SETTINGS, data=st.data())
def test_a_row_gets_the_same_token_in_any_group_and_any_order(
    some: list[SamplingSettings], data: st.DataObject
) -> None:
    """Each row has settings and a step of its own; its neighbours have others, or the same."""
    steps = data.draw(st.lists(st.integers(0, 2048), min_size=6, max_size=6))
    settings = data.draw(st.lists(st.sampled_from(some), min_size=6, max_size=6))
    logits = np.random.default_rng(steps).standard_normal((6, 12)).astype(np.float32)
    port = Port()
    alone = [int(chosen(port, logits[row : row + 1], [settings[row]], [row], [steps[row]]).item()) for row in range(6)]
    rows = data.draw(st.lists(st.sampled_from(range(6)), unique=True, min_size=1))
    together = chosen(port, logits[rows], [settings[row] for row in rows], rows, [steps[row] for row in rows])
    assert together.dtype == np.int64
    assert together.tolist() == [alone[row] for row in rows]


def test_the_port_is_given_the_settings_and_each_rows_own_number() -> None:
    port, settings = Port(), SamplingSettings(0.7, 3, 0.9, seed=11)
    chosen(port, np.zeros((2, 4), np.float32), [settings] * 2, [5, 9], [2, 7])
    assert port.calls == [(0.7, 3, 0.9, uniforms(11, [5, 9], [2, 7]).tolist())]


def test_neighbours_with_the_same_rule_are_chosen_in_one_call_each_with_its_own_seed() -> None:
    port, one, other = Port(), SamplingSettings(0.7, seed=1), SamplingSettings(0.7, seed=2)
    settings = [one, other, other, SamplingSettings(), SamplingSettings(seed=3), one]
    chosen(port, np.zeros((6, 4), np.float32), settings, range(6), [0] * 6)
    draws = [uniforms(rule.seed, [row], [0]).tolist()[0] for row, rule in enumerate(settings)]
    assert port.calls == [(0.7, 0, 1.0, draws[:3]), (0.0, 0, 1.0, [0.0, 0.0]), (0.7, 0, 1.0, draws[5:])]


def test_equal_logits_with_another_seed_row_or_step_give_other_tokens() -> None:
    """64 rows of 1000 equal tokens: two draws agree in all of them with probability 1e-192."""
    logits = np.zeros((64, 1000), np.float32)
    draws = [
        chosen(Port(), logits, [SamplingSettings(1.0, seed=seed)] * 64, range(first, first + 64), [step] * 64).tolist()
        for seed, first, step in ((0, 0, 0), (1, 0, 0), (0, 64, 0), (0, 0, 1))
    ]
    assert len({tuple(tokens) for tokens in draws}) == 4


@pytest.mark.parametrize(("settings", "rows"), [(3, 3), (2, 3), (3, 2)])
def test_rows_or_settings_that_do_not_match_the_logits_are_a_mistake(settings: int, rows: int) -> None:
    with pytest.raises(ValueError, match=f"2 rows of logits for {rows} rows, {settings} settings"):
        chosen(Port(), np.zeros((2, 4), np.float32), [SamplingSettings()] * settings, range(rows), [0] * rows)
