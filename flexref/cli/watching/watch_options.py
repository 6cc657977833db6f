"""Options of how a batch job is watched and bounded, and the watchers that they ask for; it runs no job."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flexref.cli.arguments import TEXT, Amount
from flexref.cli.completion import files
from flexref.cli.logs import shows_progress
from flexref.cli.options import together
from flexref.cli.show.displays import terminal
from flexref.cli.streams import tell
from flexref.errors import BatchError, WrongCall, install_hint

if TYPE_CHECKING:
    from flexref.batch_job.states import Watcher
    from flexref.batch_job.watching.disk_bound import DiskWrites
    from flexref.batch_job.watching.early_warning import Tell
    from flexref.batch_job.watching.pace import JobPace
    from flexref.machine.machine import Machine

Command = TypeVar("Command", bound=Callable[..., Any])

LOOPBACK = "127.0.0.1"

STDOUT = "-"


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """What a command was told of how its job is to be watched; `of` takes it from the parameters of a command."""

    log_json: str | None = None
    metrics_port: int | None = None
    metrics_host: str | None = None
    max_disk_writes_gib: float | None = None

    @classmethod
    def of(cls, given: dict[str, Any]) -> "WatchOptions":
        """Takes its own out of `given`."""
        return cls(**{name: given.pop(name) for name in cls.__slots__})

    def check(self, output: str, as_json: bool = False) -> None:
        """`WrongCall` if the log would go to stdout beside the answers, which go to `output`, or beside a result as
        JSON, or if nothing listens where it is told to."""
        if self.metrics_host is not None and self.metrics_port is None:
            raise WrongCall("--metrics-host belongs to --metrics-port, which is not given")
        if self.log_json == output == STDOUT:
            raise WrongCall("--log-json - and -o - exclude each other: both are stdout")
        if self.log_json == STDOUT and as_json:
            raise WrongCall("--log-json - and --json exclude each other: both are stdout")


def watch_options(command: Command) -> Command:
    """The options, on a command."""
    return together(
        click.option(
            "--log-json",
            type=TEXT,
            metavar="FILE|-",
            shell_complete=files,
            help="Write what happens to this file, one JSON object a line, a state every ten seconds; -: stdout.",
        ),
        click.option(
            "--metrics-port",
            type=click.IntRange(0, 65535),
            metavar="PORT",
            help="Serve figures to Prometheus while the job runs; 0: a port that is free, which is told.",
        ),
        click.option("--metrics-host", type=TEXT, help=f"Where --metrics-port listens; default: {LOOPBACK}."),
        click.option(
            "--max-disk-writes-gib",
            type=Amount(above=True),
            help="Pause when the job has written so much to disk over all its runs.",
        ),
    )(command)


@contextmanager
def watchers_of(
    options: WatchOptions,
    tell_event: "Tell",
    writes: "DiskWrites",
    machine: "Machine | None" = None,
    output: str | None = None,
) -> "Iterator[list[Watcher]]":
    """All who watch a job, in the order in which they must be told; they give up ports and files at the end.

    `tell_event` takes warnings, and should tell these watchers of them, too (`BatchJob.happened`). `writes` knows what
    the job writes to disk. Nothing is drawn on a terminal that shows the log, or the answers (`output` is -). Raises
    `BatchError` or `StorageError` if a port or a file is not to be had: make the watchers before models are loaded.
    """
    from flexref.batch_job.watching.disk_bound import DiskWriteBound
    from flexref.batch_job.watching.early_warning import EarlyWarning
    from flexref.batch_job.watching.log_lines import JsonLog
    from flexref.batch_job.watching.on_signal import StateOnSignal
    from flexref.batch_job.watching.pace import JobPace

    with ExitStack() as stack:
        pace = JobPace()
        watchers: list[Watcher] = [pace]
        log = None
        if options.log_json is not None:
            log = JsonLog(options.log_json, pace)
            stack.callback(log.close)
            watchers.append(log)
        if options.metrics_port is not None:
            metrics = _metrics(options, pace)
            stack.callback(metrics.close)
            watchers.append(metrics)
        if shows_progress() and not (STDOUT in (options.log_json, output) and sys.stdout.isatty()):
            display = _display(pace)
            stack.callback(display.close)
            watchers.append(display)
        on_signal = StateOnSignal(pace, tell, lambda: None if log is None else log.write_state())
        stack.callback(on_signal.close)
        watchers += [on_signal, EarlyWarning(tell_event, pace, machine)]
        if options.max_disk_writes_gib is not None:
            watchers.append(DiskWriteBound(options.max_disk_writes_gib, writes))
        yield watchers


def _metrics(options: WatchOptions, pace: "JobPace") -> Any:
    try:
        from flexref.batch_job.watching.metrics import Metrics
    except ImportError as error:
        raise BatchError(f"--metrics-port needs prometheus-client: {install_hint('metrics')}") from error
    assert options.metrics_port is not None
    host = options.metrics_host or LOOPBACK
    metrics = Metrics(options.metrics_port, pace, host)
    if options.metrics_port == 0:
        tell(f"metrics are served on http://{host}:{metrics.port}/metrics")
    return metrics


def _display(pace: "JobPace") -> Any:
    from flexref.cli.watching.job_display import JobLines, JobTable

    console = terminal()
    if console is None or console.is_dumb_terminal:
        return JobLines(pace)
    return JobTable(console, pace)
