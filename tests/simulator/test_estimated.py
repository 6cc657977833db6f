"""What is estimated from some of a job's passes is about what all of them take, and its bytes are counted exactly."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.block.rows import AlikeRows, RowLengths
from flexref.machine.plain import plain_machine
from flexref.policy import Policy, Shares
from flexref.simulator import estimated
from flexref.simulator.estimated import ends_and_middle, interpolated, simulated_passes
from flexref.simulator.job_walk import PassSums, Walk
from flexref.simulator.pass_account import PassAccount
from flexref.simulator.prediction import Prediction
from flexref.simulator.simulate import ALIKE_BLOCKS, simulate
from flexref.storage.random_weights import random_file
from flexref.units import Tier

NO_BUDGETS = dict.fromkeys(Tier)
SPEC = ModelSpec("small", 512, 256, 64, 64, 3, 4, 256)
AWAY = Shares(0, 1, 0)


def account(seconds: float) -> PassAccount:
    return PassAccount(seconds, Counter({("host->device", "cache"): 2 * seconds}), Counter(compute=3 * seconds))


def walk_of(passes: list[dict[str, int]], changes: list[int]) -> Walk:
    sums = [[found.get(name, 0) for name in PassSums._fields] for found in passes]
    return Walk(np.array(sums), np.isin(np.arange(len(passes)), [0, *changes]))


def decoding(passes: int) -> list[dict[str, int]]:
    return [{"rows": 4, "generated": 4, "past_on_host": 4 * number} for number in range(passes)]


def test_the_simulated_passes_are_both_ends_of_every_stretch_and_its_middle() -> None:
    passes = [{"rows": 4, "read": 32}, *decoding(31)]
    assert simulated_passes(walk_of(passes, [1])) == [0, 1, 2, 16, 30, 31]
    assert simulated_passes(walk_of(passes[:3], [1])) == [0, 1, 2]
    assert simulated_passes(walk_of(passes[:1], [])) == [0]
    assert simulated_passes(walk_of(passes[:20], [1, 3])) == [0, 1, 2, 3, 4, 11, 18, 19]
    assert simulated_passes(walk_of(passes, [1]), 5) == [0, 1, 2, 3, 4, 16, 30, 31]


def test_of_very_many_changes_a_bounded_number_of_passes_is_simulated() -> None:
    passes = decoding(5000)
    found = simulated_passes(walk_of(passes, list(range(5000))))
    assert found[:2] == [0, 1]
    assert found[-2:] == [4998, 4999]
    assert len(found) <= estimated.PASSES_MOST + 4


@given(first=st.integers(0, 1000), step=st.integers(0, 9), passes=st.integers(6, 60))
def test_what_grows_evenly_is_interpolated_exactly(first: int, step: int, passes: int) -> None:
    chosen = ends_and_middle(range(passes))
    total = interpolated({number: account(first + step * number) for number in chosen})
    assert total.seconds == pytest.approx(sum(first + step * number for number in range(passes)))
    assert total.busy_s["compute"] == pytest.approx(3 * total.seconds)


def test_what_is_a_line_over_tokens_and_records_is_estimated_exactly() -> None:
    draw = np.random.default_rng(0)
    passes = [
        {"rows": 64, "generated": 60, "read": int(read), "past_on_host": int(past)}
        for read, past in zip(draw.integers(0, 300, 900), draw.integers(5000, 9000, 900), strict=True)
    ]
    walk = walk_of(passes, list(range(900)))
    took = [1.0 + 0.01 * each["read"] + 0.001 * each["past_on_host"] for each in passes]
    reading, rest = estimated.estimated(walk, {number: account(took[number]) for number in simulated_passes(walk)})
    assert reading.seconds == 0
    assert rest.seconds == pytest.approx(sum(took))
    assert rest.flow_s["host->device", "cache"] == pytest.approx(2 * sum(took))


def every_pass(monkeypatch: pytest.MonkeyPatch, policy: Policy, rows: list[RowLengths]) -> Prediction:
    with monkeypatch.context() as patched:
        patched.setattr(estimated, "PASSES_MOST", 1 << 30)
        patched.setattr(estimated, "ends_and_middle", lambda stretch, beginning: stretch)
        return simulate(random_file(SPEC), plain_machine(link_per_s=2e8), policy, rows, NO_BUDGETS)


@pytest.mark.parametrize(
    ("cache", "chunk", "seed"),
    [
        *((AWAY, None, 0), (AWAY, 16, 1)),
        *((Shares(), None, 1), (Shares(), 16, 0)),
        *((Shares(0, 0.5, 0.5), None, 0), (Shares(0, 0.5, 0.5), 16, 1)),
    ],
)
def test_a_ragged_job_is_within_2_percent_of_simulating_every_pass(
    monkeypatch: pytest.MonkeyPatch, cache: Shares, chunk: int | None, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    rows = [
        RowLengths(prompt, new)
        for prompt, new in zip(draw.integers(4, 120, 150).tolist(), draw.integers(1, 60, 150).tolist(), strict=True)
    ]
    policy = Policy(AWAY, cache, Shares(), 6, 2, prompt_chunk_tokens=chunk)
    found = simulate(random_file(SPEC), plain_machine(link_per_s=2e8), policy, rows, NO_BUDGETS)
    whole = every_pass(monkeypatch, policy, rows)
    assert found.passes > 4 * estimated.PASSES_MOST
    assert found.decode_s == pytest.approx(whole.decode_s, rel=0.02)
    assert found.prefill_s == pytest.approx(whole.prefill_s, rel=0.02)
    assert (found.link_bytes, found.peak_bytes) == (whole.link_bytes, whole.peak_bytes)
    assert (found.passes, found.occupancy) == (whole.passes, whole.occupancy)
    for link, kinds in whole.link_s.items():
        assert found.link_s[link] == pytest.approx(kinds, rel=0.1, abs=0.01 * whole.decode_s)


def test_many_rows_that_are_alike_are_extended_from_some() -> None:
    policy, file, machine = Policy(AWAY, AWAY, Shares(), 3, 2), random_file(SPEC), plain_machine()
    job = AlikeRows(RowLengths(9, 5), (ALIKE_BLOCKS + 3) * 6 + 2)
    found = simulate(file, machine, policy, job, NO_BUDGETS)
    whole = simulate(file, machine, policy, [RowLengths(9, 5)] * (len(job) - 1) + [RowLengths(10, 5)], NO_BUDGETS)
    assert (found.rows, found.passes, found.occupancy) == (44, 40, pytest.approx(whole.occupancy))
    assert found.passes == whole.passes
    assert found.prefill_s == pytest.approx(whole.prefill_s, rel=0.02)
    assert found.decode_s == pytest.approx(whole.decode_s, rel=0.02)
    huge = simulate(file, machine, policy, AlikeRows(RowLengths(9, 5), 6 * 10**11), NO_BUDGETS)
    assert (huge.rows, huge.passes, huge.occupancy) == (6 * 10**11, 5 * 10**11, 1.0)
    assert huge.link_bytes["host->device"]["cache"] % 10**11 == 0
