"""Options of `flexref batch`, and what they ask of a job; it runs nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.types import StringParamType

from flexref.cli.arguments import TEXT, WEIGHT_FILE, WRITTEN_TEXT, Amount
from flexref.cli.completion import files, weight_files
from flexref.cli.options import BUDGETS, TOKENS, Command, asked_of, option, options, together
from flexref.cli.watching.watch_options import watch_options

if TYPE_CHECKING:
    from flexref.batch_job.job_files import JobFiles
    from flexref.batch_job.lines.defaults import Defaults
    from flexref.batch_job.prepared import JobSettings
    from flexref.batch_job.shard_choice import ChosenShard

STANDARD = "-"
"""Standard input or output."""

SHARD_HELP = """Work on every N-th chunk of the input, beginning with chunk I, from 0 on, and give each shard an output
of its own; auto: as Slurm's array or Kubernetes' Indexed Job number this task, also if nothing is said. Then, and only
then, the shard's number is added to the outputs' names: out.0003-of-0016.jsonl."""

SCHEDULER_HELP = """Work on a Dask cluster, an engine on every worker: one that runs, such as tcp://10.0.0.1:8786, or N
workers of its own on this machine. Budgets are each worker's."""

BLAS_HELP = "Threads of the host's matrix products on each worker; default: 1 here, what it has elsewhere."

CHUNK_HELP = "Lines of a chunk of a shard, and at most of one that a worker is given at a time."

MIRROR_HELP = "A copy of the weight file on another disk, read where the file cannot be read or is damaged."

STALL_HELP = """End the job, with one line that says which lane hangs and in what, when a disk or a device has not
answered for so many seconds; 0: wait for ever."""

ACCEPT_HELP = """Go on with a job although libraries, processor or device are not what they were; answers may differ in
near ties from what they would have been."""


class ShardName(StringParamType):
    """A shard, or that the variables say which."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text as it is; a usage error if it names no shard."""
        from flexref.batch_job.shard_choice import check_asked
        from flexref.errors import BatchError

        text: str = super().convert(value, param, ctx)
        try:
            check_asked(text)
        except BatchError as error:
            self.fail(str(error), param, ctx)
        return text


OPTIONS = (
    option("--model"),
    option("--output", required=True, metavar="FILE|-", help="Where answers go, in the order of the input."),
    click.option(
        "--errors",
        "errors_file",
        type=TEXT,
        metavar="FILE",
        shell_complete=files,
        help="Where the answers of failed lines go; default: to the output, too.",
    ),
    click.option("--max-tokens", type=TOKENS, help="The most new tokens of lines that do not say."),
    click.option("--temperature", type=Amount(), help="Likewise; 0: greedy."),
    click.option("--top-k", default=0, show_default=True, help="Likewise; 0: all."),
    click.option("--top-p", default=1.0, show_default=True, help="Likewise."),
    click.option(
        "--stop",
        "stops",
        multiple=True,
        type=WRITTEN_TEXT,
        help="Likewise: end a row before this text; repeatable.",
    ),
    click.option("--ignore-eos", is_flag=True, help="Likewise: go on after the end-of-sequence token."),
    click.option("--seed", default=0, show_default=True, help="Lines without one draw from this and their number."),
    click.option(
        "--created",
        default=0,
        show_default=True,
        help="What answers have as `created`, in seconds since 1970; no clock is asked.",
    ),
    click.option(
        "--model-name",
        type=WRITTEN_TEXT,
        help="What answers have as `model` where a line names none; default: its own, or its file's.",
    ),
    click.option("--limits", type=click.Choice(["openai"]), help="Refuse an input beyond the limits of an API."),
    options("--backend", *BUDGETS, "--policy", "--percent", "--machine", "--rows-per-group", "--groups"),
    options("--attention-on", "--host-attention-percent", "--quantize-cache"),
    options("--overlap", "--row-invariant", "--share-prefixes", "--read-ahead-gib"),
    option("--graphs"),
    click.option("--shard", type=ShardName(), metavar="I/N|auto", help=SHARD_HELP),
    click.option("--chunk-lines", type=click.IntRange(1, 1 << 30), default=1000, show_default=True, help=CHUNK_HELP),
    click.option("--scheduler", metavar="ADDRESS|local:N", help=SCHEDULER_HELP),
    click.option("--blas-threads", type=click.IntRange(1, 1 << 10), metavar="N", help=BLAS_HELP),
    click.option("--mirror", type=WEIGHT_FILE, metavar="FILE", shell_complete=weight_files, help=MIRROR_HELP),
    click.option("--stall-s", type=Amount(), default=600.0, show_default=True, help=STALL_HELP),
    click.option("--accept-changed-machine", "accept_arithmetic", is_flag=True, help=ACCEPT_HELP),
    click.option("--price-per-hour", type=Amount(), help="What the machine costs in an hour, for reports."),
    watch_options,
    click.option("--dry-run", is_flag=True, help="Check every line, and say what the job will take; run nothing."),
    option("--force", help="Begin anew: replace an output and its journal that are there already."),
    option("--json", help="Print one JSON object at the end, on standard output."),
)


def batch_options(command: Command) -> Command:
    """The options, on a command that takes them as keyword arguments."""
    return together(*OPTIONS)(command)


def settings_of(given: Mapping[str, Any], shard: "ChosenShard") -> "JobSettings":
    """What the options ask of a job."""
    from flexref.batch_job.prepared import JobSettings

    return JobSettings(
        given["model"],
        given["backend"],
        asked_of(given),
        given["machine"],
        defaults_of(given),
        shard.shard,
        given["mirror"],
        graphs=given["graphs"],
    )


def defaults_of(given: Mapping[str, Any]) -> "Defaults":
    """What the options say of lines that do not say it; `WrongCall` for values that no line can have."""
    from flexref.batch_job.lines.defaults import Defaults
    from flexref.errors import BatchError, WrongCall
    from flexref.storage.names import called

    name = given["model_name"] or called(given["model"])
    try:
        return Defaults(
            given["max_tokens"],
            given["temperature"],
            given["top_k"],
            given["top_p"],
            given["seed"],
            tuple(given["stops"]),
            given["ignore_eos"],
            name,
            given["created"],
        )
    except BatchError as error:
        raise WrongCall(str(error)) from error


def files_of(given: Mapping[str, Any], shard: "ChosenShard", model: str) -> "JobFiles":
    """The files that the job writes, and those that it reads and must not write."""
    from flexref.batch_job.job_files import JobFiles
    from flexref.storage.names import resolve

    output, errors = given["output_file"], given["errors_file"]
    inputs = (given["input_file"], resolve(model), given["mirror"], given["policy"], given["machine"])
    return JobFiles(
        shard.path(Path(output)),
        None if errors is None else shard.path(Path(errors)),
        tuple(Path(path) for path in inputs if path is not None and Path(path).exists()),
    )


def streams(given: Mapping[str, Any]) -> bool:
    """Whether the job reads standard input or writes standard output. A usage error for what then cannot be."""
    if given["errors_file"] == STANDARD and given["output_file"] != STANDARD:
        raise click.UsageError("--errors - needs -o -: failed lines go to standard output where all answers do")
    if STANDARD not in (given["input_file"], given["output_file"]):
        return False
    for name in ("shard", "dry_run", "as_json", "limits", "scheduler"):
        if given[name]:
            flag = "--json" if name == "as_json" else f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{flag} needs an input and an output that are files")
    return True
