"""How often a benchmark runs: intervals as scipy has them, and runs that end when they are narrow, or never."""

import pytest
import scipy.stats
from flexref_numpy import NumpyBackend
from hypothesis import given
from hypothesis import strategies as st

from flexref.bench import benchmark, repeats
from flexref.bench.benchmark import Benchmark
from flexref.bench.rates import Rates
from flexref.bench.repeats import AUTO, LEAST_RUNS, MOST_RUNS, MOST_S, NARROW, enough, interval_of
from flexref.bench.suites import Arguments
from flexref.errors import PolicyError

SAMPLES = st.lists(st.floats(0.1, 1e4), min_size=2, max_size=60)


@given(SAMPLES)
def test_the_interval_is_that_of_students_t(samples: list[float]) -> None:
    found = interval_of(samples)
    assert found is not None
    error = scipy.stats.sem(samples)
    if error > 1e-9:
        ends = scipy.stats.t.interval(0.95, len(samples) - 1, loc=found.mean, scale=error)
        assert (found.least, found.most) == pytest.approx(ends, rel=1e-6, abs=1e-6)
    assert found.least <= found.mean <= found.most
    assert found.relative_width == pytest.approx((found.most - found.least) / found.mean, abs=1e-9)
    assert found.narrow_enough == (found.relative_width <= NARROW)
    assert interval_of(samples[:1]) is None


@given(SAMPLES, st.floats(0, 2 * MOST_S))
def test_runs_end_as_soon_as_their_interval_is_narrow_and_never_go_on_beyond_their_bounds(
    samples: list[float], seconds: float
) -> None:
    done = enough(AUTO, samples, seconds)
    found = interval_of(samples)
    assert found is not None
    narrow = len(samples) >= LEAST_RUNS and found.narrow_enough
    assert done == (narrow or len(samples) >= MOST_RUNS or seconds > MOST_S)
    assert enough(len(samples), samples, seconds)
    assert not enough(len(samples) + 1, samples, seconds)
    assert not enough(AUTO, [], 0)


@pytest.mark.parametrize(("narrow", "runs"), [(1e9, LEAST_RUNS), (0.0, 7)])
def test_a_benchmark_runs_until_its_interval_is_narrow(
    narrow: float, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "NARROW", narrow)
    monkeypatch.setattr(repeats, "MOST_RUNS", 7)
    monkeypatch.setattr(benchmark, "measure", lambda backend: Rates(1e15, 1e15, 1e15, 1e18))
    values = {"model": "tiny", "prompt_len": 3, "gen_len": 2, "rows": 1, "repeat": AUTO}
    begun: list[int] = []
    with Benchmark(Arguments.from_mapping(values, "here"), lambda: NumpyBackend(1 << 16)) as made:
        found = made.run(on_run=begun.append).to_json()
    assert begun == list(range(1, runs + 1))
    assert len(found["runs"]) == found["tokens_per_s_interval"]["runs"] == runs
    assert found["tokens_per_s_interval"]["narrow_enough"] == (narrow > 1)
    assert found["tokens_per_s_interval"]["mean"] == pytest.approx(
        sum(run["tokens_per_s"] for run in found["runs"]) / runs
    )
    assert Arguments.from_mapping(found["arguments"], "there").repeat == AUTO


@pytest.mark.parametrize("repeat", [0, "3", "AUTO", None])
def test_other_repeats_are_refused(repeat: object) -> None:
    with pytest.raises(PolicyError, match=r"repeat must be a whole number of at least 1 or .*auto"):
        Arguments.from_mapping({"model": "tiny", "repeat": repeat}, "here")
