"""Tab completion for bash, zsh and fish: a shell's script, and what may stand where the cursor is; it runs no command.

A shell asks through `_FLEXREF_COMPLETE`: `bash_source` for its script, `bash_complete` for what comes next. The
functions below are given to click as `shell_complete`. What cannot be listed is not offered.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress

import click
from click.shell_completion import CompletionItem, shell_complete

from flexref.errors import FlexrefError

SHELLS = ("bash", "zsh", "fish")

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def complete(group: click.Group, program: str, variable: str, asked: str) -> int:
    """Answer a shell on stdout; the exit code. `UsageError` if `asked`, in `variable`, is no question of a shell."""
    shell, _, what = asked.partition("_")
    if shell not in SHELLS or what not in ("source", "complete"):
        known = ", ".join(f"{name}_source" for name in SHELLS)
        raise click.UsageError(f"{variable} must be one of {known}, found {asked!r}")
    return shell_complete(group, {}, program, variable, asked)


def _completer(names: Callable[[], Iterable[str]], path: str | None = None) -> Completer:
    """What offers `names` and, with `path` ("file" or "dir"), what the shell itself finds in the folder."""

    def found(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        # bash forgets what was offered before a path is.
        items = [] if path is None else [CompletionItem(incomplete, type=path)]
        with suppress(FlexrefError):
            items += [CompletionItem(name) for name in names() if name.startswith(incomplete)]
        return items

    return found


def _installed_ports() -> Iterable[str]:
    from flexref.backend.registry import installed

    return installed()


def _known_machines() -> Iterable[str]:
    from flexref.machine.names import known_machines

    return known_machines()


def _listed_machines() -> Iterable[str]:
    from flexref.machine.names import machine_names

    return machine_names()


def _sizes() -> Iterable[str]:
    from flexref.architecture.published import SIZES

    return SIZES


def _suites() -> Iterable[str]:
    from flexref.bench.suites import read_suites

    return read_suites()


files = _completer(tuple, "file")
folders = _completer(tuple, "dir")
weight_files = _completer(lambda: ("demo",), "file")
sizes = _completer(_sizes, "file")
machines = _completer(_listed_machines, "file")
listed_machines = _completer(_listed_machines)
priced_machines = _completer(lambda: (f"{name}=" for name in _known_machines()))
ports = _completer(_installed_ports)
suites = _completer(_suites)
