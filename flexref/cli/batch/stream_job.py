"""A batch job from or to a standard stream: nothing of it is durable; it parses nothing."""

import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexref.cli.batch.options import STANDARD
from flexref.cli.batch.watched import run_watched, say
from flexref.errors import how_many

if TYPE_CHECKING:
    from flexref.batch_job.prepared import Prepared
    from flexref.cli.batch.watched import JobWatch


def run_stream_job(prepared: "Prepared", watch: "JobWatch", given: dict[str, Any]) -> None:
    """Run a job from or to a standard stream: nothing of it is durable."""
    from flexref.batch_job.input_stream import file_input, standard_input
    from flexref.batch_job.prepared import PreparedStream
    from flexref.batch_job.stream_recorder import StreamRecorder
    from flexref.batch_job.watching.disk_bound import DiskWrites
    from flexref.batch_job.whole_file import WholeFile
    from flexref.cli.show.outputs import check_outputs

    outputs = {flag: given[name] for flag, name in (("-o", "output_file"), ("--errors", "errors_file"))}
    check_outputs(
        {flag: None if path == STANDARD else path for flag, path in outputs.items()},
        (given["input_file"], given["model"], given["policy"], given["machine"]),
        force=given["force"],
    )
    say("a standard stream: this job is not kept, and cannot be resumed")
    with ExitStack() as stack:
        if given["input_file"] == STANDARD:
            source = standard_input()
        else:
            source = stack.enter_context(file_input(given["input_file"]))
        new = {
            name: stack.enter_context(closing(WholeFile(Path(given[name]))))
            for name in ("output_file", "errors_file")
            if given[name] not in (None, STANDARD)
        }
        recorder = StreamRecorder(new.get("output_file", sys.stdout.buffer), new.get("errors_file"))
        stream = PreparedStream(prepared, source, recorder, as_json=source.as_json)
        job = stream.job(given["input_file"], given["output_file"])
        run_watched(job, watch, DiskWrites(0, lambda: recorder.written_bytes if new else 0))
        for file in new.values():
            file.publish()
        say(f"{how_many(recorder.done_lines, 'line')} answered, {recorder.failed_lines} of them failed")
