"""Options of the commands that score on an engine: where things lie and on which port; they compute nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flexref.cli.generate import PERCENT_HELP

if TYPE_CHECKING:
    from flexref.engine.engine import Engine

Command = TypeVar("Command", bound=Callable[..., Any])

GIB = 1 << 30

OPTIONS = (
    click.option("--backend", default="numpy", show_default=True, help="The port to run on."),
    click.option("--device-mem-gib", type=float, help="Budget of the device; default: what is free."),
    click.option("--host-mem-gib", type=float, help="Budget of the host; default: what is free."),
    click.option("--disk-dir", metavar="DIR", help="Where activations may spill; default: the temporary folder."),
    click.option("--policy", "policy_file", metavar="FILE", help="A policy as JSON; default: chosen from the budgets."),
    click.option("--percent", nargs=6, type=float, metavar="W_DEV W_HOST C_DEV C_HOST A_DEV A_HOST", help=PERCENT_HELP),
    click.option("--rows-per-group", type=click.IntRange(min=1), help="Rows that are computed together."),
    click.option("--groups", "groups_per_block", type=click.IntRange(min=1), help="Groups that share a fetched layer."),
    click.option("--quantize-cache", is_flag=True, help="Keys and values pass through 4-bit groups, as in a cache."),
    click.option("--overlap/--no-overlap", default=None, help="Move beside computing, or one thing after another."),
)


def engine_options(command: Command) -> Command:
    """The options, on a command that takes them as keyword arguments for `engine_for`."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def engine_for(model: str, options: dict[str, Any], share: int = 1) -> "Engine":
    """An engine for `model` as the options ask for it; of memory without a budget it gets one part in `share`."""
    from flexref.backend.registry import create
    from flexref.cli.generate import policies
    from flexref.cli.show.progress import EventDisplay
    from flexref.engine.scoring import check_computes
    from flexref.loading import load

    # Attention on the host is for decode, of which there is none.
    policy, keep = policies({"attention_on": "device", **options})
    port = create(options["backend"])
    check_computes(port)
    budgets = {f"{tier}_mem_gib": options[f"{tier}_mem_gib"] for tier in ("device", "host")}
    if share > 1:
        free = {f"{tier}_mem_gib": port.free_bytes(tier) / share / GIB for tier in ("device", "host")}
        budgets = {name: free[name] if given is None else given for name, given in budgets.items()}
    disk_dir = options["disk_dir"]
    return load(model, policy=policy, keep=keep, backend=port, disk_dir=disk_dir, on_event=EventDisplay(), **budgets)


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, where that is a terminal; what is yielded is told how many more of `total` are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
