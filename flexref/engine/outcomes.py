"""Runs a job that generates to its end: all outputs in order, or results as rows end; it knows no session."""

from collections.abc import Callable, Iterator
from contextlib import closing

from flexref.engine.generation import GenerationJob
from flexref.engine.results import Generation, Output, RowResult, StreamedToken


def generation(job: GenerationJob, on_token: Callable[[StreamedToken], None] | None = None) -> Generation:
    """Run a job of requests that were all read at once: outputs in their order, and the account."""
    outputs: dict[int, Output] = {}
    for token in job.run():
        if on_token is not None and token is not None:
            on_token(token)
        for result in job.take_results():
            assert result.output is not None
            outputs[result.number] = result.output
    return Generation([outputs[number] for number in sorted(outputs)], job.stats)


def results(job: GenerationJob) -> Iterator[RowResult]:
    """Run a job and yield the results of its rows as they end; then raise what its requests' iterator raised."""
    with closing(job.run()) as tokens:
        for _ in tokens:
            yield from job.take_results()
    yield from job.take_results()
    if job.failure is not None:
        raise job.failure
