"""`flexref batch`: a file of requests in, a file of answers out, exactly once; parses, calls the job, prints."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flexref.cli.arguments import TEXT
from flexref.cli.batch.on_cluster import check_cluster, on_cluster
from flexref.cli.batch.options import STANDARD, batch_options, files_of, settings_of, streams
from flexref.cli.batch.resume import resume_command
from flexref.cli.completion import files
from flexref.cli.logs import shows_progress
from flexref.cli.streams import tell
from flexref.cli.watching.stops_progress import StopsProgress
from flexref.cli.watching.watch_options import WatchOptions, watchers_of
from flexref.errors import JobPaused, how_many

if TYPE_CHECKING:
    from flexref.batch_job.job import BatchJob
    from flexref.batch_job.job_files import JobFiles
    from flexref.batch_job.prepared import Prepared, PreparedFile

LOG = logging.getLogger(__name__)

PROGRAM = "flexref"


@click.command("batch")
@click.argument("input_file", metavar="IN.jsonl|-", type=TEXT, shell_complete=files)
@batch_options
def command(**given: Any) -> None:
    """Answer every request in a file, in its order, exactly once, whatever happens in between.

    Lines are those of the OpenAI batch format (/v1/completions and /v1/chat/completions), objects with a `prompt`, or
    prompts as they stand. What is answered is durable: after a kill or a power cut the same command goes on, and the
    output is the same, byte for byte, as if nothing had happened.
    """
    is_stream = streams(given)

    from flexref.batch_job.prepared import Prepared, PreparedFile
    from flexref.batch_job.shard_choice import choose_shard
    from flexref.batch_job.validation import check_openai_limits

    shard = choose_shard("0/1" if is_stream else given["shard"], os.environ, given["chunk_lines"])
    if shard.why is not None and not is_stream:
        _say(shard.why)
    settings = settings_of(given, shard)
    watching = WatchOptions.of(given)
    watching.check(given["output_file"])
    job_files = files_of(given, shard, given["model"])
    if watching.log_json not in (None, STANDARD):
        job_files.check_other(Path(str(watching.log_json)), "the log")
    if is_stream:
        _stream(Prepared(settings), watching, given)
        return
    check_cluster(given)
    job_files.check()
    prepared = PreparedFile(Prepared(settings), given["input_file"])
    if given["limits"] is not None:
        check_openai_limits(prepared.scan)
    if given["dry_run"]:
        from flexref.cli.batch.dry_run import dry_run

        dry_run(prepared, job_files, watching, given)
        return
    _file(prepared, job_files, watching, given)


def _file(prepared: "PreparedFile", job_files: "JobFiles", watching: "WatchOptions", given: dict[str, Any]) -> None:
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
            _say(f"{job_files.output}: {recorder.done_lines} of {how_many(expected, 'line')} are done; {goes_on}")
        writes = DiskWrites(spilled_before(read_notes(job_files.journal)), lambda: recorder.written_bytes)
        machine = prepared.prepared.port.machine
        facts = prepared.facts(recorder, job_files, given["price_per_hour"])
        if cluster is not None:
            job = cluster.job(recorder, facts)
        else:
            engines, lines = prepared.prepared.engines(), prepared.lines(recorder)
            job = BatchJob(engines, lines, recorder, facts, foretell=Foretelling(machine))
        job.watchers = stack.enter_context(watchers_of(watching, job.happened, writes, machine))
        ending, why = _ended(job)
        done, failed = recorder.done_lines, recorder.failed_lines
    report = {
        "ending": ending,
        "lines": expected,
        "lines_done": done,
        "lines_failed": failed,
        "runs": job.facts.runs_before + 1,
        "output": str(job_files.output),
        "errors": None if job_files.errors is None else str(job_files.errors),
    }
    if given["as_json"]:
        click.echo(json.dumps(report))
    if ending == "paused":
        again = resume_command(PROGRAM, sys.argv[1:], why)
        tell(f"paused ({why}): {done} of {how_many(expected, 'line')} are done; resume with: {again}")
        return
    where = f"; see {job_files.errors or job_files.output}" if failed else ""
    _say(f"{job_files.output}: {how_many(expected, 'line')} answered, {failed} of them failed{where}")


def _ended(job: "BatchJob") -> tuple[str, str]:
    """Run a job that stops in order on a signal: how it ended, and why if it is paused."""
    with _showing_preparation(job):
        try:
            with job.stop.on_signals():
                job.run()
        except JobPaused as pause:
            return "paused", str(pause)
    return "done", ""


@contextmanager
def _showing_preparation(job: "BatchJob") -> Iterator[None]:
    """Progress is shown until the first pass begins, and what the job's watchers show takes its place."""
    from flexref.cli.show.progress import progress
    from flexref.engine.events import no_listener

    with ExitStack() as stack:

        def stop() -> None:
            job.engines.on_event = no_listener  # weights that are loaded later would bring the display back
            stack.close()

        job.engines.on_event = stack.enter_context(progress("choosing a policy"))
        job.watchers = [StopsProgress(stop), *job.watchers]
        yield


def _stream(prepared: "Prepared", watching: "WatchOptions", given: dict[str, Any]) -> None:
    """Run a job from or to a standard stream: nothing of it is durable."""
    from flexref.batch_job.input_file import opened_input
    from flexref.batch_job.input_stream import InputStream, standard_input
    from flexref.batch_job.job import BatchJob
    from flexref.batch_job.prepared import PreparedStream
    from flexref.batch_job.states import JobFacts
    from flexref.batch_job.stream_recorder import StreamRecorder
    from flexref.batch_job.watching.disk_bound import DiskWrites
    from flexref.batch_job.whole_file import WholeFile
    from flexref.cli.show.outputs import check_outputs
    from flexref.policy import Policy

    outputs = {flag: given[name] for flag, name in (("-o", "output_file"), ("--errors", "errors_file"))}
    check_outputs(
        {flag: None if path == STANDARD else path for flag, path in outputs.items()},
        (given["input_file"], given["model"], given["policy"], given["machine"]),
        force=given["force"],
    )
    _say("a standard stream: this job is not kept, and cannot be resumed")
    with ExitStack() as stack:
        if given["input_file"] == STANDARD:
            source = standard_input()
        else:
            source = InputStream(stack.enter_context(opened_input(given["input_file"])), given["input_file"])
        new = {
            name: stack.enter_context(closing(WholeFile(Path(given[name]))))
            for name in ("output_file", "errors_file")
            if given[name] not in (None, STANDARD)
        }
        recorder = StreamRecorder(new.get("output_file", sys.stdout.buffer), new.get("errors_file"))
        stream = PreparedStream(prepared, source, recorder)
        facts = JobFacts(
            prepared.file.spec.name, given["backend"], Policy(), given["input_file"], given["output_file"], None
        )
        job = BatchJob(prepared.engines(), stream.lines(), recorder, facts)
        output = given["output_file"]
        job.watchers = stack.enter_context(watchers_of(watching, job.happened, DiskWrites(), output=output))
        with _showing_preparation(job):
            job.run()
        for file in new.values():
            file.publish()
        _say(f"{how_many(recorder.done_lines, 'line')} answered, {recorder.failed_lines} of them failed")


def _say(text: str) -> None:
    """Tell a person how things stand, unless only errors are wanted."""
    if shows_progress():
        tell(text)
