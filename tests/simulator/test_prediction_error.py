"""What is said of a prediction: nothing while it holds, or of moments; else how far it was off, in words."""

from dataclasses import replace
from typing import Any

import pytest

from flexref.block.rows import RowLengths
from flexref.engine.request import Request
from flexref.engine.results import Stats
from flexref.loading import load
from flexref.machine.plain import plain_machine
from flexref.policy import Policy
from flexref.simulator.prediction_error import PredictionError, compared, prediction_error
from flexref.units import Tier


@pytest.fixture(scope="module")
def job() -> PredictionError:
    """The prediction of a job beside its account."""
    with load("demo", policy=Policy()) as engine:
        stats = engine.generate([[5, 6, 7]], Request(4, ignore_eos=True)).stats
        found = prediction_error(engine.file, plain_machine(), stats, [RowLengths(3, 4)], dict.fromkeys(Tier))
    assert found is not None
    return found


def held(job: PredictionError, predicted: tuple[float, float], took: tuple[float, float], **more: Any) -> Any:
    prediction = replace(job.prediction, prefill_s=predicted[0], decode_s=predicted[1])
    stats: Stats = replace(job.stats, prefill_s=took[0], decode_s=took[1])
    return replace(job, prediction=prediction, stats=stats, **more)


def test_of_phases_below_a_second_nothing_is_said(job: PredictionError) -> None:
    assert held(job, (0.030, 0.3), (0.058, 0.9)).misses() == []
    (miss,) = held(job, (0.030, 0.3), (0.058, 1.0)).misses()
    assert miss.phase == "decode"
    (miss,) = held(job, (4.0, 0.3), (0.058, 0.3)).misses()
    assert miss.phase == "prefill"


def test_within_the_spread_of_the_measurements_nothing_is_said(job: PredictionError) -> None:
    assert [miss.phase for miss in held(job, (2.0, 9.0), (3.0, 10.0)).misses()] == ["prefill"]
    assert held(job, (2.0, 9.0), (3.0, 10.0), spread=0.4).misses() == []
    assert len(held(job, (1.0, 1.0), (3.0, 10.0), spread=0.4).misses()) == 2


def test_that_a_job_is_faster_than_on_a_busy_machine_is_not_said(job: PredictionError) -> None:
    """What was measured beside other work is slower than the machine is."""
    assert [miss.phase for miss in held(job, (9.0, 3.0), (3.0, 9.0), machine_busy=True).misses()] == ["decode"]
    assert len(held(job, (9.0, 3.0), (3.0, 9.0)).misses()) == 2


def test_the_sign_is_explained(job: PredictionError) -> None:
    first, second = map(str, held(job, (3.0, 8.0), (6.0, 6.0)).misses())
    assert first.startswith("prefill: predicted 3 s, took 6 s: twice as long; most of it in ")
    assert second.startswith("decode: predicted 8 s, took 6 s: 25% shorter; most of it in ")


@pytest.mark.parametrize(
    ("predicted", "took", "words"),
    [
        (0.030, 0.0598, "twice as long"),
        (1.0, 0.501, "half as long"),
        (1.0, 1.3, "30% longer"),
        (1.0, 1.94, "94% longer"),
        (1.0, 2.6, "2.6 times as long"),
        (1.0, 150.0, "150 times as long"),
        (10.0, 2.0, "80% shorter"),
        (10.0, 0.5, "20 times as fast"),
        (0.0, 2.0, "more than nothing"),
        (2.0, 0.0, "nothing at all"),
    ],
)
def test_two_durations_in_words(predicted: float, took: float, words: str) -> None:
    assert compared(predicted, took) == words


def test_json_keeps_every_figure(job: PredictionError) -> None:
    found = held(job, (0.030, 0.3), (0.06, 0.6), spread=0.1).to_json()
    assert found["errors"] == {"prefill": -0.5, "decode": -0.5, "both": pytest.approx(-0.5)}
    assert (found["prefill_s"], found["decode_s"], found["spread"], found["missed"]) == (0.030, 0.3, 0.1, [])
