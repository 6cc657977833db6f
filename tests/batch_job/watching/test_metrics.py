"""Figures for Prometheus: what the latest state says, on a port that lasts as long as the job; counters only rise."""

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from flexref.batch_job.states import JobEvent, JobFacts, JobState
from flexref.batch_job.watching.metrics import Figures, Metrics
from flexref.batch_job.watching.pace import JobPace
from flexref.errors import BatchError
from flexref.policy import Policy

FACTS = JobFacts("small", "numpy", Policy(), "in.jsonl", "out.jsonl", 1000, predicted_s=60.0)
STATE = JobState(
    20.0,
    19.0,
    lines_done=7,
    lines_failed=1,
    passes=3,
    live_rows=6,
    places=8,
    prompt_tokens=20,
    generated_tokens=50,
    link_bytes={"disk->host": {"weights": 100, "cache": 5}},
    link_s={"disk->host": {"weights": 1.5, "cache": 0.5}},
    timed_copies={"disk->host": {"weights": 9, "cache": 1}},
    lane_busy_s={"disk_in": 2.0},
    held_bytes={"device": 5, "host": 6, "disk": 7},
    budget_bytes={"device": 50, "host": None, "disk": None},
    faults=2,
)

HOST = "127.0.0.1"


def asked(port: int) -> dict[str, float]:
    """All samples by name and labels."""
    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        sample.name + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def pace() -> JobPace:
    return JobPace(lambda: 0.0)


@pytest.fixture
def metrics(pace: JobPace) -> Iterator[Metrics]:
    served = Metrics(0, pace, HOST)
    yield served
    served.close()


def test_figures_are_those_of_the_latest_state(pace: JobPace, metrics: Metrics) -> None:
    assert asked(metrics.port) == {}
    pace.begin(FACTS)
    pace.passed(STATE)
    for kind in ("fault", "retry", "fault"):
        metrics.happened(JobEvent(1.0, kind, ""))
    found = asked(metrics.port)
    expected = {
        "lines_total outcome=answered": 6,
        "lines_total outcome=failed": 1,
        "generated_tokens_total": 50,
        "prompt_tokens_total": 20,
        "passes_total": 3,
        "working_seconds_total": 19,
        "link_bytes_total kind=weights link=disk->host": 100,
        "link_seconds_total kind=cache link=disk->host": 0.5,
        "link_copies_total kind=weights link=disk->host": 9,
        "lane_busy_seconds_total lane=disk_in": 2,
        "held_bytes tier=host": 6,
        "budget_bytes tier=device": 50,
        "occupancy_ratio": 0.75,
        "live_rows": 6,
        "run_seconds": 20,
        "faults_total": 2,
        "events_total kind=fault": 2,
        "input_lines": 1000,
        "predicted_seconds": 60,
        "left_seconds": 41,
    }
    assert {name: found[f"flexref_batch_{name}"] for name in expected} == expected
    assert "flexref_batch_budget_bytes tier=host" not in found
    assert any(name.startswith("flexref_batch_job_info backend=numpy machine= model=small version=") for name in found)


def test_the_port_is_free_when_the_job_has_ended(pace: JobPace, metrics: Metrics) -> None:
    pace.begin(FACTS)
    asked(metrics.port)
    metrics.end(STATE, "done")
    with pytest.raises(urllib.error.URLError):
        asked(metrics.port)
    Metrics(metrics.port, pace, HOST).close()


def test_a_port_that_is_taken_is_refused_in_one_line(pace: JobPace) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BatchError, match=f"^no metrics on 127.0.0.1 port {port}: Address already in use; "):
            Metrics(port, pace, HOST)


@given(steps=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8))
def test_counters_never_go_down(steps: list[tuple[int, int]]) -> None:
    pace = JobPace(lambda: 0.0)
    figures = Figures(pace)
    pace.begin(FACTS)
    before: dict[tuple[str, tuple[str, ...]], float] = {}
    done = failed = 0
    for number, (answered, wrong) in enumerate(steps, start=1):
        done, failed = done + answered + wrong, failed + wrong
        moved = {"host->device": {"cache": done}}
        pace.passed(JobState(number, number, done, failed, number, generated_tokens=done, link_bytes=moved))
        for family in figures.collect():
            if family.type != "counter":
                continue
            for sample in family.samples:
                key = sample.name, tuple(sample.labels.values())
                assert sample.value >= before.get(key, 0)
                before[key] = sample.value
