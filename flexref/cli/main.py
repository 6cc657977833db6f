"""The `flexref` command: loads commands when they are called and turns errors into exit codes; it knows no model."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from types import MappingProxyType
from typing import NamedTuple

import click

from flexref.cli.logs import LOG_OPTIONS, level_of, logging_at, with_log_options
from flexref.cli.process import Begun, check_limits
from flexref.cli.signals import Signals
from flexref.cli.streams import abandon, complain, prepare_streams, tell
from flexref.errors import FlexrefError, UnknownBackend, UnknownName, WrongCall, is_refused_resource
from flexref.version import __version__

PROGRAM = "flexref"

COMPLETION_VARIABLE = "_FLEXREF_COMPLETE"
"""Through which a shell asks what may come next."""

USER_ERROR = 1
WRONG_CALL = 2
BUG = os.EX_SOFTWARE
"""70 (sysexits.h): tells a script that flexref itself failed, not its input."""
INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""
READER_GONE = 141
"""128 + SIGPIPE, as shells report it."""


PRINTING = ("click.", "rich.", "flexref.cli.")
"""Modules whose errors without a file's name are those of the output."""


class Entry(NamedTuple):
    """One line of the command table: the module that defines `command`, and what the help listing says of it.

    `below`: commands of its own, by the word that follows its name; what else follows are its arguments.
    """

    module: str
    short_help: str
    below: "Mapping[str, Entry]" = MappingProxyType({})


COMMANDS: Mapping[str, Entry] = MappingProxyType(
    {
        "convert": Entry("flexref.cli.convert", "Make a flexref weight file from a Hugging Face OPT folder."),
        "inspect": Entry("flexref.cli.inspect", "List what a weight file holds: names, shapes, scheme, bytes."),
        "verify": Entry("flexref.cli.verify", "Check every dataset of a weight file and name each damaged one."),
        "generate": Entry("flexref.cli.generate", "Generate text under memory budgets, over three tiers."),
        "batch": Entry(
            "flexref.cli.batch.command",
            "Answer a file of requests exactly once, whatever happens.",
            {"merge": Entry("flexref.cli.batch.merge", "Join the outputs of a job's shards.")},
        ),
        "report": Entry("flexref.cli.report", "Make an HTML page of a batch job that runs or has ended."),
        "eval": Entry("flexref.cli.evaluate", "Measure perplexity of a text, or accuracy on questions."),
        "compare-models": Entry("flexref.cli.compare_models", "Tell how far one model is from another on a text."),
        "lm-eval": Entry("flexref.cli.lm_eval", "Run the lm-evaluation-harness's tasks on a model."),
        "check": Entry("flexref.cli.check", "Check a port: which operator is wrong, by how much, on what input."),
        "conformance": Entry(
            "flexref.cli.porting.conformance",
            "Try the port contract: a support table of any port.",
            {"diff": Entry("flexref.cli.porting.diff", "Tell what has changed between two results.")},
        ),
        "new-backend": Entry("flexref.cli.porting.new_backend", "Write the package of a new port, to be filled in."),
        "logits": Entry(
            "flexref.cli.reference_run.logits",
            "Write a reference run: logits in float64, and how far rounding moves them.",
        ),
        "compare-logits": Entry(
            "flexref.cli.reference_run.compare_logits", "Compare another engine's logits with a reference run."
        ),
        "bench": Entry(
            "flexref.cli.bench.command",
            "Time jobs on this machine, beside the least time it allows.",
            {"compare": Entry("flexref.cli.bench.compare", "Compare benchmarks that were kept.")},
        ),
        "plan": Entry("flexref.cli.plan", "Choose what lies where on a machine, and say what a job will take."),
        "compare-machines": Entry("flexref.cli.compare_machines", "Plan models on machines: which to rent or buy."),
        "profile": Entry("flexref.cli.profile", "Measure this machine: links, products, attention; for the planner."),
        "machines": Entry(
            "flexref.cli.listings.machines", "List machines that are known here; show, measure or delete one."
        ),
        "info": Entry("flexref.cli.listings.info", "Show versions, processor, devices, ports and folders here."),
        "models": Entry("flexref.cli.listings.models", "List models by name: parameters, bytes, cache per token."),
        "backends": Entry("flexref.cli.listings.backends", "List installed ports: what each can do, or why it cannot."),
        "schema": Entry("flexref.cli.schemas.command", "Print the JSON Schema of a file, or of a command's --json."),
    }
)


def all_commands(table: Mapping[str, Entry] = COMMANDS) -> "Iterator[LazyCommand]":
    """Every command of the table, each followed by those below it, which have its name before their own."""
    for name, entry in table.items():
        yield LazyCommand(name, entry)
        yield from all_commands({f"{name} {word}": below for word, below in entry.below.items()})


class LazyCommand(click.Command):
    """Stands for a command in listings; its module, with all that it imports, is loaded when it is called."""

    def __init__(self, name: str, entry: Entry) -> None:
        super().__init__(name, short_help=entry.short_help)
        self.module, self._below = entry.module, entry.below

    def load(self) -> click.Command:
        """The real command: `command` of the entry's module, with what all commands are asked for their logs."""
        command: click.Command = import_module(self.module).command
        return with_log_options(command)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: object
    ) -> click.Context:
        """The context of the real command, which is the one that click then invokes; while it lasts, logs are shown."""
        if args and args[0] in self._below:
            below = LazyCommand(f"{self.name} {args[0]}", self._below[args[0]])
            return below.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        context = self.load().make_context(info_name, args, parent, **extra)
        if not context.resilient_parsing:
            check_limits()
            context.with_resource(logging_at(level_of(context)))
        return context


class CommandTable(click.Group):
    """A group that lists its commands in the order of the table it was made from."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order of the table, which is the order in which a user meets them."""
        return list(self.commands)


def command_group(table: Mapping[str, Entry]) -> click.Group:
    """The `flexref` group over the commands in `table`; none of their modules is imported yet."""
    group = CommandTable(
        PROGRAM,
        commands={name: LazyCommand(name, entry) for name, entry in table.items()},
        help="Run OPT models that do not fit their device, over three memory tiers, checked against a reference.",
        epilog=f"Each command has its own help: {PROGRAM} COMMAND -h.",
        params=list(LOG_OPTIONS),
        context_settings={"help_option_names": ["-h", "--help"]},
        no_args_is_help=True,
    )
    return click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")(group)


def run(group: click.Group, arguments: Sequence[str], completing: str | None = None, begun: Begun | None = None) -> int:
    """Run `group` on `arguments` and return the exit code; with `completing` answer a shell's question instead.

    `begun`: when the command began; without it, now.
    0 success, 1 an error that the user can cause (one line on stderr), 2 a usage error, 70 a bug (the only case with a
    traceback), 130 interrupted, 141 the reader of our output has gone.
    """
    began = begun or Begun.now()
    code = _attempt(lambda: _answer(group, completing) if completing else _invoke(group, arguments, began))
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        abandon(sys.stdout)
        return code or READER_GONE
    except OSError as error:
        abandon(sys.stdout)
        return code or _complain(f"cannot write to standard output: {error.strerror}", USER_ERROR)
    return code


def _invoke(group: click.Group, arguments: Sequence[str], begun: Begun) -> int:
    with group.make_context(PROGRAM, list(arguments), obj=begun) as context:
        group.invoke(context)
    return 0


def _answer(group: click.Group, asked: str) -> int:
    from flexref.cli.completion import complete

    return complete(group, PROGRAM, COMPLETION_VARIABLE, asked)


def _attempt(act: Callable[[], int]) -> int:
    """What `act` returns, or the exit code of what it raises."""
    try:
        code = act()
        sys.stdout.flush()
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        complain(error.show)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        abandon(sys.stdout)
        return READER_GONE
    except SystemExit as leave:
        if not isinstance(leave.__context__, BrokenPipeError):
            raise
        abandon(sys.stdout)  # rich makes this of a broken pipe
        return READER_GONE
    except (UnknownBackend, UnknownName, WrongCall) as error:
        return _complain(str(error), WRONG_CALL)
    except FlexrefError as error:
        return _complain(str(error), USER_ERROR)
    except MemoryError as error:
        return _complain(f"the machine ran out of memory, lower the budgets ({str(error) or 'no details'})", USER_ERROR)
    except OSError as error:
        said = _refused(error)
        abandon(sys.stdout)  # what refused may be the output itself (a full disk), and must not fail again at exit
        return _complain(said, USER_ERROR)
    except Exception as error:
        if is_refused_resource(error):
            return _complain(f"the system refuses threads or memory: {error}", USER_ERROR)
        complain(traceback.print_exc)
        return _complain(
            "this is a bug in flexref: please report it with the lines above and what `flexref info` prints", BUG
        )
    return code


def main() -> None:
    """The console entry point: prepares signals and streams, runs the command and exits with its code."""
    signals = Signals()
    signals.install()
    code = INTERRUPTED
    with suppress(KeyboardInterrupt):
        if prepare_streams():
            code = run(command_group(COMMANDS), sys.argv[1:], os.environ.get(COMPLETION_VARIABLE), Begun.with_process())
        else:
            code = _complain("standard output is closed: give it a file, or /dev/null", USER_ERROR)
    signals.release()
    sys.exit(signals.exit_code if code == INTERRUPTED else code)


def _complain(message: str, exit_code: int) -> int:
    """Print `message` as one line on stderr."""
    tell(f"{PROGRAM}: {message}")
    return exit_code


def _refused(error: OSError) -> str:
    """What the operating system refuses, with the name of what it is about, as far as that can be found out."""
    why = error.strerror or str(error)
    if error.filename:
        return f"{error.filename}: {why}"
    try:
        os.getcwd()
    except OSError as gone:
        return f"the working folder is gone: {gone.strerror}"
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    raised_in = "" if last is None else str(last.tb_frame.f_globals.get("__name__"))
    # What these do to files has a name: what has none is what they print.
    return f"cannot write to standard output: {why}" if raised_in.startswith(PRINTING) else why
