"""What a run's seconds are made of: operators by kind, links that are waited for; what is left is the host's."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from flexref_numpy import NumpyBackend
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.bench.benchmark import Benchmark
from flexref.bench.breakdown import KIND_OF, LaneTimes, OperatorTimes, covered_s, union
from flexref.bench.report import Report
from flexref.bench.short_runs import RunsDiffer
from flexref.bench.suites import Arguments
from flexref.engine.request import Request
from flexref.loading import load
from flexref.policy import Policy
from flexref.storage.random_weights import random_file

INTERVALS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 9)).map(lambda pair: (pair[0], sum(pair))), max_size=8
)
VISIT = st.tuples(st.integers(0, 30), st.integers(1, 5), st.sampled_from([0, 1, 8, 9]))
VISITS = st.lists(VISIT, min_size=1, max_size=8)
SPEC = ModelSpec("plain", 173, 64, 32, 32, 3, 2, 64, activation="relu")
TINY = {"model": "tiny", "prompt_len": 12, "gen_len": 7, "rows": 6, "rows_per_group": 2, "groups": 2, "breakdown": True}


def seconds_in(intervals: Sequence[tuple[int, int]]) -> set[int]:
    return {second for start, end in intervals for second in range(start, end)}


@given(INTERVALS, st.integers(0, 30), st.integers(0, 30))
def test_time_is_counted_once_however_intervals_lie(intervals: Any, start: int, length: int) -> None:
    apart = union(intervals)
    assert seconds_in(apart) == seconds_in(intervals)
    assert all(one[1] < other[0] for one, other in pairwise(apart))
    whole = (start, start + length)
    assert covered_s(whole, apart) == len(seconds_in([whole]) & seconds_in(intervals))


@given(INTERVALS, VISITS)
def test_a_link_is_waited_for_where_it_works_and_no_visit_does(copies: Any, visits: Any) -> None:
    lanes = LaneTimes(9)
    for start, end in copies:
        lanes.on_done(SimpleNamespace(start_s=start, end_s=end))  # type: ignore[arg-type]
    for start, length, number in visits:
        visit = SimpleNamespace(pass_number=number)
        lanes.on_computed(SimpleNamespace(visit=visit, start_s=start, end_s=start + length))  # type: ignore[arg-type]
    worked = seconds_in([(start, start + length) for start, length, _ in visits])
    first, last = min(visit[0] for visit in visits), max(visit[0] for visit in visits)
    waited = [second for second in seconds_in(copies) - worked if second < last]
    assert lanes.waited_s(0) + lanes.waited_s(1) == len(waited)
    if {number for _, _, number in visits} <= {0, 9}:
        assert lanes.waited_s(1) == 0
    assert first <= last


class Slow(NumpyBackend):
    """Attention takes at least a while."""

    def attend(self, *arguments: Any) -> Any:
        time.sleep(0.002)
        return super().attend(*arguments)


def test_operators_are_timed_by_kind_and_phase_and_the_port_is_left_as_it_was() -> None:
    port = Slow(1 << 16)
    with load(random_file(SPEC), backend=port, policy=Policy(rows_per_group=1, groups_per_block=2)) as engine:
        engine.generate([[5]], Request(1))  # what the port has from its first job on
        before = set(vars(port))
        operators = OperatorTimes(port, 4)
        with operators.watching():
            engine.generate([[5, 6], [7]], Request(4, ignore_eos=True), on_visit=operators.on_visit)
            prefill, decode = operators.seconds(0), operators.seconds(1)
        assert set(vars(port)) == before
    assert operators.passes == 3
    assert set(prefill) == set(decode) == set(KIND_OF.values())
    assert prefill["attention"] >= 2 * SPEC.layers * 0.002
    assert decode["attention"] >= 3 * 2 * SPEC.layers * 0.002
    assert min(*prefill.values(), *decode.values()) > 0


def run(values: dict[str, Any], port: Any = NumpyBackend) -> Report:
    with Benchmark(Arguments.from_mapping(values, "the test"), lambda: port(1 << 16)) as benchmark:
        return benchmark.run(on_run=lambda number: None)


@pytest.mark.parametrize("percent", [[100, 0] * 3, [0, 100, 0, 100, 100, 0]])
def test_the_parts_add_up_to_the_medians(percent: list[float]) -> None:
    report = run({**TINY, "percent": percent})
    found, figures = report.breakdown, report.to_json()
    assert found is not None
    assert found.decode_step is not None
    assert found.passes == 2 * 4  # the block is filled twice, with four decode passes each time
    assert sum(asdict(found.prefill).values()) == pytest.approx(figures["prefill_s"])
    assert sum(asdict(found.decode_step).values()) == pytest.approx(figures["decode_step_s"])
    moving = percent[0] < 100
    assert (found.prefill.link_s > 0) == (found.decode_step.link_s > 0) == moving
    assert figures["breakdown"]["decode_step"]["products_s"] > 0


class Forgetful(NumpyBackend):
    """Chooses otherwise after as many choices as warming up (3) and the timed run (7 of each of 3 groups) make."""

    choices = 0

    def sample(self, logits: Any, *how: Any) -> Any:
        self.choices += 1
        chosen = super().sample(logits, *how)
        return chosen if self.choices <= 3 + 7 * 3 else (chosen + 1) % logits.shape[1]


def test_short_runs_that_give_other_tokens_end_the_benchmark() -> None:
    with pytest.raises(RunsDiffer, match="a run with operators timed, row 0: new token 0 is"):
        run(TINY, Forgetful)
