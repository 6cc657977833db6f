"""`flexref batch --scheduler`: what is otherwise of a job whose lines are answered by workers of a Dask cluster."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flexref.errors import JobPaused

if TYPE_CHECKING:
    from flexref.batch_job.job import BatchJob
    from flexref.batch_job.prepared import PreparedFile
    from flexref.batch_job.recorder import Recorder
    from flexref.batch_job.states import JobFacts

LOG = logging.getLogger(__name__)


def check_cluster(given: Mapping[str, Any]) -> None:
    """A usage error, or `WrongCall`, for what cannot be asked of a cluster."""
    from flexref.batch_job.cluster.local import check_scheduler

    if given["scheduler"] is None:
        if given["blas_threads"] is not None:
            raise click.UsageError("--blas-threads belongs to --scheduler")
        return
    check_scheduler(given["scheduler"])


class OnCluster:
    """A cluster that a job is to run on."""

    def __init__(self, client: Any, prepared: "PreparedFile", given: Mapping[str, Any]) -> None:
        """`client` is one of Dask. A worker elsewhere says what it computes with; here this process knows it itself."""
        from flexref.batch_job.cluster.engine_server import EngineOpening
        from flexref.batch_job.cluster.local import is_local
        from flexref.batch_job.cluster.serve_on_cluster import facts_of_a_worker
        from flexref.batch_job.identity import model_facts

        self._client, self._prepared, self._given = client, prepared, given
        settings, model = prepared.prepared.settings, Path(prepared.prepared.settings.model)
        if model.is_file():
            settings = replace(settings, model=str(model.absolute()))
        opening = EngineOpening(settings, prepared.scan.as_json, blas_threads=given["blas_threads"])
        if not is_local(given["scheduler"]):
            _, arithmetic = facts_of_a_worker(client, opening, lambda kind, text: LOG.warning("%s", text))
            prepared.prepared.computed_by(arithmetic)
        expected = model_facts(prepared.prepared.file), prepared.prepared.port.arithmetic
        self._opening = replace(opening, expected=expected, accept_arithmetic=given["accept_arithmetic"])

    def job(self, recorder: "Recorder", facts: "JobFacts") -> "BatchJob":
        """The job, in place of one that runs in this process."""
        from flexref.batch_job.cluster.cluster_job import ClusterJob
        from flexref.batch_job.cluster.leases import Leases
        from flexref.batch_job.input_file import read_lines

        prepared = self._prepared
        left = (number for number in prepared.expected if not recorder.is_done(number))
        lines_left = len(prepared.expected) - recorder.done_lines
        return ClusterJob(
            prepared.prepared.engines(),
            iter(()),
            recorder,
            facts,
            client=self._client,
            opening=self._opening,
            leases=Leases(read_lines(prepared.scan, left), lines_left, most_lines=self._given["chunk_lines"]),
        )


@contextmanager
def on_cluster(prepared: "PreparedFile", given: Mapping[str, Any]) -> Iterator[OnCluster | None]:
    """The cluster that is asked for, as long as the context lasts; None if none is."""
    if given["scheduler"] is None:
        yield None
        return
    from flexref.batch_job.cluster.local import connected
    from flexref.batch_job.stop import Stop

    stop = Stop()
    with ExitStack() as stack:
        try:
            with stop.on_signals():  # Dask may lose what is raised in its midst, but not what is noted here
                client = stack.enter_context(connected(given["scheduler"], given["blas_threads"] or 1))
                cluster = OnCluster(client, prepared, given)
                stop.check()
        except JobPaused as pause:  # nothing has begun that could go on
            raise KeyboardInterrupt from pause
        yield cluster
