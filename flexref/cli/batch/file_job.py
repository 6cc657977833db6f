"""A batch job from file to file, and what is said of how it ended; it parses nothing."""

import json
import logging
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from flexref.cli.batch.on_cluster import on_cluster
from flexref.cli.batch.resume import resume_command
from flexref.cli.batch.watched import PROGRAM, run_watched, say
from flexref.cli.streams import tell
from flexref.errors import how_many

if TYPE_CHECKING:
    from flexref.batch_job.job_files import JobFiles
    from flexref.batch_job.prepared import PreparedFile
    from flexref.cli.batch.watched import JobWatch

LOG = logging.getLogger(__name__)


def run_file_job(prepared: "PreparedFile", job_files: "JobFiles", watch: "JobWatch", given: dict[str, Any]) -> None:
    """Run a job from file to file, and say how it ended."""
    from flexref.batch_job.foretell import Foretelling
    from flexref.batch_job.job import BatchJob
    from flexref.batch_job.journal.reading import read_notes
    from flexref.batch_job.watching.disk_bound import DiskWrites, spilled_before

    with ExitStack() as stack:
        cluster = stack.enter_context(on_cluster(prepared, given))
        recorder = stack.enter_context(
            prepared.recorder(job_files, force=given["force"], accept_arithmetic=given["accept_arithmetic"])
        )
        for notice in recorder.notices:
            LOG.warning("%s", notice)
        expected = len(prepared.expected)
        if recorder.runs_before:
            goes_on = "nothing is left to do" if recorder.done_lines == expected else "the job goes on"
            say(f"{job_files.output}: {recorder.done_lines} of {how_many(expected, 'line')} are done; {goes_on}")
        bounded = watch.options.max_disk_writes_gib is not None
        spilled = spilled_before(read_notes(job_files.journal)) if bounded else 0  # all of the journal is read for it
        writes = DiskWrites(spilled, lambda: recorder.written_bytes)
        machine = prepared.prepared.port.machine
        facts = prepared.facts(recorder, job_files, given["price_per_hour"])
        if cluster is not None:
            job = cluster.job(recorder, facts)
        else:
            engines, lines = prepared.prepared.engines(), prepared.lines(recorder)
            job = BatchJob(engines, lines, recorder, facts, foretell=Foretelling(machine))
        paused = run_watched(job, watch, writes, machine)
        done, failed = recorder.done_lines, recorder.failed_lines
    report = {
        "ending": "done" if paused is None else "paused",
        "lines": expected,
        "lines_done": done,
        "lines_failed": failed,
        "runs": job.facts.runs_before + 1,
        "output": str(job_files.output),
        "errors": None if job_files.errors is None else str(job_files.errors),
    }
    if given["as_json"]:
        click.echo(json.dumps(report))
    if paused is not None:
        again = resume_command(PROGRAM, sys.argv[1:], paused)
        tell(f"paused ({paused}): {done} of {how_many(expected, 'line')} are done; resume with: {again}")
        return
    where = f"; see {job_files.errors or job_files.output}" if failed else ""
    say(f"{job_files.output}: {how_many(expected, 'line')} answered, {failed} of them failed{where}")
