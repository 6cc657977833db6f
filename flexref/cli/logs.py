"""What every command logs, and who asks for it: options of all commands, and the handler that writes to stderr.

The library logs to the loggers below `flexref` and prints nothing. It knows no command.
"""

import copy
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from flexref.cli.streams import tell

LOGGER = "flexref"

LEVELS = ("debug", "info", "warning", "error")

STEPS = (logging.WARNING, logging.INFO, logging.DEBUG)
"""Levels by how often --verbose was given."""

QUIET, VERBOSE, LEVEL = (f"flexref.log.{name}" for name in ("quiet", "verbose", "level"))
"""Names in a context's `meta`, which a command shares with its group: the options may be given to either."""


def _quiet(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    context.meta[QUIET] = context.meta.get(QUIET, False) or value


def _verbose(context: click.Context, parameter: click.Parameter, value: int) -> None:
    context.meta[VERBOSE] = context.meta.get(VERBOSE, 0) + value


def _level(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    context.meta[LEVEL] = value or context.meta.get(LEVEL)


LOG_OPTIONS = (
    click.Option(["-q", "--quiet"], is_flag=True, expose_value=False, callback=_quiet, help="Errors only."),
    click.Option(
        ["-v", "--verbose"],
        count=True,
        expose_value=False,
        callback=_verbose,
        help="Say what is loaded, chosen and run; -vv: everything, with times.",
    ),
    click.Option(
        ["--log-level"],
        type=click.Choice(LEVELS),
        expose_value=False,
        callback=_level,
        help="What is logged, in place of -q and -v.",
    ),
)


def with_log_options(command: click.Command) -> click.Command:
    """The command with `LOG_OPTIONS`; as it is, if what follows belongs to another program."""
    if command.context_settings.get("ignore_unknown_options"):
        return command
    command = copy.copy(command)
    command.params = [*command.params, *LOG_OPTIONS]
    return command


def level_of(context: click.Context) -> int:
    """The level that the options ask for; a usage error for options that exclude each other."""
    quiet, verbose, level = (context.meta.get(name) for name in (QUIET, VERBOSE, LEVEL))
    if bool(quiet) + bool(verbose) + bool(level) > 1:
        raise click.UsageError("--quiet, --verbose and --log-level exclude each other", context)
    if level:
        return int(getattr(logging, level.upper()))
    return logging.ERROR if quiet else STEPS[min(verbose or 0, len(STEPS) - 1)]


@contextmanager
def logging_at(level: int) -> Iterator[None]:
    """What `flexref` logs from `level` on goes to stderr meanwhile, and nowhere else."""
    logger, handler = logging.getLogger(LOGGER), _ToStderr()
    handler.setFormatter(_Lines(timed=level <= logging.DEBUG))
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def shows_progress() -> bool:
    """Whether more than errors is asked for."""
    return logging.getLogger(LOGGER).isEnabledFor(logging.WARNING)


class _ToStderr(logging.Handler):
    """Writes a record as one line to whatever stderr is now: a bar on a terminal stands in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(self.format(record))


class _Lines(logging.Formatter):
    """The message alone or, `timed`, after the seconds since the command began, and who says it."""

    def __init__(self, *, timed: bool) -> None:
        super().__init__()
        self._timed, self._start_s = timed, time.time()

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        return f"{record.created - self._start_s:9.3f} {record.name}: {text}" if self._timed else text
