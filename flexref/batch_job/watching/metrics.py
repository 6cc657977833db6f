"""Serves figures of a job to Prometheus while it runs; it knows neither the job nor who asks.

A thread of its own answers, from the latest state that it was told of: asking costs the job nothing but that thread's
work. Counters are those of this run: they begin at 0 when a job goes on, as Prometheus has it.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from flexref.batch_job.states import JobEvent, JobState, Watcher
from flexref.batch_job.watching.pace import JobPace, View
from flexref.errors import BatchError
from flexref.version import __version__

PREFIX = "flexref_batch_"

Values = Mapping[tuple[str], float] | Mapping[tuple[str, str], float] | Mapping[tuple[()], float]
"""Samples by their labels."""

ENDING_S = 5.0
"""So long the server's thread is waited for."""


class Metrics(Watcher):
    """A server on a port of this machine, from when it is made until `close` or the end of the job."""

    def __init__(self, port: int, pace: JobPace, host: str) -> None:
        """`pace` must be told before this is. `BatchError` says that no such port is to be had.

        Port 0 is any that is free: `port` says which.
        """
        self._figures = Figures(pace)
        registry = CollectorRegistry()
        registry.register(self._figures)
        try:
            server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            why = error.strerror or error
            free = "--metrics-port 0 takes one that is free"
            raise BatchError(f"no metrics on {host} port {port}: {why}; {free}") from error
        self._server: Any = server
        self.port = int(server.server_port)

    def happened(self, event: JobEvent) -> None:
        """Count it."""
        self._figures.count(event)

    def end(self, state: JobState, ending: str) -> None:
        """Nobody is answered any more."""
        self.close()

    def close(self) -> None:
        """End the server; once is enough."""
        if self._server is not None:
            server, self._server = self._server, None
            server.shutdown()
            server.server_close()
            self._thread.join(ENDING_S)


class Figures:
    """A collector of Prometheus': asked for all figures at once."""

    def __init__(self, pace: JobPace) -> None:
        self._pace = pace
        self._counting, self._events = threading.Lock(), Counter[str]()

    def count(self, event: JobEvent) -> None:
        """Count an event, from any thread."""
        with self._counting:
            self._events[event.kind] += 1

    def describe(self) -> Iterable[Metric]:
        """Nothing is promised before the job begins."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All figures of the latest state; none before the job begins."""
        view = self._pace.view
        if view is not None:
            yield from _counters(view, dict(self._events))
            yield from _gauges(view)


def _counters(view: View, events: Mapping[str, int]) -> Iterator[Metric]:
    make, state = CounterMetricFamily, view.state
    answered = {("answered",): state.lines_done - state.lines_failed, ("failed",): state.lines_failed}
    yield _family(make, "lines", "Lines done, with those of earlier runs.", answered, "outcome")
    yield _family(make, "generated_tokens", "New tokens of all rows.", {(): state.generated_tokens})
    yield _family(make, "prompt_tokens", "Tokens of prompts that were read.", {(): state.prompt_tokens})
    yield _family(make, "passes", "Passes over the model.", {(): state.passes})
    yield _family(make, "working_seconds", "Seconds in passes.", {(): state.working_s})
    by = "link", "kind"
    yield _family(make, "link_bytes", "Bytes moved between tiers.", _flat(state.link_bytes), *by)
    yield _family(make, "link_seconds", "Seconds of copies that have ended.", _flat(state.link_s), *by)
    yield _family(make, "link_copies", "Copies that have ended.", _flat(state.timed_copies), *by)
    lanes = {(lane,): seconds for lane, seconds in state.lane_busy_s.items()}
    yield _family(make, "lane_busy_seconds", "Seconds in which a lane was at work.", lanes, "lane")
    yield _family(make, "faults", "Faults that were met.", {(): state.faults})
    yield _family(make, "events", "What happened.", {(kind,): count for kind, count in events.items()}, "kind")


def _gauges(view: View) -> Iterator[Metric]:
    make, facts, state, speed = GaugeMetricFamily, view.facts, view.state, view.speed()
    held = {(tier,): nbytes for tier, nbytes in state.held_bytes.items()}
    yield _family(make, "held_bytes", "Bytes held.", held, "tier")
    budgets = {(tier,): budget for tier, budget in state.budget_bytes.items() if budget is not None}
    yield _family(make, "budget_bytes", "Bytes that may be held, where there is a bound.", budgets, "tier")
    yield _family(make, "occupancy_ratio", "Live rows over places in the latest pass.", {(): speed.occupancy})
    yield _family(make, "live_rows", "Rows of the latest pass.", {(): state.live_rows})
    yield _family(make, "run_seconds", "Seconds since the run began, at the latest pass.", {(): state.at_s})
    known = {"input_lines": facts.lines, "predicted_seconds": facts.predicted_s, "left_seconds": speed.left_s}
    about = {
        "input_lines": "Lines that this process is to answer.",
        "predicted_seconds": "Seconds predicted when the run began.",
        "left_seconds": "Seconds until the job ends, at the pace of now or as predicted.",
    }
    for name, value in known.items():
        if value is not None:
            yield _family(make, name, about[name], {(): value})
    said = {"model": facts.model, "backend": facts.backend, "machine": facts.machine or "", "version": __version__}
    yield InfoMetricFamily(PREFIX + "job", "What runs.", value=said)


def _family(make: Callable[..., Any], name: str, about: str, values: Values, *labels: str) -> Any:
    """A family of samples, `values` by their labels."""
    family = make(PREFIX + name, about, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _flat(table: Mapping[str, Mapping[str, float]]) -> Values:
    return {(link, kind): value for link, kinds in table.items() for kind, value in kinds.items()}
