"""Jobs too long to be simulated whole: what two parts of them say is what the whole simulation says."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.published import size_named
from flexref.block.counted_rows import CountedRows, kinds_of
from flexref.block.rows import AlikeRows, JobRows, RowLengths
from flexref.machine.plain import plain_machine
from flexref.planner import predicted as module
from flexref.planner.predicted import evenly, predicted
from flexref.policy import Policy, Shares
from flexref.simulator.prediction import Prediction
from flexref.simulator.simulate import simulate
from flexref.storage.random_weights import random_file


def drawn(rows: int, seed: int = 0, tokens: int = 40) -> CountedRows:
    draw = np.random.default_rng(seed)
    return CountedRows.of_runs(draw.integers(1, tokens, rows), draw.integers(1, 20, rows), np.ones(rows))


def told(rows: JobRows) -> Prediction:
    """Some seconds to begin with, and so many for every token."""
    new = sum(row.new_tokens * count for row, count in kinds_of(rows).items())
    return Prediction(
        rows=len(rows),
        blocks=1,
        passes=new,
        places=8,
        occupancy=0.5,
        generated_tokens=new,
        load_s=3.0,
        prefill_s=1.0,
        decode_s=5.0 + 0.1 * new,
        peak_bytes={"device": 7},
        link_bytes={"host->device": {"weights": 10 * new}, "device->host": {}},
        link_s={"host->device": {"weights": 0.01 * new}, "device->host": {}},
        disk_write_bytes=4096 * new,
        lane_busy={"compute": (1 + 0.05 * new) / (6 + 0.1 * new)},
    )


def test_what_grows_with_the_tokens_is_extended_to_the_whole_job() -> None:
    rows = drawn(100_000)
    asked: list[int] = []

    def simulated(part: JobRows) -> Prediction:
        asked.append(len(part))
        return told(part)

    found, whole = predicted(rows, 64, simulated), told(rows)
    assert asked == [4096, 2048]
    assert (found.rows, found.generated_tokens, found.load_s, found.peak_bytes) == (100_000, *some(whole))
    assert found.prefill_s == 1.0
    assert found.decode_s == pytest.approx(whole.decode_s, rel=0.01)
    assert found.link_bytes["host->device"]["weights"] == pytest.approx(10 * whole.generated_tokens, rel=0.01)
    assert found.link_s["host->device"]["weights"] == pytest.approx(0.01 * whole.generated_tokens, rel=0.01)
    assert found.lane_busy == pytest.approx(whole.lane_busy, rel=0.01)
    assert isinstance(found.link_bytes["host->device"]["weights"], int)


def some(prediction: Prediction) -> tuple[object, ...]:
    return prediction.generated_tokens, prediction.load_s, prediction.peak_bytes


@pytest.mark.parametrize(
    "rows",
    [AlikeRows(RowLengths(3, 2), 10**9), CountedRows.of_runs([3], [2], [10**9]), drawn(4096), [RowLengths(3, 2)] * 5],
)
def test_what_is_alike_or_short_is_simulated_as_it_is(rows: JobRows) -> None:
    asked: list[JobRows] = []
    predicted(rows, 64, lambda part: asked.append(part) or told(part))  # type: ignore[func-returns-value]
    assert asked == [rows]


def test_a_part_fills_its_block_several_times() -> None:
    asked: list[int] = []
    predicted(drawn(100_000), 5000, lambda part: asked.append(len(part)) or told(part))  # type: ignore[func-returns-value]
    assert asked == [20_000, 10_000]


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 50)), min_size=1, max_size=30), st.data()
)
def test_a_part_keeps_the_order_and_has_a_fair_share_of_every_kind(
    runs: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    rows = CountedRows.of_runs(*zip(*runs, strict=True))
    count = data.draw(st.integers(1, len(rows)))
    part = evenly(rows, count)
    assert len(part) == count
    every = iter(rows)
    assert all(any(row == other for other in every) for row in part), "they come in the order of all"
    shares = Counter(rows)
    assert all(abs(part.kinds[kind] - shares[kind] * count / len(rows)) < 1 + 1e-9 for kind in shares)


def test_two_parts_say_what_the_whole_simulation_says(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = size_named("tiny")
    assert spec is not None
    file, machine, rows = random_file(spec), plain_machine(), drawn(160)
    policy = Policy(weights=Shares(0, 1, 0), cache=Shares(0, 1, 0), rows_per_group=2, groups_per_block=2)

    def simulated(part: JobRows) -> Prediction:
        return simulate(file, machine, policy, part)

    whole = simulated(rows)
    monkeypatch.setattr(module, "SIMULATED_ROWS", 64)
    found = predicted(rows, policy.rows_per_block, simulated)
    assert found.prefill_s + found.decode_s == pytest.approx(whole.prefill_s + whole.decode_s, rel=0.03)
    assert found.generated_tokens == whole.generated_tokens
    assert found.link_bytes["host->device"]["weights"] == pytest.approx(
        whole.link_bytes["host->device"]["weights"], rel=0.03
    )


def test_a_part_shares_what_its_rows_share() -> None:
    shared = np.arange(10_000) % 2
    rows = CountedRows.of_runs(
        np.full(10_000, 600), np.arange(10_000) % 7 + 1, np.ones(10_000), 256 * shared, 3 * shared
    )
    part = evenly(rows, 1000)
    assert sum(row.prefix == 3 and row.shared_tokens == 256 for row in part) == pytest.approx(500, rel=0.1)
