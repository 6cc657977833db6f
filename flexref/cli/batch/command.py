"""`flexref batch`: a file of requests in, a file of answers out, exactly once; parses, and calls the job."""

import os
from typing import Any

import click

from flexref.cli.arguments import TEXT
from flexref.cli.batch.dry_run import dry_run
from flexref.cli.batch.file_job import run_file_job
from flexref.cli.batch.on_cluster import check_cluster
from flexref.cli.batch.options import batch_options, files_of, settings_of, streams
from flexref.cli.batch.stream_job import run_stream_job
from flexref.cli.batch.watched import JobWatch, say
from flexref.cli.completion import files


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
        say(shard.why)
    settings = settings_of(given, shard)
    watch, job_files = JobWatch.of(given), files_of(given, shard, given["model"])
    if watch.log_file is not None:
        job_files.check_other(watch.log_file, "the log")
    if is_stream:
        run_stream_job(Prepared(settings), watch, given)
        return
    check_cluster(given)
    job_files.check()
    prepared = PreparedFile(Prepared(settings), given["input_file"])
    if given["limits"] is not None:
        check_openai_limits(prepared.scan)
    if given["dry_run"]:
        dry_run(prepared, watch.options.max_disk_writes_gib, given)
    else:
        run_file_job(prepared, job_files, watch, given)
